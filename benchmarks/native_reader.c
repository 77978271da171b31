/* native_reader.c - a reader in C for the scenario `native`: reads a ring from the oldest message to
 * the mark, one by one, checks each message as `payloads.Checker` does, and prints its figures. Its
 * arguments are those of native.h.
 */
#define _GNU_SOURCE
#include "ringcast.h"

#include "native.h"

#define TIMEOUT_NS (INT64_C(60) * 1000000000)

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, ringcast_last_error());
    return 1;
}

/* Read up to the mark. */
static int read_all(ringcast_reader *reader, const arguments *a, totals *all)
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
        if (is_due(a, message.payload, message.length, due)) {
            all->received++;
            due = due + 1 == a->round ? 0 : due + 1;
            continue;
        }
        if (is_due(a, message.payload, message.length, MARK))
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
    arguments a = {0};
    int wrong = read_arguments(&a, count, words);
    if (wrong)
        return wrong;
    for (long i = 0; i < a.repeats; i++) {
        ringcast_reader *reader;
        if (ringcast_reader_attach(&reader, a.name, &options) != RINGCAST_OK)
            return fail("attach");
        if (read_all(reader, &a, &all) != RINGCAST_OK)
            return fail("read");
        ringcast_reader_close(reader);
    }
    print_totals(&all);
    free(a.filler);
    return 0;
}
