/* native_reader.c - a reader in C for the scenario `native`: reads a ring from the oldest message to
 * the mark, one by one, checks each message as `payloads.Checker` does, and prints its figures.
 *
 *     native_reader NAME SIZE ROUND FILLER REPEATS
 *
 * A message is a counter, a filler and a last word made of the counter; a round of ROUND messages is
 * published over and over. Both words of each message are compared with what is due, and each 64th
 * message is compared whole. FILLER is a file with the filler. REPEATS: how often to attach and read
 * all. The times are those of reading; attaching is left out.
 */
#define _GNU_SOURCE
#include "ringcast.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLE 64
#define SMALLEST 16
#define MARK (UINT64_MAX - 15)
#define TIMEOUT_NS (INT64_C(60) * 1000000000)

typedef struct totals {
    uint64_t received, wrong;
    double seconds, cpu_seconds;
} totals;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, ringcast_last_error());
    return 1;
}

static uint64_t last_word(uint64_t counter) { return counter * UINT64_C(0x9E3779B97F4A7C15); }

/* Is this the message that is due? */
static int is_due(const ringcast_message *m, uint64_t due, size_t size, const void *filler)
{
    const char *bytes = m->payload;
    uint64_t counter, last;
    if (m->length != size)
        return 0;
    memcpy(&counter, bytes, 8);
    memcpy(&last, bytes + size - 8, 8);
    return counter == due && last == last_word(due) &&
           (due % SAMPLE || memcmp(bytes + 8, filler, size - SMALLEST) == 0);
}

/* Read up to the mark. */
static int read_all(ringcast_reader *reader, size_t size, uint64_t round, const void *filler,
                    totals *all)
{
    ringcast_message message;
    ringcast_status status;
    double began = 0, cpu_began = 0;
    uint64_t due = 0;
    while ((status = ringcast_read(reader, &message, TIMEOUT_NS)) == RINGCAST_OK) {
        if (began == 0) {
            began = now(CLOCK_MONOTONIC);
            cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
        }
        if (is_due(&message, due, size, filler)) {
            all->received++;
            due = due + 1 == round ? 0 : due + 1;
            continue;
        }
        if (is_due(&message, MARK, size, filler))
            break;
        all->wrong++;
        all->received++;
    }
    all->seconds += now(CLOCK_MONOTONIC) - began;
    all->cpu_seconds += now(CLOCK_PROCESS_CPUTIME_ID) - cpu_began;
    return status;
}

int main(int count, char **words)
{
    const ringcast_reader_options options = {.start = RINGCAST_OLDEST, .label = "native"};
    totals all = {0};
    if (count != 6)
        return fprintf(stderr, "usage: %s NAME SIZE ROUND FILLER REPEATS\n", words[0]), 2;
    size_t size = strtoull(words[2], NULL, 10);
    uint64_t round = strtoull(words[3], NULL, 10);
    char *filler = calloc(1, size);
    FILE *file = fopen(words[4], "rb");
    if (!filler || !file || fread(filler, 1, size - SMALLEST, file) != size - SMALLEST)
        return fprintf(stderr, "cannot read %s\n", words[4]), 1;
    fclose(file);
    for (long i = 0; i < strtol(words[5], NULL, 10); i++) {
        ringcast_reader *reader;
        if (ringcast_reader_attach(&reader, words[1], &options) != RINGCAST_OK)
            return fail("attach");
        if (read_all(reader, size, round, filler, &all) != RINGCAST_OK)
            return fail("read");
        ringcast_reader_close(reader);
    }
    printf("{\"received\": %" PRIu64 ", \"seconds\": %.9f, \"cpu_seconds\": %.9f, \"wrong\": %" PRIu64
           "}\n", all.received, all.seconds, all.cpu_seconds, all.wrong);
    free(filler);
    return 0;
}
