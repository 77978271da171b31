# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""The topic table, readers' wishes and the answers to them (native/topics.h), read from the segments.

Reading disturbs nobody: what changes meanwhile is read again, and what is impossible is left out.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from ringcast.shm._core cimport (
    RC_ACTIVE, RC_ANSWER_MAX, RC_CHOOSES, RC_DEMOTED, RC_DEMOTING, RC_GROUPS_MAX, RC_OTHERS, RC_TOPIC_NAME_MAX, RC_WISH_MAX, rc_atomic_u64, rc_bit, rc_control,
    rc_group_holds, rc_group_wishes_at, rc_hash, rc_header, rc_interest_at, rc_interest_stride, rc_load_atomic, rc_load_u32, rc_load_u64, rc_post, rc_ring,
    rc_slot, rc_slot_at, rc_store_u32, rc_take_token_until, rc_topic, rc_topic_info, rc_topic_name_length,
    rc_topic_read, rc_topics_at, rc_topics_count, rc_wishes, rc_wishes_offset, rc_wishes_read, sem_t,
    write,
)
from ringcast.shm._endpoint cimport Segments, Semaphores

from .counters import TopicStatus, Wishes

#: Bytes of a topic's name, and of an answer's text, at most.
NAME_MAX = RC_TOPIC_NAME_MAX
ANSWER_MAX = RC_ANSWER_MAX

cdef enum:
    READS = 64  # of something that changes meanwhile


cdef uint64_t hash_of(bytes data) noexcept:
    return rc_hash(<const uint8_t *>PyBytes_AS_STRING(data), len(data), 0)


def hash_key(data) -> int:
    """The hash that a message's `key` is made with: XXH64 of the bytes (or of the text's UTF-8) with
    seed 0, the same on every host and in every version."""
    return hash_of(data.encode() if isinstance(data, str) else bytes(data))


def topic_rows(Segments segments not None) -> list:
    """A `TopicStatus` for each topic of the table, in the order of their ids."""
    return rows_of(&segments.ring)


cdef list rows_of(rc_ring *ring):
    cdef const rc_topic *rows = rc_topics_at(ring.data.address, &ring.g)
    cdef uint32_t i, count = rc_topics_count(<const rc_header *>ring.data.address,
                                             ring.g.max_topics)
    cdef list found = []
    cdef dict named = slots_by_name(ring) if count else {}
    for i in range(count):
        found.append(topic_row(ring, &rows[i], i + 1, named))
    return found


cdef dict slots_by_name(rc_ring *ring):
    """Which reader slots wish for a topic by name. The interest table does not know those that get
    every message, and learns of others only when they read."""
    cdef dict named = {}
    cdef uint32_t index
    cdef rc_slot *slot
    for index in range(ring.g.max_readers):
        slot = rc_slot_at(<rc_control *>ring.control.address, index)
        if not is_held(slot) or rc_load_u32(&slot.group):
            continue  # what a member wants its group wants
        wishes = wishes_of(ring, index)
        for name in wishes.topics if wishes is not None else ():
            named.setdefault(name, set()).add(index)
    return named


cdef object topic_row(rc_ring *ring, const rc_topic *row, uint32_t topic, dict named):
    cdef rc_topic_info info
    cdef str name = row_name(row)
    cdef int i
    for i in range(READS):
        if rc_topic_read(row, &info):
            break
    return TopicStatus(
        topic, name, info.state, (<bytes>info.reason).decode("utf-8", "replace"),
        wanted_by(ring, topic, named.get(name, frozenset())), info.messages, info.bytes,
        <int64_t>info.seq1 - 1 if info.seq1 else None, info.time_ns, info.key)


cdef str row_name(const rc_topic *row):
    return PyBytes_FromStringAndSize(row.name, rc_topic_name_length(row)).decode("utf-8", "replace")


cdef int wanted_by(rc_ring *ring, uint32_t topic, object slots):
    """How many readers want a topic: those in `slots` by name, further ones by pattern; and work
    groups."""
    cdef rc_control *control = <rc_control *>ring.control.address
    cdef rc_atomic_u64 *interest = rc_interest_at(control, &ring.g)
    cdef uint32_t words = rc_interest_stride(&ring.g)
    cdef uint32_t index
    cdef uint64_t groups
    cdef int count = len(slots)
    for index in range(ring.g.max_readers):
        if rc_load_atomic(&interest[<uint64_t>topic * words + index // 64]) & rc_bit(index):
            count += index not in slots and holds(rc_slot_at(control, index))
    groups = rc_load_atomic(&interest[<uint64_t>topic * words + words - 1])
    for index in range(RC_GROUPS_MAX):
        if groups >> index & 1 and rc_group_holds(&control.group_rows[index]):
            count += 1
    return count


cdef bint is_held(rc_slot *slot) noexcept:
    """Has this slot a reader?"""
    return rc_load_u64(&slot.state) & 0xff in (RC_ACTIVE, RC_DEMOTING, RC_DEMOTED)


cdef bint holds(rc_slot *slot) noexcept:
    """Has it one that chooses among topics?"""
    return is_held(slot) and rc_load_u32(&slot.chooses) & RC_CHOOSES != 0


def read_wishes(Segments segments not None, uint32_t index):
    """What the reader in a slot wants, as `Wishes`; None while it changes, or if it is impossible.
    Names and patterns are what stands there: nothing of them is checked but that they are UTF-8."""
    if index >= segments.ring.g.max_readers:
        raise IndexError(f"the ring has {segments.ring.g.max_readers} reader slots")
    return wishes_of(&segments.ring, index)


def read_group_wishes(Segments segments not None, uint32_t group):
    """What a work group wants, as `read_wishes` gives it."""
    if group >= RC_GROUPS_MAX:
        raise IndexError(f"a ring has rows for {RC_GROUPS_MAX} groups")
    cdef rc_control *control = <rc_control *>segments.ring.control.address
    return wishes_at(rc_group_wishes_at(control, &segments.ring.g, group),
                     rc_load_u32(&control.group_rows[group].chooses))


cdef object wishes_of(rc_ring *ring, uint32_t index):
    return wishes_at(<const rc_wishes *>(<uint8_t *>ring.control.address
                                         + rc_wishes_offset(&ring.g)) + index,
                     rc_load_u32(&rc_slot_at(<rc_control *>ring.control.address, index).chooses))


cdef object wishes_at(const rc_wishes *wishes, uint32_t chooses):
    cdef bytes text
    cdef int64_t length
    cdef uint64_t version = 0
    text = PyBytes_FromStringAndSize(NULL, RC_WISH_MAX)
    length = rc_wishes_read(wishes, PyBytes_AS_STRING(text), &version)
    if length < 0:
        return None
    try:
        listed, _, asked = ("\0" + text[:length].decode()).partition("\0\0")
    except UnicodeDecodeError:
        return None
    return Wishes(version, names_in(listed), names_in(asked), chooses & RC_OTHERS != 0)


cdef tuple names_in(str text):
    return tuple([name for name in text.split("\0") if name])


def wishes_version(Segments segments not None, uint32_t index) -> int:
    """Which list of wishes stands in a slot: a cheap look whether `read_wishes` would bring more."""
    cdef const rc_wishes *wishes = <const rc_wishes *>(
        <uint8_t *>segments.ring.control.address + rc_wishes_offset(&segments.ring.g)) + index
    if index >= segments.ring.g.max_readers:
        raise IndexError(f"the ring has {segments.ring.g.max_readers} reader slots")
    return rc_load_u64(&wishes.version)


def group_wishes_version(Segments segments not None, uint32_t group) -> int:
    """The same of a work group's list."""
    if group >= RC_GROUPS_MAX:
        raise IndexError(f"a ring has rows for {RC_GROUPS_MAX} groups")
    return rc_load_u64(&rc_group_wishes_at(segments.ring.control.address, &segments.ring.g,
                                           group).version)


@cython.final
cdef class WishWatch:
    """Waits until readers' wishes change.

    Args:
        name: of the semaphore that is posted then.
    """

    def __cinit__(self, str name not None):
        self.semaphores = Semaphores([name])
        self.posted = self.semaphores.handles[0]

    def wait_into(self, int eventfd) -> bool:
        """Wait, without the GIL, until they have changed, then add 1 to the counter of `eventfd`
        (eventfd(2)). One thread at a time. False: `close` was called."""
        cdef uint64_t one = 1
        cdef int found = 0
        with nogil:
            while not found and not rc_load_u32(&self.closing.up):
                found = rc_take_token_until(self.posted, INT64_MAX)
            write(eventfd, &one, sizeof(one))
        return not rc_load_u32(&self.closing.up)

    def close(self) -> None:
        """End `wait_into`, in another thread and for good."""
        rc_store_u32(&self.closing.up, 1)
        rc_post(self.posted)
