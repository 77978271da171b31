/* chooser.c - a worker in C that chooses among topics, changes its mind and writes down what it sees, in
 * the words of choosers.py: chooser NAME SEED TOPIC... wants each of the topics at times. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ringcast.h"

#define BRIEFLY_NS INT64_C(5000000)
#define MANY 32
#define CHANGES_EVERY 8

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, ringcast_last_error());
    return 1;
}

static void print_got(const ringcast_reader *reader, const ringcast_message *message)
{
    const char *topic = ringcast_topic_name(reader, message->topic);
    const char *number = memmem(message->payload, message->length, "\"n\":", 4);
    const char *quote = topic ? "\"" : "";
    char digits[21] = {0};
    size_t left = message->length - (size_t)(number - (const char *)message->payload) - 4;
    memcpy(digits, number + 4, left < 20 ? left : 20);
    printf("[\"got\", %" PRIu64 ", %s%s%s, %lld]\n", message->sequence, quote,
           topic ? topic : "null", quote, atoll(digits));
}

static int change(ringcast_reader *reader, const char *const *topic, char *wanted)
{
    ringcast_reader_info before, after;
    if (ringcast_reader_get_info(reader, &before) != RINGCAST_OK)
        return fail("info");
    if ((*wanted ? ringcast_unsubscribe : ringcast_subscribe)(reader, topic, 1) != RINGCAST_OK)
        return fail("change");
    if (ringcast_reader_get_info(reader, &after) != RINGCAST_OK)
        return fail("info");
    printf("[\"%s\", %" PRIu64 ", \"%s\", %" PRIu64 "]\n", *wanted ? "unsubscribe" : "subscribe",
           before.cursor, *topic, after.cursor + (*wanted ? 0 : after.lag));
    *wanted = !*wanted;
    return 0;
}

int main(int argc, char **argv)
{
    static ringcast_message messages[MANY];
    ringcast_reader_options options = {.topics = (const char *const *)&argv[3], .topic_count = 1};
    ringcast_reader *reader;
    ringcast_reader_info info;
    ringcast_status status;
    size_t count = 0;
    char *wanted = calloc((size_t)argc, 1);
    if (argc < 4 || !wanted)
        return fprintf(stderr, "usage: chooser NAME SEED TOPIC...\n"), 2;
    unsigned seed = (unsigned)strtoul(argv[2], NULL, 10);
    if (ringcast_reader_attach(&reader, argv[1], &options) != RINGCAST_OK)
        return fail("attach");
    ringcast_reader_get_info(reader, &info);
    printf("[\"attach\", %" PRIu64 ", [\"%s\"], false]\n", info.cursor, argv[3]);
    fflush(stdout);
    wanted[3] = 1;
    for (;;) {
        status = ringcast_read_many(reader, messages, MANY, &count, BRIEFLY_NS);
        if (status != RINGCAST_OK && status != RINGCAST_TIMEOUT)
            break;
        for (size_t i = 0; status == RINGCAST_OK && i < count; i++)
            print_got(reader, &messages[i]);
        ringcast_release(reader);
        ringcast_reader_get_info(reader, &info);
        printf("[\"at\", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "]\n", info.cursor,
               info.received, info.skipped, info.lost);
        fflush(stdout);
        int which = 3 + rand_r(&seed) % (argc - 3);
        if (rand_r(&seed) % CHANGES_EVERY == 0 &&
            change(reader, (const char *const *)&argv[which], &wanted[which]))
            return 1;
    }
    ringcast_reader_close(reader);
    free(wanted);
    return status == RINGCAST_ENDED ? 0 : fail("read");
}
