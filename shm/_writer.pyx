# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""The writer as a Python object: publishing, reserving room, waiting for room, demoting, evicting.

The protocol is in native/broadcast.h, receiving a stream in place in native/stream.h; this file gives
them Python lifetimes. All of it runs under the GIL but for the waiting; while a thread waits for
room without the GIL it has the *turn*, and the others queue.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.sequence cimport PySequence_Fast, PySequence_Fast_GET_ITEM, PySequence_Fast_GET_SIZE
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_ACTIVE, RC_ANSWER_MAX, RC_DEMOTED, RC_DEMOTING, RC_EVICTED, RC_FORKED, RC_FREE, RC_KIND_BINARY, RC_KIND_EVENT, RC_KIND_TEXT,
    RC_GROUPS_MAX, RC_LOCK_READER, RC_MY_TURN, RC_NOBODY, RC_NOTE_MAX, RC_OPEN, RC_REASON_MAX, RC_ROOM_SLICE_NS,
    RC_TOPIC_NAME_MAX, rc_answer, rc_answer_say, rc_answers_offset, rc_clock_ns, rc_control,
    rc_descriptor, rc_find_group, rc_group_demote, rc_group_holds, rc_group_name, rc_group_next, rc_groups_tidy,
    rc_endpoint_phase, rc_endpoint_turn, rc_endpoint_wake_up, rc_load_u32,
    rc_load_u64, rc_lock_release, rc_lock_try, rc_note_write, rc_now_ns, rc_post, rc_slot_at,
    rc_slot_demote, rc_slot_evict, rc_slot_free, rc_store_u32, rc_topic_name_length, rc_topic_say,
    rc_turn, rc_writer, rc_writer_add_topic, rc_writer_commit,
    rc_writer_end, rc_writer_hint, rc_writer_map, rc_writer_release, rc_writer_resume,
    rc_writer_room, rc_writer_sign, rc_writer_try_put, rc_writer_wait, rc_writer_wake_all,
    rc_writer_want_nothing,
)
from ringcast.shm._endpoint cimport (
    Endpoint, OwnerEnd, Segments, Semaphores, WaitStrategy, check_making, check_open, deadline_of,
)

from ringcast.shm._topics cimport WishWatch, hash_of

import os
import threading

from ._endpoint import semaphore_name
from ._topics import group_wishes_version, read_group_wishes, read_wishes, wishes_version
from .counters import SlotWishes
from .errors import MessageTooLarge, RingCorrupt, RingFull, TooManyTopics

KIND_TEXT = RC_KIND_TEXT
KIND_BINARY = RC_KIND_BINARY
KIND_EVENT = RC_KIND_EVENT
NOTE_MAX = RC_NOTE_MAX

cdef int64_t FOR_EVER = INT64_MAX


cdef inline void describe(rc_descriptor *d, uint32_t topic, uint64_t key, uint16_t kind) noexcept:
    """A message that is received now."""
    memset(d, 0, sizeof(rc_descriptor))
    d.f.topic = topic
    d.f.key = key
    d.f.kind = kind
    d.f.time_ns = rc_clock_ns(CLOCK_REALTIME)


cdef bytes cut(str text, Py_ssize_t most):
    """As UTF-8, cut between two characters."""
    cdef bytes encoded = text.encode("utf-8", "replace")
    return encoded if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore").encode()


cdef bytes check_topic_name(str name):
    """As UTF-8, if a topic can have this name."""
    cdef bytes encoded = name.encode("utf-8", "surrogatepass")
    if not 0 < len(encoded) <= <Py_ssize_t>RC_TOPIC_NAME_MAX or b"\0" in encoded:
        raise ValueError(f"{name[:40]!r} can't name a topic: a name has 1 to {RC_TOPIC_NAME_MAX} bytes"
                         f" of UTF-8, this one {len(encoded)}, and no NUL among them")
    name.encode()  # raises UnicodeEncodeError for lone surrogates
    return encoded


@cython.final
@cython.no_gc
cdef class Reservation:
    """Room in the arena to write a message in place; valid until `commit` or the end of its
    ``with`` block.

    It exports the buffer protocol, writable: ``socket.recv_into(room)``, ``struct.pack_into``,
    ``numpy.frombuffer(room)`` and ``room[a:b] = data`` write straight into shared memory.
    """

    def __init__(self):
        raise TypeError("reservations come from Writer.reserve()")

    def __dealloc__(self):
        if self.writer is not None and self.writer.reservation == <void *>self:
            self.writer.reservation = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.abandoned = True
        if self.exports == 0:
            self.end()

    cdef void end(self) noexcept:
        self.over = True
        if self.writer.reservation == <void *>self:
            self.writer.reservation = NULL

    cdef int check(self) except -1:
        if self.over or self.abandoned:
            raise ValueError("the reservation is over")
        check_open(&self.writer.endpoint.c)
        return 0

    def commit(self, nbytes=None, *, uint32_t topic=0, uint64_t key=0,
               uint16_t kind=RC_KIND_BINARY) -> int:
        """Publish the first `nbytes` bytes (default: all) as one message; returns its sequence.

        Raises:
            BufferError: a view of the reservation is still alive and could write on.
            ValueError: more than was reserved, or the reservation is over.
        """
        cdef rc_descriptor d
        cdef int64_t n
        n = self.size if nbytes is None else nbytes  # may run code that commits: check after
        self.check()
        if not 0 <= n <= self.size:
            raise ValueError(f"{self.size} bytes are reserved, {nbytes!r} can't be published")
        if self.exports:
            raise BufferError("a view of the reservation is still alive: release it, then commit")
        describe(&d, topic, key, kind)
        d.f.length = n
        rc_writer_commit(&self.writer.ring, &d, self.start)
        rc_writer_release(&self.writer.ring)
        self.end()
        return self.writer.ring.next - 1

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        with PyMemoryView_FromObject(self) as view:
            return bytes(view[key]) if isinstance(key, slice) else view[key]

    def __setitem__(self, key, value):
        with PyMemoryView_FromObject(self) as view:
            view[key] = value

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.check()
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if self.exports == 0 and self.abandoned:
            self.end()


cdef class Writer(OwnerEnd):
    """The native half of `shm.broadcast.Writer`, which see."""

    def __cinit__(self, *args, **kwargs):
        check_making(args, "writers are made by Writer.create(name) or Writer.resume(name)")
        _, segments, endpoint, semaphores, wait = args
        self.bind(segments, endpoint, semaphores, wait)

    cdef int bind(self, Segments segments, Endpoint endpoint, Semaphores semaphores,
                  WaitStrategy wait) except -1:
        if semaphores.count != <int>segments.ring.g.max_readers + 2:
            raise ValueError("a writer needs every reader's semaphore, its own, and the wishes'")
        self.segments = segments
        self.semaphores = semaphores
        self.wait = wait
        self.turn = threading.Lock()
        self.ids = {}
        rc_writer_map(&self.ring, segments.ring.data.address, segments.ring.control.address,
                      &segments.ring.g, semaphores.handles,
                      semaphores.handles[segments.ring.g.max_readers])
        self.own(endpoint, semaphores.handles[segments.ring.g.max_readers])
        return 0

    def _open(self, bint resume) -> None:
        """Begin at sequence 0, or where the dead writer stopped. The writer lock is held."""
        if resume:
            if not rc_writer_resume(&self.ring):
                raise RingCorrupt(f"ring {self.segments.name!r} can't be resumed: its counters"
                                  f" are impossible; remove it with shm.unlink()")
            self._reap()
            self.read_ids()
        rc_writer_sign(&self.ring, rc_load_u32(&self.segments.header().epoch) + 1, os.getpid(),
                       rc_clock_ns(CLOCK_REALTIME))
        rc_writer_wake_all(&self.ring)
        self.opened = True

    def _reap(self) -> None:
        """Free the reader slots of dead readers: those whose lock can be taken."""
        cdef rc_control *control = self.ring.control
        cdef uint32_t i
        cdef int fd = self.endpoint.c.lock_fd
        for i in range(self.ring.max_readers):
            if rc_load_u64(&rc_slot_at(control, i).state) & 0xff == RC_FREE:
                continue
            if rc_lock_try(fd, RC_LOCK_READER + i) == 0:
                rc_slot_free(control, i, self.ring.space)
                rc_lock_release(fd, RC_LOCK_READER + i)
        if rc_load_u64(&control.wanted):
            rc_groups_tidy(&self.segments.ring)
        self.reaped_ns = rc_now_ns()

    @cython.final
    cdef int check(self) except -1:
        check_open(&self.endpoint.c)
        if self.reservation != NULL:
            raise BufferError("a reservation is open, or a view of one that was left is still"
                              " alive: commit or leave it, and release its views")
        if self.ring.held:
            raise BufferError("a stream is being received into the ring and is in the midst of a"
                              " message: publish between its messages, or when it has ended")
        return 0

    @cython.final
    cdef int check_length(self, uint64_t length) except -1:
        if length > self.ring.max_message:
            raise MessageTooLarge(
                f"a message of {length} bytes is longer than this ring's limit of"
                f" {self.ring.max_message}, a quarter of its capacity: create it with"
                f" capacity={1 << (4 * length - 1).bit_length()} or more")
        return 0

    # Room. One thread at a time waits for it, without the GIL, and has the turn while it does. Whoever
    # comes while anybody has it or waits for it queues, so nobody barges in between.

    @cython.final
    cdef int wait_for_room(self, uint64_t length, int64_t deadline) except -1:
        """Wait at most 20 ms for room; reap. The caller has the turn. 0: the deadline is over."""
        cdef int64_t now = rc_now_ns()
        cdef rc_turn turn
        if now >= deadline:
            return 0
        with nogil:
            turn = rc_endpoint_turn(&self.endpoint.c, deadline)
            if turn == RC_MY_TURN:
                rc_writer_wait(&self.ring, length, self.wait.c, deadline)
                rc_endpoint_wake_up(&self.endpoint.c)
        PyErr_CheckSignals()
        check_open(&self.endpoint.c)
        if rc_now_ns() - self.reaped_ns >= RC_ROOM_SLICE_NS:
            self._reap()
        return 1

    @cython.final
    cdef int begin_turn(self, int64_t deadline) except -1:
        """Become the one thread that works the ring while it is full. 0: not in time, or this very
        thread waits already and a signal handler of its publishes: then the ring is full."""
        cdef double seconds = -1 if deadline == FOR_EVER else (
            max(0, deadline - rc_now_ns()) / 1e9)
        cdef bint mine = False
        if self.turn_of == threading.get_ident():
            return 0
        self.queued += 1
        try:
            mine = self.turn.acquire(True, seconds)
        finally:
            if not mine:
                self.queued -= 1
        if mine:
            self.turn_of = threading.get_ident()
        return mine

    @cython.final
    cdef int end_turn(self) except -1:
        self.turn_of = 0
        self.queued -= 1
        if self.ring.wants:  # given up
            rc_writer_want_nothing(&self.ring)
        self.turn.release()
        return 0

    @cython.final
    cdef object full(self, uint64_t length, uint64_t published):
        return RingFull(f"no room for {length} bytes in ring {self.segments.name!r} in time:"
                        f" {self.slowest()}", published)

    @cython.final
    cdef object slowest(self):
        """Which reader holds the ring full, and what to do about it."""
        cdef uint32_t i
        cdef uint64_t lowest = UINT64_MAX
        culprit = None
        for i in range(self.ring.max_readers):
            reader = self.segments.reader_counters(i)
            if reader.gating and reader.state != RC_EVICTED and reader.cursor < lowest:
                lowest = reader.cursor
                culprit = (i, reader)
        for i in range(RC_GROUPS_MAX):
            if rc_group_holds(&self.ring.control.group_rows[i]) and (
                    rc_load_u64(&self.ring.control.group_rows[i].floor) < lowest):
                lowest = rc_load_u64(&self.ring.control.group_rows[i].floor)
                culprit = (i, None)
        if culprit is None:
            return "the reader that held it full has left: try again"
        if culprit[1] is None:
            return self.slowest_group(culprit[0], lowest)
        i, reader = culprit
        return (f"reader slot {i} (process {reader.pid}, {reader.label!r}, at {reader.cursor}) holds"
                f" it full. Let it read faster or attach with policy='lossy', give the ring more"
                f" room (slots=, capacity=), or demote it: writer.demote({i})")

    @cython.final
    cdef object slowest_group(self, uint32_t i, uint64_t floor):
        cdef char name[33]
        rc_group_name(&self.ring.control.group_rows[i], name)
        group = (<bytes>name).decode("utf-8", "replace")
        return (f"work group {group!r} holds it full: message {floor} is not done. Let it have more or faster"
                f" members, give the ring more room (slots=, capacity=), remove the group, or demote it:"
                f" writer.demote_group({group!r})")

    @cython.final
    cdef int put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                 int64_t deadline) except -1:
        """Put one message in, waiting for room; the caller has the turn. 0: not in time."""
        while not rc_writer_try_put(&self.ring, d, bytes, length):
            if not self.wait_for_room(length, deadline):
                return 0
            self.check()
        return 1

    @cython.final
    cdef int put_slowly(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                        object timeout) except -1:
        cdef int64_t deadline = deadline_of(timeout)
        cdef int done = 0
        if self.begin_turn(deadline):
            try:
                self.check()
                done = self.put(d, bytes, length, deadline)
            finally:
                self.end_turn()
        if not done:
            raise self.full(length, 0)
        return 0

    def publish(self, data, *, uint32_t topic=0, uint64_t key=0, uint16_t kind=RC_KIND_BINARY,
                timeout=None) -> int:
        """Publish one message and wake the readers that sleep; waits while the ring is full.

        Args:
            data: bytes or any C-contiguous buffer, from 0 to `max_message` bytes; copied.
            topic: an id that `topic` gave, or any number that readers see with the message; 0 for
                none.
            key: what work groups share messages out by, see `shm.hash_key`; 0 for none.
            kind: a `shm.Kind`.
            timeout: seconds to wait for room; None waits as long as it takes.

        Returns:
            The message's sequence.

        Raises:
            RingFull: no room in time.
            MessageTooLarge: longer than `max_message`.
            BufferError: a reservation is open.
            RingClosed: this writer is closed.
        """
        cdef rc_descriptor d
        cdef Py_buffer view
        cdef uint64_t sequence
        self.check()
        describe(&d, topic, key, kind)
        if PyBytes_CheckExact(data):
            self.put_one(&d, <const uint8_t *>PyBytes_AS_STRING(data), len(<bytes>data), timeout)
            return self.ring.next - 1
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.put_one(&d, <const uint8_t *>view.buf, view.len, timeout)
            sequence = self.ring.next - 1  # releasing the buffer may run other code
        finally:
            PyBuffer_Release(&view)
        return sequence

    @cython.final
    cdef int put_one(self, rc_descriptor *d, const uint8_t *bytes, uint64_t length,
                     object timeout) except -1:
        self.check_length(length)
        if self.queued or not rc_writer_try_put(&self.ring, d, bytes, length):
            self.put_slowly(d, bytes, length, timeout)
        rc_writer_release(&self.ring)
        return 0

    def try_publish(self, data, *, uint32_t topic=0, uint64_t key=0, uint16_t kind=RC_KIND_BINARY):
        """As `publish`, but never waits: returns None when the ring is full."""
        cdef rc_descriptor d
        cdef Py_buffer view
        cdef int done
        self.check()
        describe(&d, topic, key, kind)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            done = self.try_put(&d, <const uint8_t *>view.buf, view.len)
            sequence = self.ring.next - 1 if done else None
        finally:
            PyBuffer_Release(&view)
        return sequence

    @cython.final
    cdef int try_put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length) except -1:
        if self.queued:
            return 0
        if not rc_writer_try_put(&self.ring, d, bytes, length):
            if rc_now_ns() - self.reaped_ns >= RC_ROOM_SLICE_NS:
                self._reap()
            if not (rc_writer_hint(&self.ring, length)
                    and rc_writer_try_put(&self.ring, d, bytes, length)):
                return 0
        rc_writer_release(&self.ring)
        return 1

    def publish_many(self, buffers, *, uint32_t topic=0, uint64_t key=0,
                     uint16_t kind=RC_KIND_BINARY, timeout=None) -> range:
        """Publish many messages with one release and one wake-up; waits while the ring is full,
        having published what fits.

        Args:
            buffers: a sequence of bytes or C-contiguous buffers; each is copied. All are looked at
                before the first is published.
            topic, key, kind: of all of them.
            timeout: seconds to wait for room in all; None waits as long as it takes.

        Returns:
            The sequences, as a range.

        Raises:
            RingFull: no room in time; its `published` says how many went before.
            MessageTooLarge, TypeError, BufferError: nothing was published.
        """
        cdef rc_descriptor d
        cdef uint64_t first
        cdef object fast = PySequence_Fast(buffers, "publish_many() takes a sequence of buffers")
        cdef Py_ssize_t i, n = PySequence_Fast_GET_SIZE(fast)
        cdef int64_t deadline = FOR_EVER if timeout is None else deadline_of(timeout)
        cdef bint mine = False
        for i in range(n):
            if i >= PySequence_Fast_GET_SIZE(fast):
                raise RuntimeError("the sequence changed while it was looked at")
            self.check_buffer(<object>PySequence_Fast_GET_ITEM(fast, i))
        describe(&d, topic, key, kind)
        if self.queued:
            if not self.begin_turn(deadline):
                raise self.full(0, 0)
            mine = True
        first = self.ring.next
        try:
            self.check()
            for i in range(n):
                if i >= PySequence_Fast_GET_SIZE(fast):
                    raise RuntimeError("the sequence changed while it was published")
                item = <object>PySequence_Fast_GET_ITEM(fast, i)
                if self.put_item(&d, item):
                    continue
                if not mine:
                    if not self.begin_turn(deadline):
                        raise self.full(len(item), self.ring.next - first)
                    mine = True
                    self.check()
                self.put_item_slowly(&d, item, deadline, first)
        finally:
            rc_writer_release(&self.ring)
            if mine:
                self.end_turn()
        return range(first, first + n)

    @cython.final
    cdef int check_buffer(self, object item) except -1:
        cdef Py_buffer view
        if PyBytes_CheckExact(item):
            return self.check_length(len(<bytes>item))
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
        cdef uint64_t length = view.len
        PyBuffer_Release(&view)
        return self.check_length(length)

    @cython.final
    cdef int put_item(self, rc_descriptor *d, object item) except -1:
        """Put one in if there is room."""
        cdef Py_buffer view
        cdef int done
        if PyBytes_CheckExact(item):
            self.check_length(len(<bytes>item))
            return rc_writer_try_put(&self.ring, d, <const uint8_t *>PyBytes_AS_STRING(item),
                                     len(<bytes>item))
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            done = rc_writer_try_put(&self.ring, d, <const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return done

    @cython.final
    cdef int put_item_slowly(self, rc_descriptor *d, object item, int64_t deadline,
                             uint64_t first) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            if not self.put(d, <const uint8_t *>view.buf, view.len, deadline):
                raise self.full(view.len, self.ring.next - first)
        finally:
            PyBuffer_Release(&view)
        return 0

    def reserve(self, Py_ssize_t nbytes, timeout=None) -> Reservation:
        """Room for a message of at most `nbytes` bytes, to be written in place; use it in a
        ``with`` block and call `Reservation.commit`. Leaving the block without publishes nothing.

        One reservation can be open at a time, and nothing else be published meanwhile. Raises as
        `publish` does.
        """
        cdef Reservation room
        cdef uint64_t start = 0
        cdef int64_t deadline
        if nbytes < 0:
            raise ValueError(f"nbytes is 0 or more, not {nbytes}")
        self.check()
        self.check_length(nbytes)
        room = Reservation.__new__(Reservation)
        if self.queued or not rc_writer_room(&self.ring, nbytes, &start):
            deadline = deadline_of(timeout)
            if not self.begin_turn(deadline):
                raise self.full(nbytes, 0)
            try:
                self.check()
                while not rc_writer_room(&self.ring, nbytes, &start):
                    if not self.wait_for_room(nbytes, deadline):
                        raise self.full(nbytes, 0)
            finally:
                self.end_turn()
        room.writer = self
        room.start = start
        room.size = nbytes
        room.data = self.ring.arena + (start & (self.ring.capacity - 1))
        self.reservation = <void *>room
        return room

    # -- readers

    def demote(self, uint32_t slot) -> bool:
        """Ask the reader in `slot` to step down: at its next call into the ring it copies what it
        holds, stops gating and goes on as a lossy reader. It does so once no view or array of its
        messages is alive. False if there is no gating reader."""
        check_open(&self.endpoint.c)
        self.check_slot(slot)
        if not rc_slot_demote(self.ring.control, slot):
            return False
        rc_post(self.semaphores.handles[slot])
        return True

    def evict(self, uint32_t slot) -> bool:
        """Take the ring away from the reader in `slot`, at once: views it holds are no longer valid
        and its next call raises Evicted. For a reader that does not step down when asked. False if
        there is no reader."""
        check_open(&self.endpoint.c)
        self.check_slot(slot)
        if not rc_slot_evict(self.ring.control, slot):
            return False
        rc_post(self.semaphores.handles[slot])
        self.wake_group_of(slot)
        return True

    @cython.final
    cdef void wake_group_of(self, uint32_t slot) noexcept:
        """Another member of an evicted one's group sweeps what it had; it would look anyway, later."""
        cdef uint32_t group = rc_load_u32(&rc_slot_at(self.ring.control, slot).group) - 1
        cdef uint32_t other
        if group < RC_GROUPS_MAX:
            other = rc_group_next(&self.ring.control.group_rows[group].sleepers[0],
                                  self.ring.max_readers, slot)
            if other != RC_NOBODY:
                rc_post(self.semaphores.handles[other])

    @cython.final
    cdef int check_slot(self, uint32_t slot) except -1:
        if slot >= self.ring.max_readers:
            raise IndexError(f"the ring has reader slots 0 to {self.ring.max_readers - 1}")
        return 0

    def demote_group(self, str group not None) -> bool:
        """End the hold of a work group on the ring, at once, and evict its members: it goes on, when a
        member comes, at the oldest message still there, and is told the gap. For a group whose messages
        nobody takes. False if there is no group of this name that holds the ring."""
        cdef uint32_t i, slot
        check_open(&self.endpoint.c)
        i = rc_find_group(self.ring.control, group.encode())
        if i == RC_NOBODY or not rc_group_demote(self.ring.control, i, self.ring.max_readers):
            return False
        for slot in range(self.ring.max_readers):
            if rc_load_u32(&rc_slot_at(self.ring.control, slot).group) == i + 1:
                rc_post(self.semaphores.handles[slot])
        return True

    @property
    def set_aside(self) -> int:
        """How many messages work groups have set aside, all groups together: a cheap look whether
        `shm.group.list_groups` has something new."""
        cdef uint64_t count = 0
        cdef uint32_t i
        check_open(&self.endpoint.c)
        for i in range(RC_GROUPS_MAX):
            if rc_group_holds(&self.ring.control.group_rows[i]):
                count += rc_load_u64(&self.ring.control.group_rows[i].aside)
        return count

    # -- topics

    @cython.final
    cdef int read_ids(self) except -1:
        """The ids of the topics that the table has."""
        cdef uint32_t i
        for i in range(self.ring.topic_count):
            name = self.ring.topics[i].name[:rc_topic_name_length(&self.ring.topics[i])]
            self.ids[name.decode("utf-8", "replace")] = i + 1
        return 0

    def topic(self, str name not None) -> int:
        """The id of a topic, to publish under; it is added to the ring's table if it is not there yet.

        Args:
            name: 1 to 127 bytes of UTF-8, without NUL.

        Raises:
            ValueError: no topic can have this name.
            TooManyTopics: the table is full.
            RingClosed: this writer is closed.
        """
        cdef uint32_t topic
        cdef bytes encoded
        check_open(&self.endpoint.c)
        found = self.ids.get(name)
        if found is not None:
            return found
        encoded = check_topic_name(name)
        topic = rc_writer_add_topic(&self.ring, encoded, len(encoded), hash_of(encoded))
        if topic == 0:
            raise TooManyTopics(f"the table of ring {self.segments.name!r} is full: it has room for"
                                f" {self.ring.max_topics} topics; create it with a larger max_topics")
        self.ids[name] = topic
        return topic

    def set_topic_state(self, uint32_t topic, uint64_t state, str reason="") -> None:
        """Show in the table what state a topic is in; what the number means is the application's.

        Args:
            topic: an id that `topic` gave.
            state: any number; 0 at first.
            reason: a sentence, cut to 112 bytes.
        """
        cdef bytes text = cut(reason, RC_REASON_MAX)
        check_open(&self.endpoint.c)
        if not 1 <= topic <= self.ring.topic_count:
            raise IndexError(f"the table has topics 1 to {self.ring.topic_count}, not {topic}")
        rc_topic_say(&self.ring.topics[topic - 1], state, text, len(text))

    # -- wishes: see `shm.topics`

    @property
    def answers_wishes(self) -> bool:
        """Does somebody answer what readers wish for? Readers that wait for an answer ask this first.
        Off in a new ring; who resumes one says anew whether they do."""
        return rc_load_u32(&self.ring.header.answers_wishes) != 0

    @answers_wishes.setter
    def answers_wishes(self, bint answers):
        check_open(&self.endpoint.c)
        rc_store_u32(&self.ring.header.answers_wishes, answers)

    def answer_wishes(self, uint32_t slot, uint64_t version, str text="") -> None:
        """Say that the wishes of a reader slot were looked at, up to this version of its list; and
        what of them can't be had and has no row in the table.

        Args:
            slot: the reader's.
            version: what `wishes` gave with the list.
            text: cut to 488 bytes.
        """
        cdef bytes encoded = cut(text, RC_ANSWER_MAX)
        cdef rc_answer *answer
        check_open(&self.endpoint.c)
        if slot >= self.ring.max_readers:
            return  # a group's: its members have lists of their own, and their answers
        self.check_slot(slot)
        answer = <rc_answer *>(<uint8_t *>self.segments.ring.data.address
                               + rc_answers_offset(&self.segments.ring.g)) + slot
        rc_answer_say(answer, version, encoded, len(encoded))

    def wishers(self) -> list:
        """The readers that live and are not evicted, as `SlotWishes`, and the work groups that hold the
        ring, whose numbers come after those of the slots; slots of the dead are freed."""
        cdef rc_control *control = self.ring.control
        cdef uint32_t i
        cdef list found = []
        check_open(&self.endpoint.c)
        self._reap()
        for i in range(self.ring.max_readers):
            # Not of one that joins: until it has written its list, its slot's last owner's stands there.
            if rc_load_u64(&rc_slot_at(control, i).state) & 0xff in (RC_ACTIVE, RC_DEMOTING, RC_DEMOTED):
                found.append(SlotWishes(i, rc_load_u64(&rc_slot_at(control, i).joined_ns),
                                        wishes_version(self.segments, i)))
        for i in range(RC_GROUPS_MAX):
            if rc_group_holds(&control.group_rows[i]):
                found.append(SlotWishes(self.ring.max_readers + i,
                                        rc_load_u64(&control.group_rows[i].created_ns),
                                        group_wishes_version(self.segments, i)))
        return found

    def watch_wishes(self) -> WishWatch:
        """What waits, in a thread of its own, for readers' wishes to change."""
        return WishWatch(semaphore_name(self.segments.name, self.segments.instance, "wish"))

    def wishes(self, uint32_t slot):
        """What the reader in a slot wishes for, or a work group, as `wishers` numbers them: `Wishes`;
        None while that changes, or if it is impossible. Names are not checked, but that they are
        UTF-8."""
        check_open(&self.endpoint.c)
        if slot >= self.ring.max_readers:
            return read_group_wishes(self.segments, slot - self.ring.max_readers)
        return read_wishes(self.segments, slot)

    # -- the note

    @property
    def note(self) -> bytes:
        """What this writer publishes about itself, such as the state of its connection: at most
        1016 bytes that anybody can look up at any time (`shm.status`, `Reader.note`). Assigning
        bytes, or any C-contiguous buffer, replaces it.

        Raises:
            MessageTooLarge: the new one is longer.
            RingClosed: this writer is closed.
        """
        check_open(&self.endpoint.c)
        return self.segments.note()

    @note.setter
    def note(self, data):
        cdef bytes copy = bytes(data)
        check_open(&self.endpoint.c)
        if len(copy) > <Py_ssize_t>RC_NOTE_MAX:
            raise MessageTooLarge(f"a note has at most {RC_NOTE_MAX} bytes, not {len(copy)}")
        rc_note_write(self.ring.header, <const uint8_t *>PyBytes_AS_STRING(copy), len(copy))

    # -- the end

    def close(self) -> None:
        """End the ring: readers drain it, then see the end. The segments stay until `unlink`.

        Raises:
            BufferError: a view of a reservation is still alive.
        """
        if self.reservation != NULL and (<Reservation>self.reservation).exports:
            raise BufferError("a view of a reservation is still alive: release it first")
        if self._end():
            self._release()

    def _end(self) -> bool:
        """End the ring, keeping the writer lock; False if it has ended, or is a parent's."""
        if not self.begin_end():
            return False
        if self.reservation != NULL:  # a view that is left may write on: nobody reads there any more
            (<Reservation>self.reservation).end()
        rc_writer_end(&self.ring)
        return True

    @property
    def name(self) -> str:
        """The ring's name."""
        return self.segments.name

    @property
    def sequence(self) -> int:
        """Sequence of the next message."""
        return self.ring.next

    @property
    def oldest(self) -> int:
        """Oldest sequence that is not given up to be overwritten."""
        return self.ring.gate

    @property
    def epoch(self) -> int:
        """1 for the ring's creator, one more for each writer that resumed it."""
        return self.ring.epoch

    @property
    def slots(self) -> int:
        """Messages the ring can hold."""
        return self.ring.slots

    @property
    def capacity(self) -> int:
        """Bytes of the arena."""
        return self.ring.capacity

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.ring.max_message
