/* lws_client.c - clients of a gateway's Unix socket, with libwebsockets.
 *
 *     lws_client SOCKET TARGET COUNT
 *
 * prints "open" once all are connected, and a line for each that ends: texts, binaries, bytes of
 * payload, and the digest of captures.extend_digest(). Not how it was closed: libwebsockets 4.1 takes
 * the code 1012 for a wrong one. */
#include <libwebsockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS_MAX 64
#define RX_BYTES (1 << 16)

typedef struct client {
    struct lws *wsi;
    unsigned long texts, binaries, bytes;
    uint32_t digest;
    uint8_t *message;
    size_t size, room;
    int ended;
} client;

static client clients[CLIENTS_MAX];
static int count, opened, ended;
static uint32_t table[256];

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
}

static uint32_t crc32_of(const void *data, size_t size, uint32_t crc)
{
    const uint8_t *bytes = data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++)
        crc = table[(crc ^ bytes[i]) & 0xff] ^ crc >> 8;
    return ~crc;
}

static void took(client *c, int is_text)
{
    uint8_t head[9];
    for (int i = 0; i < 8; i++)
        head[i] = (uint8_t)((uint64_t)c->size >> 8 * i);
    head[8] = is_text ? 't' : 'b';
    c->digest = crc32_of(c->message, c->size, crc32_of(head, sizeof head, c->digest));
    c->bytes += c->size;
    *(is_text ? &c->texts : &c->binaries) += 1;
    c->size = 0;
}

static void add(client *c, const void *data, size_t size)
{
    if (c->room < c->size + size + 1) {
        c->room = 2 * (c->size + size + 1);
        c->message = realloc(c->message, c->room);
        if (!c->message)
            abort();
    }
    memcpy(c->message + c->size, data, size);
    c->size += size;
}

static void end(client *c)
{
    if (c->ended)
        return;
    c->ended = 1;
    ended++;
    printf("%lu %lu %lu %u\n", c->texts, c->binaries, c->bytes, (unsigned)c->digest);
    fflush(stdout);
}

static int callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t size)
{
    client *c = lws_get_opaque_user_data(wsi);
    (void)user;
    switch (reason) {
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        if (++opened == count) {
            puts("open");
            fflush(stdout);
        }
        break;
    case LWS_CALLBACK_CLIENT_RECEIVE:
        add(c, in, size);
        if (lws_is_final_fragment(wsi) && lws_remaining_packet_payload(wsi) == 0)
            took(c, !lws_frame_is_binary(wsi));
        break;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        fprintf(stderr, "can't connect: %s\n", in ? (const char *)in : "no reason");
        exit(1);
    case LWS_CALLBACK_CLIENT_CLOSED:
        end(c);
        break;
    default:
        break;
    }
    return 0;
}

static const struct lws_protocols protocols[] = {
    {.name = "messages", .callback = callback, .rx_buffer_size = RX_BYTES},
    {.name = NULL},
};

int main(int argc, char **argv)
{
    struct lws_context_creation_info about = {.port = CONTEXT_PORT_NO_LISTEN, .protocols = protocols};
    char address[256];
    if (argc != 4 || (count = atoi(argv[3])) < 1 || count > CLIENTS_MAX)
        return 2;
    make_table();
    lws_set_log_level(LLL_ERR, NULL);
    about.gid = about.uid = (uint32_t)-1;
    struct lws_context *context = lws_create_context(&about);
    if (!context)
        return 1;
    snprintf(address, sizeof address, "+%s", argv[1]); /* its way to say: a Unix socket */
    for (int i = 0; i < count; i++) {
        struct lws_client_connect_info to = {
            .context = context,
            .address = address,
            .host = "localhost",
            .origin = "localhost",
            .path = argv[2],
            .local_protocol_name = protocols[0].name,
            .opaque_user_data = &clients[i],
            .pwsi = &clients[i].wsi,
        };
        if (!lws_client_connect_via_info(&to))
            return 1;
    }
    while (ended < count && lws_service(context, 0) >= 0)
        ;
    lws_context_destroy(context);
    return ended < count;
}
