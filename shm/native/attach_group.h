/* attach_group.h - from a group's name to a member that works, and back; part of attach.h.
 *
 *   lock    RC_LOCK_GROUPS of the control segment: who makes, revives or removes a group, or joins one
 *   find    the row of that name; compare what the group wants and how it shares out
 *   make    if there is none: the segment, then list, row and floor; a dead maker's leavings go first
 *   map     the segment, checked as a ring's segments are
 *   enter   as group.h says, through the reader slot whose lock is held
 */
#ifndef RINGCAST_ATTACH_GROUP_H
#define RINGCAST_ATTACH_GROUP_H

/* Shared-memory name of a group's segment. */
static inline void rc_group_object(char out[RC_OBJECT_MAX], const char *name, const char *group)
{
    snprintf(out, RC_OBJECT_MAX, "/rc.%.20s.g.%.20s", name, group);
}

/* The row of a group of this name that is made, or RC_NOBODY. */
static inline uint32_t rc_find_group(const rc_control *control, const char *group)
{
    char name[8 * RC_GROUP_NAME_WORDS + 1];
    for (uint32_t i = 0; i < RC_GROUPS_MAX; i++) {
        if (!rc_group_is_made(&control->group_rows[i]))
            continue;
        rc_group_name(&control->group_rows[i], name);
        if (strcmp(name, group) == 0)
            return i;
    }
    return RC_NOBODY;
}

/* Whose may a group's segment be? Whoever may write the control segment may make groups. */
static inline int64_t rc_group_owner(const rc_ring *ring, const char *object)
{
    const struct stat *control = &ring->control.status;
    char path[RC_OBJECT_MAX + 16];
    struct stat there;
    rc_path(path, RC_SHM_FOLDER "/", object);
    if (lstat(path, &there) == 0 &&
        (there.st_uid == control->st_uid ||
         (there.st_gid == control->st_gid && (control->st_mode & S_IWGRP))))
        return (int64_t)there.st_uid + 1;
    return RC_ANY_OWNER;
}

/* Open, check and map the segment of a group that exists. */
static inline ringcast_status rc_group_open(rc_segment *s, const rc_ring *ring, const char *group,
                                            uint32_t row, rc_access access, rc_error *error)
{
    const rc_control *control = ring->control.address;
    char object[RC_OBJECT_MAX];
    ringcast_status status;
    rc_group_object(object, ring->name, group);
    if ((status = rc_segment_open(s, object, access != RC_LOOKING, rc_group_owner(ring, object),
                                  error)))
        return status != RINGCAST_NOT_FOUND ? status : rc_fail(
            error, RINGCAST_CORRUPT, ENOENT,
            "the segment of group '%s' of ring '%s' is missing: somebody deleted it. Remove the group with"
            " `ringcast group %s %s --remove` and attach again", group, ring->name, ring->name, group);
    if ((status = rc_segment_check_pages(s, object, error)) ||
        (status = rc_segment_map(s, object, access != RC_LOOKING,
                                 access == RC_LOOKING ? 0 : s->size, error))) {
        rc_segment_close(s);
        return status;
    }
    rc_check_result found = rc_group_check(s->address, s->size, &ring->g,
                                           rc_load_acquire(&control->group_rows[row].state) >> 8);
    rc_segment_close(s);
    if (found == RC_OK)
        return RINGCAST_OK;
    rc_segment_unmap(s);
    return rc_fail(error, RINGCAST_CORRUPT, 0,
                   "%s is not the segment of group '%s' of this ring: remove the group with"
                   " `ringcast group %s %s --remove` and attach again", object, group, ring->name,
                   group);
}

/* For the writer while it waits for room: move the floor of each group over what its members have done and
 * not said, since they died, or are at work. */
static inline void rc_groups_tidy(const rc_ring *ring)
{
    rc_control *control = ring->control.address;
    uint64_t bits = rc_load(&control->groups) & RC_GROUP_MASK, before;
    char name[8 * RC_GROUP_NAME_WORDS + 1];
    for (; bits; bits &= bits - 1) {
        uint32_t group = (uint32_t)__builtin_ctzll(bits);
        rc_segment segment;
        rc_group_map map;
        rc_error ignored; /* removed meanwhile, or spoiled: then its floor stays where it is */
        rc_group_name(&control->group_rows[group], name);
        if (!rc_is_name(name) ||
            rc_group_open(&segment, ring, name, group, RC_LOOKING, &ignored) != RINGCAST_OK)
            continue;
        rc_group_map_at(&map, ring->data.address, control, segment.address, &ring->g, group);
        rc_group_advance(&map, &before);
        rc_segment_unmap(&segment);
    }
}

static inline const char *rc_balance_name(uint32_t balance)
{
    return balance == RC_KEY ? "key" : balance == RC_ROUND_ROBIN ? "round-robin" : "any";
}

#define RC_GROUPS_WAIT_NS INT64_C(5000000000) /* for another that makes or joins a group */
#define RC_GROUPS_PAUSE_NS 200000             /* between two tries */

/* Lock the groups of a ring, until the lock is released or the endpoint closed. */
static inline ringcast_status rc_lock_groups(rc_endpoint *e, const char *name, rc_error *error)
{
    const struct timespec pause = {.tv_nsec = RC_GROUPS_PAUSE_NS};
    int64_t end = rc_now_ns() + RC_GROUPS_WAIT_NS;
    for (;;) {
        int system = rc_lock_try(e->lock_fd, RC_LOCK_GROUPS);
        if (system == 0)
            return RINGCAST_OK;
        if (system != EAGAIN && system != EACCES)
            return rc_fail(error, RINGCAST_SYSTEM, system, "cannot lock the groups of ring '%s': %s",
                           name, strerror(system));
        if (rc_now_ns() >= end)
            return rc_fail(error, RINGCAST_SYSTEM, 0,
                           "a process that makes or joins a group of ring '%s' does not come to an"
                           " end: is it stopped? Let it go on, or kill it", name);
        nanosleep(&pause, NULL);
    }
}

#ifdef RC_ENDPOINT_REGISTRY

/* Take the pages of a new segment; its name and mode are the ring's. */
static inline ringcast_status rc_group_create(rc_segment *s, const rc_ring *ring, const char *group,
                                              uint64_t generation, rc_error *error)
{
    char object[RC_OBJECT_MAX];
    mode_t mode = ring->control.status.st_mode & 0660;
    rc_group_object(object, ring->name, group);
    shm_unlink(object); /* what a dead maker left: nobody else can, while we have the lock */
    memset(s, 0, sizeof *s);
    s->fd = shm_open(object, O_RDWR | O_CREAT | O_EXCL, mode);
    if (s->fd < 0)
        return rc_fail(error, RINGCAST_SYSTEM, errno, "cannot make %s: %s", object, strerror(errno));
    s->size = rc_group_size(ring->g.slots);
    int system = fchown(s->fd, (uid_t)-1, ring->control.status.st_gid) == 0 && fchmod(s->fd, mode) == 0
                     ? posix_fallocate(s->fd, 0, (off_t)s->size) : errno;
    ringcast_status status =
        system == 0 ? rc_segment_map(s, object, 1, s->size, error)
                    : rc_fail(error, RINGCAST_SYSTEM, system,
                              "/dev/shm has no room for %s, %" PRIu64 " bytes: %s. Remove what is stale"
                              " (ringcast ls, ringcast clean), or enlarge it (in a container:"
                              " --shm-size)", object, s->size, strerror(system));
    rc_segment_close(s);
    if (status != RINGCAST_OK) {
        shm_unlink(object);
        return status;
    }
    rc_group_format(s->address, &ring->g, generation, (uint64_t)rc_clock_ns(CLOCK_REALTIME));
    return RINGCAST_OK;
}

/* Does the list of a group have these names and patterns, and no others? */
static inline int rc_group_agrees(rc_attached_reader *a, uint32_t group)
{
    const rc_wishes *wishes = rc_group_wishes_at(a->ring.control.address, &a->ring.g, group);
    char *text = malloc(RC_WISH_MAX);
    uint64_t version, at = 0, count = 0;
    int64_t length = text ? rc_wishes_read(wishes, text, &version) : -1;
    int agree = length >= 0;
    while (agree && at < (uint64_t)length) {
        uint64_t n = strnlen(text + at, (uint64_t)length - at);
        agree = rc_filter_find(&a->filter, text + at, (uint32_t)n) != NULL;
        at += n + 1;
        count++;
    }
    free(text);
    return agree && count == a->filter.count;
}

/* Is the group that we found the one that we were asked to join? */
static inline ringcast_status rc_group_compare(rc_attached_reader *a, uint32_t group,
                                               const rc_reader_options *options, rc_error *error)
{
    const rc_group_row *row = &((rc_control *)a->ring.control.address)->group_rows[group];
    uint32_t balance = rc_load(&row->balance), most = rc_load(&row->max_deliveries);
    uint32_t chooses = options->chooses ? RC_CHOOSES | (options->others ? RC_OTHERS : 0) : 0;
    if (balance != options->balance)
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "group '%s' of ring '%s' shares messages out by balance '%s', not '%s': all its"
                       " members say the same; take another name for another group", options->group,
                       a->ring.name, rc_balance_name(balance), rc_balance_name(options->balance));
    if (options->max_deliveries && most != options->max_deliveries)
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "group '%s' of ring '%s' sets messages aside after %u deliveries, not %u: all"
                       " its members say the same", options->group, a->ring.name, most,
                       options->max_deliveries);
    if (rc_load(&row->chooses) != chooses || !rc_group_agrees(a, group))
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "group '%s' of ring '%s' wants other topics than these: all its members name the"
                       " same; take another name for another group (`ringcast group %s` shows what it"
                       " wants)", options->group, a->ring.name, a->ring.name);
    return RINGCAST_OK;
}

/* Does a process live that was a member of an earlier group of this row? It may have been evicted and not
 * know it yet, and move its floor. */
static inline int rc_group_has_guests(rc_attached_reader *a, uint32_t group)
{
    rc_control *control = a->ring.control.address;
    for (uint32_t slot = 0; slot < a->ring.g.max_readers; slot++)
        if (slot != a->reader.index && rc_load(&control->readers[slot].group) == group + 1 &&
            (rc_load_acquire(&control->readers[slot].state) & 0xff) != RC_FREE &&
            rc_lock_held(a->endpoint.lock_fd, RC_LOCK_READER + slot) == 1)
            return 1;
    return 0;
}

/* Make the group; it holds the ring from `start` on. */
static inline ringcast_status rc_make_group(rc_attached_reader *a, uint64_t start,
                                            const rc_reader_options *options, uint32_t *group,
                                            rc_error *error)
{
    rc_control *control = a->ring.control.address;
    ringcast_status status;
    for (*group = 0; *group < RC_GROUPS_MAX; ++*group) {
        /* MAKING counts as none: its maker died */
        if (!rc_group_is_made(&control->group_rows[*group]) && !rc_group_has_guests(a, *group))
            break;
    }
    if (*group == RC_GROUPS_MAX)
        return rc_fail(error, RINGCAST_SYSTEM, 0,
                       "ring '%s' has %u groups, and no more can be: remove one with `ringcast group %s"
                       " NAME --remove`", a->ring.name, RC_GROUPS_MAX, a->ring.name);
    uint64_t generation = (rc_load(&control->group_rows[*group].state) >> 8) + 1;
    if ((status = rc_group_create(&a->group, &a->ring, options->group, generation, error)))
        return status;
    rc_wishes *own = a->filter.wishes;
    a->filter.wishes = rc_group_wishes_at(control, &a->ring.g, *group);
    rc_filter_publish(&a->filter);
    a->filter.wishes = own;
    uint32_t chooses = options->chooses ? RC_CHOOSES | (options->others ? RC_OTHERS : 0) : 0;
    rc_group_make(control, a->ring.data.address, &a->ring.g, *group, generation, options->group,
                  options->balance, chooses, options->max_deliveries ? options->max_deliveries
                                                                     : RC_DELIVERIES, start);
    RC_FAULT(122);
    uint64_t missed = rc_group_hold(control, a->ring.data.address, a->ring.g.slots, *group,
                                    generation);
    if (options->start == RINGCAST_SEQUENCE && missed) {
        rc_store(&control->group_rows[*group].gap, missed);
        rc_store(&control->group_rows[*group].lost, missed);
    }
    rc_post(a->wishes); /* its topics are wanted from now on */
    return RINGCAST_OK;
}

/* Another member's semaphore, opened when it is first needed, by any thread. */
static inline sem_t *rc_wake_of(void *attached, uint32_t slot)
{
    rc_attached_reader *a = attached;
    char object[RC_OBJECT_MAX];
    rc_error ignored;
    sem_t *found = atomic_load(&a->wakes[slot]), *opened;
    if (found)
        return found;
    rc_semaphore_name(object, a->ring.name, a->ring.g.instance, "r", slot);
    if (rc_semaphore_open(&opened, object, &ignored) != RINGCAST_OK)
        return NULL; /* the ring was removed; sleepers look by themselves */
    if (atomic_compare_exchange_strong(&a->wakes[slot], &found, opened))
        return opened;
    rc_semaphore_close(opened);
    return found;
}

/* Find or make the group, and map it. The lock of the groups is held. */
static inline ringcast_status rc_find_or_make_group(rc_attached_reader *a, uint64_t start,
                                                    const rc_reader_options *options,
                                                    uint32_t *group, rc_error *error)
{
    rc_control *control = a->ring.control.address;
    ringcast_status status;
    *group = rc_find_group(control, options->group);
    if (*group == RC_NOBODY)
        return rc_make_group(a, start, options, group, error);
    if ((status = rc_group_compare(a, *group, options, error)) ||
        (status = rc_group_open(&a->group, &a->ring, options->group, *group, RC_WRITING, error)))
        return status;
    if (!rc_group_is_active(&control->group_rows[*group]))
        rc_post(a->wishes); /* its topics are wanted again */
    rc_group_revive(control, a->ring.data.address, a->ring.g.slots, *group);
    return RINGCAST_OK;
}

static inline ringcast_status rc_become_member(rc_attached_reader *a, uint32_t group,
                                               rc_error *error)
{
    rc_control *control = a->ring.control.address;
    rc_reader *r = &a->reader;
    rc_group_map map;
    rc_group_map_at(&map, a->ring.data.address, control, a->group.address, &a->ring.g, group);
    rc_member *m = malloc(sizeof *m);
    a->wakes = calloc(a->ring.g.max_readers, sizeof *a->wakes);
    if (!m || !a->wakes) {
        free(m);
        return rc_fail(error, RINGCAST_NO_MEMORY, ENOMEM, "no memory for a member");
    }
    rc_member_map(m, &map, &a->ring.g, rc_partitions_at(control, &a->ring.g, group), r->index, a->wake,
                  a->space, a->endpoint.lock_fd);
    m->wake_of = rc_wake_of;
    m->wakes = a;
    if (rc_group_members(&map) >= RC_MEMBERS_MAX) {
        free(m);
        return rc_fail(error, RINGCAST_TOO_MANY_READERS, 0,
                       "the group has %u members, and no more can be", RC_MEMBERS_MAX);
    }
    if (!rc_member_enter(m, r->state)) {
        free(m);
        return rc_fail(error, RINGCAST_EVICTED, 0,
                       "the writer of ring '%s' evicts every member that joins", a->ring.name);
    }
    a->member = m;
    r->state = m->state;
    return RINGCAST_OK;
}

/* Join the group through the slot that is claimed; `start` is for a group that is made. */
static inline ringcast_status rc_join_group(rc_attached_reader *a, uint64_t start,
                                            const rc_reader_options *options, rc_error *error)
{
    uint32_t group;
    ringcast_status status = rc_lock_groups(&a->endpoint, a->ring.name, error);
    if (status != RINGCAST_OK)
        return status;
    if ((status = rc_find_or_make_group(a, start, options, &group, error)) == RINGCAST_OK)
        status = rc_become_member(a, group, error);
    rc_lock_release(a->endpoint.lock_fd, RC_LOCK_GROUPS);
    if (status == RINGCAST_OK)
        rc_member_look_around(a->member, rc_now_ns());
    return status;
}

static inline void rc_leave_group(rc_attached_reader *a)
{
    if (a->member)
        rc_member_leave(a->member);
}

static inline void rc_detach_group(rc_attached_reader *a)
{
    for (uint32_t i = 0; a->wakes && i < a->ring.g.max_readers; i++) {
        sem_t *wake = atomic_load(&a->wakes[i]);
        if (wake)
            rc_semaphore_close(wake);
    }
    free(a->wakes);
    free(a->member);
    a->wakes = NULL;
    a->member = NULL;
    rc_segment_unmap(&a->group);
}

#endif

#endif
