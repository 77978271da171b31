/* endpoints.c - C readers, members and senders that do what they are asked.
 *
 * Each line of the input is a request: a word, the number of an end where it needs one, and
 * arguments. The answer is one line of JSON; only `follow`, `loop` and `work` print one for each message
 * before it. So a Python test works any number of C ends, in a process that it can kill.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ringcast.h"

#define ENDS 8
#define MANY 4096
#define LINE_MAX_BYTES (1 << 18)
#define ALARM_SECONDS 240 /* the end of whatever went wrong */
#define LOOK_NS INT64_C(20000000)

#define TOPICS_MAX 512 /* in one request */

static ringcast_reader *readers[ENDS];
static ringcast_member *members[ENDS];
static ringcast_sender *senders[ENDS];
static ringcast_message messages[MANY];
static size_t held;

/* ---- answers ------------------------------------------------------------------------------- */

static uint32_t crc32_of(const uint8_t *bytes, size_t n)
{
    static uint32_t table[256];
    uint32_t crc = UINT32_MAX;
    for (uint32_t i = 0; !table[255] && i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ UINT32_C(0xedb88320) : value >> 1;
        table[i] = value;
    }
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 255];
    return ~crc;
}

static void print_text(const char *key, const char *text)
{
    printf(", \"%s\": \"", key);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < ' ')
            printf("\\u%04x", (unsigned char)*text);
        else
            putchar(*text);
    putchar('"');
}

static void answer(ringcast_status status)
{
    printf("{\"status\": %d", (int)status);
    if (status > RINGCAST_ENDED)
        print_text("error", ringcast_last_error());
}

static void finish(void)
{
    puts("}");
    fflush(stdout);
}

static void print_message(const ringcast_message *m)
{
    printf("{\"status\": 0, \"sequence\": %" PRIu64 ", \"length\": %zu, \"crc\": %" PRIu32
           ", \"gap\": %" PRIu64 ", \"topic\": %" PRIu32 ", \"kind\": %d, \"epoch\": %" PRIu32
           ", \"time_ns\": %" PRIu64 ", \"key\": %" PRIu64 ", \"connection\": %d"
           ", \"deliveries\": %" PRIu32 "}\n",
           m->sequence, m->length, crc32_of(m->payload, m->length), m->gap, m->topic, m->kind,
           m->epoch, m->time_ns, m->key, m->connection, m->deliveries);
}

/* ---- topics -------------------------------------------------------------------------------- */

static const char *topics[TOPICS_MAX];

/* Names and patterns with a | between them; "-" is none, and an empty one is "". */
static size_t parse_topics(char *text)
{
    size_t count = 0;
    if (!strcmp(text, "-"))
        return 0;
    for (char *topic; (topic = strsep(&text, "|")) && count < TOPICS_MAX;)
        topics[count++] = topic;
    return count;
}

static void print_topic_name(const char *found)
{
    answer(RINGCAST_OK);
    printf(", \"known\": %d", found != NULL);
    print_text("name", found ? found : "");
}

/* ---- readers ------------------------------------------------------------------------------- */

static ringcast_status attach(char *arguments)
{
    int end, policy, start, wait;
    ringcast_reader_options options = {0};
    char name[64], label[128];
    static char list[LINE_MAX_BYTES];
    if (sscanf(arguments,
               "%d %63s %d %d %" SCNu64 " %d %" SCNd32 " %" SCNd32 " %" SCNd64 " %127s %" SCNd32
               " %" SCNd32 " %262143s",
               &end, name, &policy, &start, &options.sequence, &wait, &options.spin_us,
               &options.events, &options.owner, label, &options.choose, &options.others,
               list) != 13)
        exit(3);
    options.topic_count = parse_topics(list);
    options.topics = options.topic_count ? topics : NULL;
    options.policy = (ringcast_policy)policy;
    options.start = (ringcast_start)start;
    options.wait = (ringcast_strategy)wait;
    options.label = strcmp(label, "-") ? label : NULL;
    return ringcast_reader_attach(&readers[end], strcmp(name, "-") ? name : "", &options);
}

static ringcast_status read_some(int end, size_t limit, int64_t timeout_ns)
{
    ringcast_status status;
    held = 0;
    if (limit == 1) {
        status = ringcast_read(readers[end], messages, timeout_ns);
        held = status == RINGCAST_OK;
    } else {
        status = ringcast_read_many(readers[end], messages, limit < MANY ? limit : MANY, &held,
                                    timeout_ns);
    }
    return status;
}

static void print_held(ringcast_status status)
{
    answer(status);
    printf(", \"count\": %zu, \"crcs\": [", held);
    for (size_t i = 0; i < held; i++)
        printf("%s%" PRIu32, i ? ", " : "", crc32_of(messages[i].payload, messages[i].length));
    printf("], \"gaps\": [");
    for (size_t i = 0; i < held; i++)
        printf("%s%" PRIu64, i ? ", " : "", messages[i].gap);
    printf("], \"first\": %" PRIu64, held ? messages[0].sequence : 0);
}

/* Read `limit` at a time until something ends that, and print each message that was valid. */
static ringcast_status follow(int end, size_t limit, int64_t timeout_ns)
{
    ringcast_status status;
    while ((status = read_some(end, limit, timeout_ns)) == RINGCAST_OK) {
        for (size_t i = 0; i < held; i++)
            print_message(&messages[i]);
        fflush(stdout);
    }
    return status;
}

/* ---- a second thread that waits ------------------------------------------------------------ */

static struct {
    int end, handshake;
    ringcast_status (*wait)(int end);
    sem_t woken, was_read;
    atomic_int over, wakes;
} loop;

static void *wait_in_turn(void *unused)
{
    while (!loop.over) {
        ringcast_status status = loop.wait(loop.end);
        if (status == RINGCAST_TIMEOUT)
            continue;
        loop.wakes++;
        if (loop.handshake) {
            sem_post(&loop.woken);
            sem_wait(&loop.was_read);
        }
        if (status != RINGCAST_OK)
            break;
    }
    return unused;
}

/* An event loop: a thread waits, this one handles a message with timeout 0 (`handshake`), or waits for it,
 * too. */
static ringcast_status run_loop(int end, int handshake, ringcast_status (*wait)(int end),
                                ringcast_status (*handle)(int end, int64_t timeout_ns))
{
    pthread_t thread;
    ringcast_status status = RINGCAST_OK;
    loop.end = end;
    loop.handshake = handshake;
    loop.wait = wait;
    loop.over = loop.wakes = 0;
    sem_init(&loop.woken, 0, 0);
    sem_init(&loop.was_read, 0, 0);
    if (pthread_create(&thread, NULL, wait_in_turn, NULL) != 0)
        exit(4);
    while (status == RINGCAST_OK || status == RINGCAST_TIMEOUT) {
        if (handshake)
            sem_wait(&loop.woken);
        while ((status = handle(end, handshake ? 0 : LOOK_NS)) == RINGCAST_OK)
            ;
        if (handshake)
            sem_post(&loop.was_read);
    }
    loop.over = 1;
    sem_post(&loop.was_read);
    pthread_join(thread, NULL);
    return status;
}

static ringcast_status wait_as_reader(int end) { return ringcast_wait(readers[end], LOOK_NS); }

static ringcast_status print_next(int end, int64_t timeout_ns)
{
    ringcast_status status = read_some(end, 1, timeout_ns);
    if (status == RINGCAST_OK)
        print_message(messages);
    return status;
}

/* ---- members ------------------------------------------------------------------------------- */

/* What each member was handed last: a message that is acknowledged or given back is named by its
 * sequence, and also one that it has no more. */
static ringcast_message taken[ENDS][MANY];
static size_t taken_count[ENDS];

static ringcast_status join(char *arguments)
{
    int end, balance, start, wait;
    ringcast_member_options options = {0};
    char name[64], group[64], label[128];
    static char list[LINE_MAX_BYTES];
    if (sscanf(arguments,
               "%d %63s %63s %d %" SCNd32 " %d %" SCNu64 " %d %" SCNd32 " %" SCNd64 " %127s %" SCNd32
               " %" SCNd32 " %262143s",
               &end, name, group, &balance, &options.max_deliveries, &start, &options.sequence, &wait,
               &options.spin_us, &options.owner, label, &options.choose, &options.others, list) != 14)
        exit(3);
    options.topic_count = parse_topics(list);
    options.topics = options.topic_count ? topics : NULL;
    options.balance = (ringcast_balance)balance;
    options.start = (ringcast_start)start;
    options.wait = (ringcast_strategy)wait;
    options.label = strcmp(label, "-") ? label : NULL;
    taken_count[end] = 0;
    return ringcast_member_attach(&members[end], name, strcmp(group, "-") ? group : NULL, &options);
}

static ringcast_status take_some(int end, size_t limit, int64_t timeout_ns)
{
    ringcast_status status;
    held = 0;
    if (limit == 1) {
        status = ringcast_take(members[end], messages, timeout_ns);
        held = status == RINGCAST_OK;
    } else {
        status = ringcast_take_many(members[end], messages, limit < MANY ? limit : MANY, &held,
                                    timeout_ns);
    }
    for (size_t i = 0; i < held; i++)
        taken[end][taken_count[end]++ % MANY] = messages[i];
    return status;
}

/* The newest messages of these sequences, with commas between them. */
static size_t find_taken(int end, char *list)
{
    size_t count = 0;
    for (char *number; (number = strsep(&list, ",")) && count < MANY; count++) {
        uint64_t sequence = strtoull(number, NULL, 10);
        size_t n = taken_count[end];
        while (n-- > 0 && taken[end][n % MANY].sequence != sequence)
            ;
        messages[count] = n != SIZE_MAX ? taken[end][n % MANY]
                                        : (ringcast_message){.sequence = sequence, .deliveries = 1};
    }
    return count;
}

static void print_list(ringcast_status status)
{
    answer(status);
    printf(", \"count\": %zu, \"sequences\": [", held);
    for (size_t i = 0; i < held; i++)
        printf("%s%" PRIu64, i ? ", " : "", messages[i].sequence);
    printf("], \"deliveries\": [");
    for (size_t i = 0; i < held; i++)
        printf("%s%" PRIu32, i ? ", " : "", messages[i].deliveries);
    printf("]");
}

/* Take `limit` at a time until something ends that. Each message is printed when it is taken and again,
 * as done or given back, before that is said; every `back`-th is given back at its first delivery. */
static ringcast_status work(int end, size_t limit, int64_t timeout_ns, uint64_t back)
{
    ringcast_status status;
    while ((status = take_some(end, limit, timeout_ns)) == RINGCAST_OK) {
        for (size_t i = 0; i < held; i++)
            print_message(&messages[i]);
        fflush(stdout);
        for (size_t i = held; i-- > 0 && status == RINGCAST_OK;) {
            int returns = back && messages[i].deliveries == 1 && messages[i].sequence % back == 0;
            printf("{\"status\": 0, \"%s\": %" PRIu64 "}\n", returns ? "back" : "done",
                   messages[i].sequence);
            fflush(stdout);
            status = (returns ? ringcast_give_back : ringcast_acknowledge)(members[end], &messages[i], 1);
        }
        if (status != RINGCAST_OK)
            break;
    }
    return status;
}

static ringcast_status wait_as_member(int end) { return ringcast_member_wait(members[end], LOOK_NS); }

static ringcast_status acknowledge_next(int end, int64_t timeout_ns)
{
    ringcast_status status = take_some(end, 1, timeout_ns);
    if (status != RINGCAST_OK)
        return status;
    print_message(messages);
    return ringcast_acknowledge(members[end], messages, 1);
}

static void print_member_info(int end)
{
    ringcast_member_info info = {0};
    answer(ringcast_member_get_info(members[end], &info));
    printf(", \"lag\": %" PRIu64 ", \"received\": %" PRIu64 ", \"in_hand\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"max_message\": %" PRIu64 ", \"members\": %" PRIu32
           ", \"slot\": %" PRIu32 ", \"writer_alive\": %d",
           info.lag, info.received, info.in_hand, info.lost, info.max_message, info.members, info.slot,
           info.writer_alive);
}

/* What a child sees of the member that it inherits; it joins by itself, too. */
static void fork_member(int end, const char *name, const char *group)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        ringcast_member *inherited = members[end], *own = NULL;
        ringcast_member_info info;
        size_t n;
        int closed = ringcast_take(inherited, messages, 0) == RINGCAST_CLOSED &&
                     ringcast_take_many(inherited, messages, 2, &n, RINGCAST_FOREVER) ==
                         RINGCAST_CLOSED &&
                     ringcast_acknowledge(inherited, &taken[end][0], 1) == RINGCAST_CLOSED &&
                     ringcast_give_back(inherited, &taken[end][0], 1) == RINGCAST_CLOSED &&
                     ringcast_member_wait(inherited, RINGCAST_FOREVER) == RINGCAST_CLOSED &&
                     ringcast_member_get_info(inherited, &info) == RINGCAST_CLOSED;
        ringcast_member_close(inherited);
        closed = closed && strstr(ringcast_last_error(), "forked child") &&
                 ringcast_member_attach(&own, name, group, NULL) == RINGCAST_OK;
        ringcast_member_close(own);
        _exit(closed ? 0 : 1);
    }
    waitpid(child, &status, 0);
    printf("{\"status\": 0, \"child\": %d", status);
}

/* 0: the word is none of a member's. */
static int serve_member(const char *word, char *rest)
{
    int end = 0, consumed = 0;
    long long a = 0, b = 0, c = 0;
    static char text[LINE_MAX_BYTES], more[64];
    sscanf(rest, "%d%n", &end, &consumed);
    sscanf(rest + consumed, "%lld %lld %lld", &a, &b, &c);
    if (!strcmp(word, "join")) {
        answer(join(rest));
    } else if (!strcmp(word, "take")) {
        ringcast_status status = take_some(end, 1, a);
        if (status == RINGCAST_OK) {
            print_message(messages);
            fflush(stdout);
            return 2;
        }
        answer(status);
    } else if (!strcmp(word, "take_many")) {
        print_list(take_some(end, (size_t)a, b));
    } else if (!strcmp(word, "acknowledge") || !strcmp(word, "give_back")) {
        sscanf(rest + consumed, " %262143s", text);
        size_t count = find_taken(end, text);
        answer((*word == 'a' ? ringcast_acknowledge : ringcast_give_back)(members[end], messages,
                                                                          count));
    } else if (!strcmp(word, "taken")) {
        sscanf(rest + consumed, " %262143s", text);
        (void)find_taken(end, text);
        print_message(messages);
        fflush(stdout);
        return 2;
    } else if (!strcmp(word, "member_wait")) {
        answer(ringcast_member_wait(members[end], a));
    } else if (!strcmp(word, "work")) {
        answer(work(end, (size_t)a, b, (uint64_t)c));
    } else if (!strcmp(word, "member_loop")) {
        answer(run_loop(end, (int)a, wait_as_member, acknowledge_next));
        printf(", \"wakes\": %d", loop.wakes);
    } else if (!strcmp(word, "member_info")) {
        print_member_info(end);
    } else if (!strcmp(word, "member_topic_name")) {
        print_topic_name(ringcast_member_topic_name(members[end], (uint32_t)a));
    } else if (!strcmp(word, "leave")) {
        ringcast_member_close(members[end]);
        members[end] = NULL;
        answer(RINGCAST_OK);
    } else if (!strcmp(word, "fork_member")) {
        sscanf(rest + consumed, "%63s %63s", text, more);
        fork_member(end, text, more);
    } else {
        return 0;
    }
    return 1;
}

/* ---- senders ------------------------------------------------------------------------------- */

static ringcast_status attach_sender(char *arguments)
{
    int end;
    int64_t owner;
    char name[64], label[128];
    if (sscanf(arguments, "%d %63s %" SCNd64 " %127s", &end, name, &owner, label) != 4)
        exit(3);
    return ringcast_sender_attach(&senders[end], name, strcmp(label, "-") ? label : NULL, owner);
}

/* Send what the hexadecimal digits say, or `@N`: N bytes of 'x'. */
static ringcast_status send_one(int end, const char *digits, int kind, int64_t timeout_ns,
                                uint64_t *ticket)
{
    static uint8_t bytes[LINE_MAX_BYTES];
    size_t n = 0;
    unsigned value;
    if (*digits == '@') {
        n = strtoull(digits + 1, NULL, 10);
        memset(bytes, 'x', n < sizeof bytes ? n : sizeof bytes);
    } else {
        for (; *digits != '-' && sscanf(digits, "%2x", &value) == 1; digits += 2)
            bytes[n++] = (uint8_t)value;
    }
    return ringcast_send(senders[end], bytes, n, (uint16_t)kind, timeout_ns, ticket);
}

/* Send `count` texts "WHO N", then flush. */
static ringcast_status send_many(int end, int who, int count)
{
    char text[64];
    ringcast_status status = RINGCAST_OK;
    for (int n = 0; n < count && status == RINGCAST_OK; n++) {
        int length = snprintf(text, sizeof text, "%d %d", who, n);
        status = ringcast_send(senders[end], text, (size_t)length, RINGCAST_TEXT, RINGCAST_FOREVER,
                               NULL);
    }
    return status == RINGCAST_OK ? ringcast_flush(senders[end], RINGCAST_FOREVER) : status;
}

/* ---- a forked child ------------------------------------------------------------------------ */

static int all_closed(int end)
{
    ringcast_reader_info info;
    char note[8];
    const char *name = "topic";
    size_t n;
    int closed = ringcast_read(readers[end], messages, 0) == RINGCAST_CLOSED &&
                 ringcast_read_many(readers[end], messages, 2, &n, RINGCAST_FOREVER) ==
                     RINGCAST_CLOSED &&
                 ringcast_wait(readers[end], RINGCAST_FOREVER) == RINGCAST_CLOSED &&
                 ringcast_reader_get_info(readers[end], &info) == RINGCAST_CLOSED &&
                 ringcast_subscribe(readers[end], &name, 1) == RINGCAST_CLOSED &&
                 ringcast_unsubscribe(readers[end], &name, 1) == RINGCAST_CLOSED &&
                 ringcast_note(readers[end], note, sizeof note, &n) == RINGCAST_CLOSED;
    ringcast_release(readers[end]);
    ringcast_reader_close(readers[end]);
    if (senders[end]) {
        closed = closed &&
                 ringcast_send(senders[end], "x", 1, RINGCAST_TEXT, 0, NULL) == RINGCAST_CLOSED &&
                 ringcast_flush(senders[end], RINGCAST_FOREVER) == RINGCAST_CLOSED;
        ringcast_sender_close(senders[end]);
    }
    return closed && strstr(ringcast_last_error(), "forked child");
}

/* What a child sees of the ends that it inherits; with a name, it attaches by itself, too. */
static void fork_child(int end, const char *name)
{
    int status;
    ringcast_reader *own = NULL;
    pid_t child = fork();
    if (child == 0) {
        int fine = all_closed(end) && ringcast_reader_attach(&own, name, NULL) == RINGCAST_OK;
        ringcast_reader_close(own);
        _exit(fine ? 0 : 1);
    }
    waitpid(child, &status, 0);
    printf("{\"status\": 0, \"child\": %d", status);
}

/* ---- requests ------------------------------------------------------------------------------ */

static void print_info(int end)
{
    ringcast_reader_info info = {0};
    answer(ringcast_reader_get_info(readers[end], &info));
    printf(", \"cursor\": %" PRIu64 ", \"lag\": %" PRIu64 ", \"received\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"skipped\": %" PRIu64 ", \"max_message\": %" PRIu64
           ", \"policy\": %d, \"slot\": %" PRIu32 ", \"writer_alive\": %d",
           info.cursor, info.lag, info.received, info.lost, info.skipped, info.max_message,
           (int)info.policy, info.slot, info.writer_alive);
}

static void print_note(int end, size_t size)
{
    char note[2048] = "untouched";
    size_t length = 0;
    answer(ringcast_note(readers[end], note, size, &length));
    printf(", \"length\": %zu", length);
    print_text("note", note);
}

static void serve(const char *word, char *rest)
{
    int end = 0, consumed = 0;
    long long a = 0, b = 0;
    char text[LINE_MAX_BYTES] = "";
    uint64_t ticket = UINT64_MAX;
    int served = serve_member(word, rest);
    if (served == 2) /* all of it is printed */
        return;
    if (served) {
        finish();
        return;
    }
    sscanf(rest, "%d%n", &end, &consumed);
    sscanf(rest + consumed, "%lld %lld %262143s", &a, &b, text);
    if (!strcmp(word, "attach")) {
        answer(attach(rest));
    } else if (!strcmp(word, "read")) {
        ringcast_status status = read_some(end, 1, a);
        if (status == RINGCAST_OK) {
            print_message(messages);
            fflush(stdout);
            return;
        }
        answer(status);
    } else if (!strcmp(word, "read_many")) {
        print_held(read_some(end, (size_t)a, b));
    } else if (!strcmp(word, "held")) {
        print_held(RINGCAST_OK);
    } else if (!strcmp(word, "valid")) {
        printf("{\"status\": 0, \"valid\": %d", ringcast_valid(readers[end]) != 0);
    } else if (!strcmp(word, "release")) {
        ringcast_release(readers[end]);
        answer(RINGCAST_OK);
    } else if (!strcmp(word, "wait")) {
        answer(ringcast_wait(readers[end], a));
    } else if (!strcmp(word, "follow")) {
        answer(follow(end, (size_t)a, b));
    } else if (!strcmp(word, "loop")) {
        answer(run_loop(end, (int)a, wait_as_reader, print_next));
        printf(", \"wakes\": %d", loop.wakes);
    } else if (!strcmp(word, "subscribe") || !strcmp(word, "unsubscribe")) {
        sscanf(rest + consumed, " %262143s", text);
        size_t count = parse_topics(text);
        answer((*word == 's' ? ringcast_subscribe : ringcast_unsubscribe)(readers[end], topics,
                                                                          count));
    } else if (!strcmp(word, "topic_name")) {
        print_topic_name(ringcast_topic_name(readers[end], (uint32_t)a));
    } else if (!strcmp(word, "info")) {
        print_info(end);
    } else if (!strcmp(word, "note")) {
        print_note(end, (size_t)a);
    } else if (!strcmp(word, "close")) {
        ringcast_reader_close(readers[end]);
        readers[end] = NULL;
        answer(RINGCAST_OK);
    } else if (!strcmp(word, "attach_sender")) {
        answer(attach_sender(rest));
    } else if (!strcmp(word, "send")) {
        answer(send_one(end, text, (int)a, b, &ticket));
        printf(", \"ticket\": %" PRIu64, ticket);
    } else if (!strcmp(word, "send_many")) {
        answer(send_many(end, (int)a, (int)b));
    } else if (!strcmp(word, "flush")) {
        ringcast_status status = ringcast_flush(senders[end], a);
        answer(status);
        if (status == RINGCAST_TIMEOUT)
            print_text("error", ringcast_last_error());
    } else if (!strcmp(word, "close_sender")) {
        ringcast_sender_close(senders[end]);
        senders[end] = NULL;
        answer(RINGCAST_OK);
    } else if (!strcmp(word, "fork")) {
        sscanf(rest + consumed, "%63s", text);
        fork_child(end, text);
    } else if (!strcmp(word, "status_text")) {
        answer(RINGCAST_OK);
        print_text("text", ringcast_status_text((ringcast_status)end));
    } else {
        exit(3);
    }
    finish();
}

int main(void)
{
    static char line[LINE_MAX_BYTES + 64];
    char word[32];
    int consumed;
    alarm(ALARM_SECONDS);
    while (fgets(line, sizeof line, stdin))
        if (sscanf(line, "%31s%n", word, &consumed) == 1)
            serve(word, line + consumed);
    for (int i = 0; i < ENDS; i++) {
        ringcast_reader_close(readers[i]);
        ringcast_member_close(members[i]);
        ringcast_sender_close(senders[i]);
    }
    return 0;
}
