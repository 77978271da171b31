/* native_group.c - a member of a work group in C for the scenario `groups`: takes all messages of a ring,
 * from the oldest on, one by one, checks each, acknowledges it, and prints its figures.
 *
 * Its arguments are those of native.h. Each time it makes the group anew, and removes it. It measures the
 * protocol itself, so it uses the headers under the interface for C, and does for each message what a member
 * in Python does.
 */
#define _GNU_SOURCE
#define RC_ENDPOINT_REGISTRY
#include "attach.h"

#include "native.h"

#define HAND 1u
#define GROUP "native"

/* Take and acknowledge everything up to the mark. 0: something went wrong. */
static int take_all(rc_attached_reader *r, const arguments *a, totals *all)
{
    rc_member *m = r->member;
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
        const uint8_t *bytes = r->reader.arena + (d.f.position & (r->reader.capacity - 1));
        ended = is_due(a, bytes, d.f.length, MARK);
        if (!ended) {
            all->wrong += !is_due(a, bytes, d.f.length, due);
            all->received++;
            due = due + 1 == a->round ? 0 : due + 1;
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
    arguments a = {0};
    rc_error error = {0};
    char object[RC_OBJECT_MAX];
    int wrong = read_arguments(&a, count, words);
    if (wrong)
        return wrong;
    if (rc_register_fork_handlers() != 0)
        return fprintf(stderr, "no memory\n"), 1;
    for (long i = 0; i < a.repeats; i++) {
        rc_attached_reader r;
        if (rc_attach_reader(&r, a.name, &options, &error) != RINGCAST_OK)
            return fprintf(stderr, "attach: %s\n", error.text), 1;
        if (!take_all(&r, &a, &all))
            return fprintf(stderr, "after %" PRIu64 " messages, the next is not there\n", all.received), 1;
        uint32_t group = r.member->map.group;
        rc_leave_reader(&r);
        rc_group_remove(r.ring.control.address, group, r.space);
        rc_group_object(object, a.name, GROUP);
        shm_unlink(object);
        rc_detach_reader(&r);
    }
    print_totals(&all);
    free(a.filler);
    return 0;
}
