/* native_group.c - a member of a work group in C for the scenario `groups`: takes all messages of a ring,
 * from the oldest on, one by one, checks each, acknowledges it, and prints its figures.
 *
 *     native_group NAME SIZE ROUND FILLER REPEATS
 *
 * The arguments, the messages and the check are those of native_reader.c. Each time it makes the group
 * anew, and removes it. The interface for C has no groups, so this uses the headers under it, and does for
 * each message what a member in Python does.
 */
#define _GNU_SOURCE
#define RC_ENDPOINT_REGISTRY
#include "attach.h"

#define SAMPLE 64
#define SMALLEST 16
#define MARK (UINT64_MAX - 15)
#define HAND 1u
#define GROUP "native"

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

static uint64_t last_word(uint64_t counter) { return counter * UINT64_C(0x9E3779B97F4A7C15); }

/* Is this the message that is due? */
static int is_due(const uint8_t *bytes, uint64_t length, uint64_t due, size_t size,
                  const void *filler)
{
    uint64_t counter, last;
    if (length != size)
        return 0;
    memcpy(&counter, bytes, 8);
    memcpy(&last, bytes + size - 8, 8);
    return counter == due && last == last_word(due) &&
           (due % SAMPLE || memcmp(bytes + 8, filler, size - SMALLEST) == 0);
}

/* Take and acknowledge everything up to the mark. 0: something went wrong. */
static int take_all(rc_attached_reader *a, size_t size, uint64_t round, const void *filler,
                    totals *all)
{
    rc_member *m = a->member;
    double began = now(CLOCK_MONOTONIC), cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t due = 0;
    int ended = 0;
    while (!ended) {
        rc_lease lease = {0};
        rc_descriptor d;
        int64_t looked = rc_clock_ns(CLOCK_MONOTONIC_COARSE);
        if (rc_member_look_due(m, looked) && !rc_member_look_around(m, looked))
            return 0;
        if (rc_member_take(m, HAND, RC_ANY_SORT, NULL, &lease, &d) != RC_MESSAGE)
            return 0;
        const uint8_t *bytes = a->reader.arena + (d.f.position & (a->reader.capacity - 1));
        ended = is_due(bytes, d.f.length, MARK, size, filler);
        if (!ended) {
            all->wrong += !is_due(bytes, d.f.length, due, size, filler);
            all->received++;
            due = due + 1 == round ? 0 : due + 1;
        }
        if (!rc_member_finish(m, &lease, 0, d.f.length))
            return 0;
    }
    all->seconds += now(CLOCK_MONOTONIC) - began;
    all->cpu_seconds += now(CLOCK_PROCESS_CPUTIME_ID) - cpu_began;
    return 1;
}

int main(int count, char **words)
{
    const rc_reader_options options = {
        .start = RINGCAST_OLDEST, .label = GROUP, .group = GROUP, .balance = RC_ANY};
    totals all = {0};
    rc_error error = {0};
    char object[RC_OBJECT_MAX];
    if (count != 6)
        return fprintf(stderr, "usage: %s NAME SIZE ROUND FILLER REPEATS\n", words[0]), 2;
    size_t size = strtoull(words[2], NULL, 10);
    uint64_t round = strtoull(words[3], NULL, 10);
    char *filler = calloc(1, size);
    FILE *file = fopen(words[4], "rb");
    if (!filler || !file || fread(filler, 1, size - SMALLEST, file) != size - SMALLEST)
        return fprintf(stderr, "cannot read %s\n", words[4]), 1;
    fclose(file);
    if (rc_register_fork_handlers() != 0)
        return fprintf(stderr, "no memory\n"), 1;
    for (long i = 0; i < strtol(words[5], NULL, 10); i++) {
        rc_attached_reader a;
        if (rc_attach_reader(&a, words[1], &options, &error) != RINGCAST_OK)
            return fprintf(stderr, "attach: %s\n", error.text), 1;
        if (!take_all(&a, size, round, filler, &all))
            return fprintf(stderr, "after %" PRIu64 " messages, the next is not there\n", all.received), 1;
        uint32_t group = a.member->map.group;
        rc_leave_reader(&a);
        rc_group_remove(a.ring.control.address, group, a.space);
        rc_group_object(object, words[1], GROUP);
        shm_unlink(object);
        rc_detach_reader(&a);
    }
    printf("{\"received\": %" PRIu64 ", \"seconds\": %.9f, \"cpu_seconds\": %.9f, \"wrong\": %" PRIu64
           "}\n", all.received, all.seconds, all.cpu_seconds, all.wrong);
    free(filler);
    return 0;
}
