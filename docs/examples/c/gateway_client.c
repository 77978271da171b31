/* gateway_client.c - print what a gateway sends: `gateway_client SOCKET [TARGET [TEXT]]`.
 *
 * SOCKET is the path of the gateway's Unix socket, TARGET says what to get, such as "/?topics=trades*",
 * and TEXT is sent to the server first. For TCP, set `address` to "127.0.0.1" and `port` to the port.
 *
 * libwebsockets hands over a long message in pieces. When the gateway closes the connection, it says why:
 * the program prints code and reason, and returns 0 if the ring has ended.
 */
#include <libwebsockets.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define GOING_AWAY 1001

struct client {
    const char *text; /* still to be sent; or NULL */
    int code;         /* of the end; 0: it goes on */
};

static int send_text(struct lws *wsi, const char *text)
{
    unsigned char room[LWS_PRE + 4096];
    size_t length = strlen(text);
    if (length > sizeof room - LWS_PRE)
        return -1;
    memcpy(room + LWS_PRE, text, length);
    return lws_write(wsi, room + LWS_PRE, length, LWS_WRITE_TEXT) < (int)length ? -1 : 0;
}

static int on_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *data, size_t size)
{
    struct client *client = user;
    const uint8_t *bytes = data;
    switch (reason) {
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        if (client->text)
            lws_callback_on_writable(wsi);
        break;
    case LWS_CALLBACK_CLIENT_WRITEABLE:
        if (client->text && send_text(wsi, client->text) != 0)
            return -1;
        client->text = NULL;
        break;
    case LWS_CALLBACK_CLIENT_RECEIVE:
        fwrite(bytes, 1, size, stdout);
        if (lws_is_final_fragment(wsi) && lws_remaining_packet_payload(wsi) == 0)
            putchar('\n');
        break;
    case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
        if (size >= 2) {
            client->code = bytes[0] << 8 | bytes[1];
            fprintf(stderr, "closed: %d %.*s\n", client->code, (int)size - 2, (const char *)bytes + 2);
        }
        break;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        fprintf(stderr, "can't connect: %.*s\n", (int)size, size > 0 ? (const char *)data : "");
        client->code = -1;
        break;
    case LWS_CALLBACK_CLIENT_CLOSED:
        if (client->code == 0) {
            fprintf(stderr, "the connection was lost\n");
            client->code = -1;
        }
        break;
    default:
        break;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct lws_protocols protocols[] = {{.name = "messages", .callback = on_event}, {0}};
    struct lws_context_creation_info made = {.port = CONTEXT_PORT_NO_LISTEN, .protocols = protocols};
    struct lws_client_connect_info to = {.port = 80, .host = "localhost", .path = "/"};
    struct client client = {0};
    char address[128];
    if (argc < 2 || argc > 4 || snprintf(address, sizeof address, "+%s", argv[1]) >= (int)sizeof address) {
        fprintf(stderr, "usage: gateway_client SOCKET [TARGET [TEXT]]\n");
        return 2;
    }
    if (argc > 2)
        to.path = argv[2];
    if (argc > 3)
        client.text = argv[3];
    lws_set_log_level(LLL_ERR, NULL);
    to.context = lws_create_context(&made);
    if (!to.context)
        return 1;
    to.address = address; /* + stands for a Unix socket */
    to.local_protocol_name = "messages";
    to.userdata = &client;
    if (!lws_client_connect_via_info(&to) && client.code == 0) {
        fprintf(stderr, "can't connect to %s\n", argv[1]);
        client.code = -1;
    }
    while (client.code == 0 && lws_service(to.context, 0) >= 0)
        ;
    lws_context_destroy(to.context);
    return client.code != GOING_AWAY;
}
