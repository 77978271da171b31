/* gateway_client.c - a WebSocket client for the scenario `gateway`: the same receiving end for every server
 * that is compared. It checks each message as `payloads.Checker` does, and prints its figures.
 *
 *     gateway_client ADDRESS SIZE ROUND FILLER READY [OPTION ...]
 *
 * ADDRESS is unix:PATH, or an IPv4 address and a port. SIZE, ROUND and FILLER are those of native.h. READY is
 * a FIFO: once the server has answered the handshake, the client writes a byte to it. Options:
 *
 *     --resource TEXT      what is requested, "/" by default
 *     --ringcast-1         ask for the subprotocol ringcast.1, and take messages out of its records
 *     --lossy              the server may close with 1013 before the end; with --ringcast-1, the messages that
 *                          a record says are missing may be missing
 *     --times FILE         write when each message came: CLOCK_MONOTONIC, ns, 8 bytes each
 *
 * The stream is a round of messages, over and over. The message "end N~" ends it; N is their number. The
 * times count from the first message to the end. What comes in one read has one time.
 *
 * Exit code 65: another message came than the one that is due, or the stream ended early. 1: anything else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "native.h"

#define DATA_WRONG 65 /* EX_DATAERR of sysexits.h */
#define TIMEOUT_S 60
#define BUFFER_BYTES (256 << 10)
#define NS INT64_C(1000000000)

/* RFC 6455, section 5.2 */
#define FIN 0x80
#define MASKED 0x80
#define TEXT 1
#define BINARY 2
#define CLOSE 8
#define PING 9
#define PONG 10
#define LENGTH_IN_2_BYTES 126
#define LENGTH_IN_8_BYTES 127
#define CONTROL_BYTES_MOST 125
#define NORMAL 1000
#define TRY_AGAIN_LATER 1013

/* The key of section 1.3, and the answer to it. A key that is the same every time serves here. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

/* A record of ringcast.1, as docs/wire.md describes it. */
#define RECORD_HEADER 64
#define MESSAGE 1
#define GAP 4
#define EVENT 16

typedef struct client {
    arguments what;
    const char *ready, *resource, *times_path;
    int records, lossy;

    int socket;
    uint8_t *buffer;
    size_t start, end;

    uint64_t due, received, missed, bytes, announced;
    int64_t began_ns, ended_ns, now_ns;
    double cpu_began, cpu_seconds;
    int ended;      /* the end message came, or the close that stands for it */
    unsigned close; /* the code of the server's close frame; 0: none came */

    int64_t *times;
    size_t times_room;
} client;

static _Noreturn void fail(int code, const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(code);
}

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static uint64_t little(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    memcpy(&value, at, (size_t)bytes);
    return value;
}

/* ---- the connection ------------------------------------------------------------------------------------ */

static void send_all(client *c, const void *bytes, size_t length)
{
    const char *at = bytes;
    while (length) {
        ssize_t sent = send(c->socket, at, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            fail(1, "cannot send: %s", strerror(errno));
        at += sent < 0 ? 0 : sent;
        length -= sent < 0 ? 0 : (size_t)sent;
    }
}

/* Send a control frame, masked with zeros. A server that has gone does not mind. */
static void send_control(client *c, int opcode, const uint8_t *payload, size_t length)
{
    uint8_t frame[6 + CONTROL_BYTES_MOST] = {(uint8_t)(FIN | opcode), (uint8_t)(MASKED | length)};
    memcpy(frame + 6, payload, length);
    send(c->socket, frame, 6 + length, MSG_NOSIGNAL);
}

/* Receive what there is, after what is there already. 0: the server has ended the stream. */
static size_t receive(client *c)
{
    if (c->start) {
        memmove(c->buffer, c->buffer + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    if (c->end == BUFFER_BYTES)
        fail(1, "a frame is longer than %d bytes", BUFFER_BYTES);
    ssize_t received;
    do
        received = recv(c->socket, c->buffer + c->end, BUFFER_BYTES - c->end, 0);
    while (received < 0 && errno == EINTR);
    if (received < 0 && errno == EAGAIN)
        fail(1, "nothing came in %d s", TIMEOUT_S);
    if (received < 0 && errno != ECONNRESET)
        fail(1, "cannot receive: %s", strerror(errno));
    c->now_ns = clock_ns();
    c->end += received < 0 ? 0 : (size_t)received;
    return received < 0 ? 0 : (size_t)received;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path)
        fail(2, "the path is too long: %s", path);
    strcpy(to.sun_path, path);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to))
        fail(1, "cannot connect to %s: %s", path, strerror(errno));
    return s;
}

static int connect_tcp(const char *address)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    const char *colon = strchr(address, ':');
    char host[INET_ADDRSTRLEN] = "";
    if (!colon || (size_t)(colon - address) >= sizeof host)
        fail(2, "this is no address and port: %s", address);
    memcpy(host, address, (size_t)(colon - address));
    to.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1)
        fail(2, "this is no address and port: %s", address);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to))
        fail(1, "cannot connect to %s: %s", address, strerror(errno));
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return s;
}

static void open_connection(client *c)
{
    const char *address = c->what.name;
    const struct timeval limit = {.tv_sec = TIMEOUT_S};
    int is_unix = strncmp(address, "unix:", 5) == 0;
    char request[2048];
    c->socket = is_unix ? connect_unix(address + 5) : connect_tcp(address);
    setsockopt(c->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(c->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                          c->resource, is_unix ? "localhost" : address,
                          c->records ? "Sec-WebSocket-Protocol: ringcast.1\r\n" : "");
    if (length >= (int)sizeof request)
        fail(2, "the resource is too long");
    send_all(c, request, (size_t)length);
}

/* Read the server's answer (RFC 6455, section 4.1). What follows it stays in the buffer. */
static void finish_handshake(client *c)
{
    char *end = NULL;
    while (!end) {
        if (!receive(c))
            fail(1, "the server ended the handshake: %.*s", (int)c->end, c->buffer);
        end = memmem(c->buffer, c->end, "\r\n\r\n", 4);
    }
    *end = 0;
    const char *answer = (const char *)c->buffer;
    if (strncmp(answer, "HTTP/1.1 101 ", 13) || !strcasestr(answer, "\r\nSec-WebSocket-Accept: " ACCEPT))
        fail(1, "the server refused the handshake: %s", answer);
    if (c->records && !strcasestr(answer, "\r\nSec-WebSocket-Protocol: ringcast.1"))
        fail(1, "the server does not speak ringcast.1: %s", answer);
    c->start = (size_t)(end + 4 - answer);
    c->bytes = c->end - c->start;
    int ready = open(c->ready, O_WRONLY | O_CLOEXEC);
    if (ready < 0 || write(ready, "r", 1) != 1)
        fail(1, "cannot write to %s: %s", c->ready, strerror(errno));
    close(ready);
}

/* ---- messages ------------------------------------------------------------------------------------------ */

static void note_time(client *c)
{
    if (c->received == c->times_room) {
        c->times_room = c->times_room ? 2 * c->times_room : 1 << 16;
        c->times = realloc(c->times, c->times_room * sizeof *c->times);
        if (!c->times)
            fail(1, "no memory");
    }
    c->times[c->received] = c->now_ns;
}

static void end_stream(client *c)
{
    if (!c->received) {
        c->began_ns = c->now_ns;
        c->cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
    }
    c->ended = 1;
    c->ended_ns = c->now_ns;
    c->cpu_seconds = now(CLOCK_PROCESS_CPUTIME_ID) - c->cpu_began;
}

/* Take another message than the one that is due. */
static void take_end(client *c, const uint8_t *bytes, uint64_t length)
{
    char text[32] = "";
    uint64_t counter = 0;
    if (length < sizeof text)
        memcpy(text, bytes, length);
    if (length >= 8)
        memcpy(&counter, bytes, 8);
    if (sscanf(text, "end %" SCNu64 "~", &c->announced) != 1)
        fail(DATA_WRONG, "after %" PRIu64 " messages, number %" PRIu64 " of the round is due, and %" PRIu64
             " came, of %" PRIu64 " bytes", c->received, c->due, counter, length);
    if (c->announced != c->received + c->missed)
        fail(DATA_WRONG, "%" PRIu64 " messages were sent, and %" PRIu64 " came; %" PRIu64 " were missed",
             c->announced, c->received, c->missed);
    end_stream(c);
}

static void take_message(client *c, const uint8_t *bytes, uint64_t length)
{
    if (!is_due(&c->what, bytes, length, c->due)) {
        take_end(c, bytes, length);
        return;
    }
    if (!c->received) {
        c->began_ns = c->now_ns;
        c->cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
    }
    if (c->times_path)
        note_time(c);
    c->received++;
    c->due = c->due + 1 == c->what.round ? 0 : c->due + 1;
}

static void skip(client *c, uint64_t gap)
{
    if (gap && !c->lossy)
        fail(DATA_WRONG, "after %" PRIu64 " messages, %" PRIu64 " are missing", c->received, gap);
    c->missed += gap;
    c->due = (c->due + gap) % c->what.round;
}

/* Take the records of a frame. */
static void take_records(client *c, const uint8_t *bytes, uint64_t length)
{
    while (length && !c->ended) {
        uint64_t size = length < RECORD_HEADER ? 0 : little(bytes, 4);
        if (length < RECORD_HEADER || length - RECORD_HEADER < size)
            fail(DATA_WRONG, "after %" PRIu64 " messages, a frame ends within a record", c->received);
        uint64_t type = little(bytes + 4, 2), kind = little(bytes + 6, 2);
        if (type == MESSAGE || type == GAP)
            skip(c, little(bytes + 32, 8));
        if (type == MESSAGE && kind != EVENT) {
            if (little(bytes + 48, 4) != size || little(bytes + 52, 4))
                fail(DATA_WRONG, "after %" PRIu64 " messages, one comes in parts", c->received);
            take_message(c, bytes + RECORD_HEADER, size);
        }
        bytes += RECORD_HEADER + size;
        length -= RECORD_HEADER + size;
    }
}

/* ---- frames -------------------------------------------------------------------------------------------- */

static void take_control(client *c, int opcode, const uint8_t *bytes, uint64_t length)
{
    if (opcode == PING)
        send_control(c, PONG, bytes, length);
    if (opcode == CLOSE)
        c->close = length >= 2 ? (unsigned)bytes[0] << 8 | bytes[1] : NORMAL;
}

/* Take the next frame, if all of it is there. */
static int take_frame(client *c)
{
    const uint8_t *at = c->buffer + c->start;
    size_t there = c->end - c->start, header = 2;
    if (there < 2)
        return 0;
    uint64_t length = at[1];
    int opcode = at[0] & 15;
    if (length >= LENGTH_IN_2_BYTES) {
        size_t bytes = length == LENGTH_IN_8_BYTES ? 8 : 2;
        header += bytes;
        if (there < header)
            return 0;
        length = 0;
        for (size_t i = 2; i < header; i++)
            length = length << 8 | at[i];
    }
    if ((at[0] & 0xF0) != FIN || at[1] & MASKED || (opcode >= CLOSE ? length > CONTROL_BYTES_MOST
                                                    : opcode != TEXT && opcode != BINARY))
        fail(DATA_WRONG, "after %" PRIu64 " messages came a frame that begins with %02x %02x", c->received,
             at[0], at[1]);
    if (there - header < length) {
        if (length > BUFFER_BYTES - header)
            fail(1, "a frame of %" PRIu64 " bytes is too long", length);
        return 0;
    }
    if (opcode >= CLOSE)
        take_control(c, opcode, at + header, length);
    else if (c->records)
        take_records(c, at + header, length);
    else
        take_message(c, at + header, length);
    c->start += header + length;
    return 1;
}

static void read_stream(client *c)
{
    const uint8_t code[2] = {NORMAL >> 8, NORMAL & 255};
    for (;;) {
        while (!c->ended && !c->close && take_frame(c))
            ;
        if (c->ended || c->close)
            break;
        size_t received = receive(c);
        if (!received)
            fail(DATA_WRONG, "the connection ended after %" PRIu64 " messages", c->received);
        c->bytes += received;
    }
    if (!c->ended && (!c->lossy || c->close != TRY_AGAIN_LATER))
        fail(DATA_WRONG, "the server closed with %u after %" PRIu64 " messages", c->close, c->received);
    if (!c->ended)
        end_stream(c);
    send_control(c, CLOSE, code, sizeof code);
    close(c->socket);
}

/* ---- the program --------------------------------------------------------------------------------------- */

static void read_options(client *c, int count, char **words)
{
    if (count < 6)
        fail(2, "usage: %s ADDRESS SIZE ROUND FILLER READY [OPTION ...]", words[0]);
    int wrong = read_contents(&c->what, words + 1);
    if (wrong)
        exit(wrong);
    c->ready = words[5];
    c->resource = "/";
    for (int i = 6; i < count; i++) {
        if (!strcmp(words[i], "--ringcast-1"))
            c->records = 1;
        else if (!strcmp(words[i], "--lossy"))
            c->lossy = 1;
        else if (!strcmp(words[i], "--resource") && i + 1 < count)
            c->resource = words[++i];
        else if (!strcmp(words[i], "--times") && i + 1 < count)
            c->times_path = words[++i];
        else
            fail(2, "there is no option %s, or its value is missing", words[i]);
    }
}

static void write_times(const client *c)
{
    FILE *file = fopen(c->times_path, "wb");
    if (!file || fwrite(c->times, sizeof *c->times, c->received, file) != c->received || fclose(file))
        fail(1, "cannot write %s", c->times_path);
}

int main(int count, char **words)
{
    client c = {0};
    read_options(&c, count, words);
    c.buffer = malloc(BUFFER_BYTES);
    if (!c.buffer)
        fail(1, "no memory");
    open_connection(&c);
    finish_handshake(&c);
    read_stream(&c);
    if (c.times_path)
        write_times(&c);
    printf("{\"received\": %" PRIu64 ", \"seconds\": %.9f, \"cpu_seconds\": %.9f, \"wrong\": 0, \"missed\": %"
           PRIu64 ", \"bytes\": %" PRIu64 ", \"began_ns\": %" PRId64 ", \"ended_ns\": %" PRId64
           ", \"close\": %u}\n", c.received, (double)(c.ended_ns - c.began_ns) / NS, c.cpu_seconds, c.missed,
           c.bytes, c.began_ns, c.ended_ns, c.close);
    free(c.buffer);
    free(c.times);
    free(c.what.filler);
    return 0;
}
