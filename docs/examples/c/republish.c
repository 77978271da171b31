/* republish.c - serve a ring to WebSocket clients: `republish NAME PORT`, on 127.0.0.1.
 *
 * Each client gets each message that comes while it is connected: text as text, binary as binary.
 * The messages are copied into one queue, from which all clients are served, each at its own pace.
 * When the queue is full its oldest message goes, and so does a client to which it was not sent: a
 * slow client costs neither the others nor the ring anything.
 *
 * libwebsockets has one thread. Another one waits for the ring and wakes it.
 */
#include <libwebsockets.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ringcast.h"

#define QUEUE_MESSAGES 4096u
#define QUEUE_BYTES ((size_t)64 << 20)
#define READS_PER_TURN 512                /* then clients are served, and it goes on */
#define LOOK_AROUND_NS INT64_C(100000000) /* how often the waiting thread looks at `ending` */
#define DRAIN_SECONDS 10                  /* for clients to take what is queued at the end */

struct queued {
    size_t length;
    enum lws_write_protocol kind;
    unsigned char bytes[]; /* LWS_PRE for the frame's header, then the payload */
};

struct client {
    int connected; /* its handshake is over */
    uint64_t next; /* number of the message to be sent next */
};

static struct queued *queue[QUEUE_MESSAGES]; /* message number n is at n % QUEUE_MESSAGES */
static uint64_t oldest, newest;              /* numbers; `newest` is the next one's */
static size_t queue_bytes;

static ringcast_reader *reader;
static ringcast_status status; /* of the last read */
static struct lws_context *context;
static sem_t was_read;    /* the loop has read what the waiting thread woke it for */
static atomic_int ending; /* by a signal, or with the ring */
static unsigned clients;

/* ---- the queue ----------------------------------------------------------------------------- */

static void drop_oldest(void)
{
    struct queued *message = queue[oldest++ % QUEUE_MESSAGES];
    queue_bytes -= message->length;
    free(message);
}

static void append(const ringcast_message *message)
{
    struct queued *copy = malloc(sizeof *copy + LWS_PRE + message->length);
    if (!copy)
        abort(); /* no memory */
    copy->length = message->length;
    copy->kind = message->kind == RINGCAST_TEXT ? LWS_WRITE_TEXT : LWS_WRITE_BINARY;
    memcpy(copy->bytes + LWS_PRE, message->payload, message->length);
    if (!ringcast_valid(reader)) { /* evicted while we copied, as the next read will report */
        free(copy);
        return;
    }
    while (newest - oldest == QUEUE_MESSAGES ||
           (newest > oldest && queue_bytes + copy->length > QUEUE_BYTES))
        drop_oldest();
    queue_bytes += copy->length;
    queue[newest++ % QUEUE_MESSAGES] = copy;
}

static void read_ring(void)
{
    ringcast_message message;
    for (int i = 0; status == RINGCAST_OK && i < READS_PER_TURN; i++)
        if ((status = ringcast_read(reader, &message, 0)) == RINGCAST_OK)
            append(&message);
    if (status == RINGCAST_TIMEOUT)
        status = RINGCAST_OK;
    else if (status != RINGCAST_OK)
        ending = 1;
    ringcast_release(reader); /* all was copied: nothing is held while clients are served */
}

static void *wait_for_ring(void *unused)
{
    while (!ending) {
        if (ringcast_wait(reader, LOOK_AROUND_NS) == RINGCAST_TIMEOUT)
            continue;
        lws_cancel_service(context);
        sem_wait(&was_read); /* else the same messages would wake the loop again and again */
    }
    lws_cancel_service(context);
    return unused;
}

/* ---- clients ------------------------------------------------------------------------------- */

/* Something is new, or the end: a client that is too slow is closed, the others are served. */
static void look_at(struct lws *wsi, const struct client *client)
{
    if (!client || !client->connected)
        return;
    if (client->next < oldest) {
        lws_set_timeout(wsi, PENDING_TIMEOUT_USER_REASON_BASE, LWS_TO_KILL_ASYNC);
        return;
    }
    if (ending)
        lws_set_timeout(wsi, PENDING_TIMEOUT_USER_REASON_BASE, DRAIN_SECONDS);
    lws_callback_on_writable(wsi);
}

/* Send what the socket takes. Not 0: close the connection. */
static int serve(struct lws *wsi, struct client *client)
{
    if (client->next < oldest)
        return -1;
    while (client->next < newest && !lws_send_pipe_choked(wsi)) {
        struct queued *message = queue[client->next++ % QUEUE_MESSAGES];
        if (lws_write(wsi, message->bytes + LWS_PRE, message->length, message->kind) < 0)
            return -1;
    }
    if (client->next < newest)
        lws_callback_on_writable(wsi);
    else if (ending)
        lws_close_reason(wsi, LWS_CLOSE_STATUS_GOINGAWAY, NULL, 0);
    return client->next == newest && ending ? -1 : 0;
}

static int on_event(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                    size_t length)
{
    struct client *client = user;
    switch (reason) {
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED: /* the waiting thread woke us */
        read_ring();
        lws_callback_all_protocol(context, lws_get_protocol(wsi), LWS_CALLBACK_USER);
        sem_post(&was_read);
        return 0;
    case LWS_CALLBACK_ESTABLISHED:
        clients++;
        *client = (struct client){.connected = 1, .next = newest};
        if (ending)
            lws_callback_on_writable(wsi);
        return 0;
    case LWS_CALLBACK_CLOSED:
        clients--;
        return 0;
    case LWS_CALLBACK_USER:
        look_at(wsi, client);
        return 0;
    case LWS_CALLBACK_SERVER_WRITEABLE:
        return serve(wsi, client);
    case LWS_CALLBACK_RECEIVE: /* clients have nothing to say */
        return 0;
    default:
        return lws_callback_http_dummy(wsi, reason, user, in, length);
    }
}

/* ---- main ---------------------------------------------------------------------------------- */

static const struct lws_protocols protocols[] = {
    {.name = "ringcast", .callback = on_event, .per_session_data_size = sizeof(struct client)},
    {.name = NULL},
};

static void on_signal(int number)
{
    (void)number;
    ending = 1; /* the waiting thread wakes the loop */
}

static int listen_on(int port)
{
    struct lws_context_creation_info info = {0};
    lws_set_log_level(LLL_ERR | LLL_WARN, NULL);
    info.port = port;
    info.iface = "127.0.0.1";
    info.protocols = protocols;
    if (!(context = lws_create_context(&info)))
        return 0;
    port = lws_get_vhost_listen_port(lws_get_vhost_by_name(context, "default"));
    printf("ws://127.0.0.1:%d\n", port); /* which was chosen, if it was 0 */
    return fflush(stdout) == 0;
}

int main(int argc, char **argv)
{
    ringcast_reader_options options = {.label = "republish"};
    pthread_t waiting;
    if (argc != 3)
        return fprintf(stderr, "usage: republish NAME PORT\n"), 2;
    if (ringcast_reader_attach(&reader, argv[1], &options) != RINGCAST_OK)
        return fprintf(stderr, "%s\n", ringcast_last_error()), 1;
    if (!listen_on(atoi(argv[2])))
        return fprintf(stderr, "cannot listen on port %s\n", argv[2]), 1;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    sem_init(&was_read, 0, 0);
    if (pthread_create(&waiting, NULL, wait_for_ring, NULL) != 0)
        return fprintf(stderr, "cannot start a thread\n"), 1;
    while (!(ending && clients == 0) && lws_service(context, 0) >= 0)
        ;
    ending = 1;
    sem_post(&was_read);
    pthread_join(waiting, NULL);
    if (status != RINGCAST_OK && status != RINGCAST_ENDED)
        fprintf(stderr, "%s\n", ringcast_last_error());
    lws_context_destroy(context);
    ringcast_reader_close(reader);
    while (oldest < newest)
        drop_oldest();
    return status != RINGCAST_OK && status != RINGCAST_ENDED;
}
