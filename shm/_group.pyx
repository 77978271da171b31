# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""A member of a work group as a Python object: taking, acknowledging and giving back.

The protocol is in native/group.h; this file gives it Python lifetimes. It adds to what _reader.pyx says
of messages that lie in the arena:

* A message has its *lease* until it is acknowledged or given back. Acknowledged while the object lives,
  its bytes are KEPT: the lease is done when the object goes, or takes a private copy. Given back, it
  takes the copy first.
* With `auto_ack` what was handed out last to a thread or task is in that one's *hand*, and done with
  when it asks for the next. A hand outlives the messages: a message that goes while it is in a hand
  leaves its lease there. A hand that goes, with its thread or task, gives back what it has.

All of it runs under the GIL but for the waiting, which works on a copy of the member's look.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from ringcast.shm._core cimport (
    CLOCK_MONOTONIC_COARSE, RC_ANY, RC_ANY_SORT, RC_ASIDE, RC_ASIDE_MEMBERS, RC_CHOOSES,
    RC_CLOSED_MEANWHILE, RC_CLOSING, RC_DELIVERIES_MAX, RC_EMPTY, RC_ENDED, RC_FRESH,
    RC_GROUPS_MAX, RC_GROUP_SLICE_NS, RC_KEY, RC_LEASE_CLAIMED, RC_LEASE_KEPT, RC_LOOKING,
    RC_MESSAGE, RC_MY_TURN, RC_NOBODY, RC_NO_HAND, RC_OPEN, RC_OTHERS, RC_ROUND_ROBIN,
    RC_SAME_ROUND, RC_STEP_DOWN, RC_TAKEN_AWAY, RINGCAST_OK,
    rc_attached_member_wait, rc_clock_ns, rc_control, rc_descriptor, rc_endpoint_phase,
    rc_endpoint_rouse, rc_endpoint_turn, rc_endpoint_wake_up, rc_error, rc_find_group,
    rc_group_census, rc_group_count, rc_group_has, rc_group_holder, rc_group_holds,
    rc_group_is_gone, rc_group_is_made, rc_group_map, rc_group_map_at, rc_group_name,
    rc_group_object, rc_group_open, rc_group_remove, rc_group_row, rc_group_segment, rc_lease,
    rc_lease_deliveries, rc_load_u32, rc_load_u64, rc_lock_groups, rc_look, rc_member,
    rc_member_call, rc_member_changed, rc_member_finish, rc_member_flush, rc_member_give_back,
    rc_member_hoards, rc_member_look_around, rc_member_look_due, rc_member_release,
    rc_member_sleep, rc_member_take, rc_member_take_gap, rc_now_ns, rc_partition_of_key,
    rc_partitions_at, rc_post, rc_result, rc_segment, rc_segment_unmap, rc_sort, rc_turn,
    ringcast_status, write,
)
from ringcast.shm._endpoint cimport Endpoint, Segments, Semaphores, check_open, deadline_of, error_of
from ringcast.shm._reader cimport Batch, Message, Reader, pin_link, rc_pin

import gc
import threading
import weakref

from ._topics import read_group_wishes
from .counters import GroupStatus, SetAside
from .errors import Evicted, RingError, RingFull

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

cdef enum:
    BATCH_FIRST = 64  # messages for which a batch has room at first
    HAND_FIRST = 4
    # Bytes of a message that takes a private copy when it is acknowledged while it lives. A longer one holds
    # its place in the ring until it goes, or its member waits.
    COPIED_MOST = 65536
    TAKEN = 1    # what `take_for` returns
    EMPTY = 0
    AT_END = -2
    NOT_FOR_IT = -3  # the next message does not belong into the batch that was begun
    ACKNOWLEDGED = -1
    GIVEN_BACK = -2
    HANDS_MOST = 0x7fffffff  # numbers of hands, before they begin anew

# What a hand has: a lease, or what it belongs to, which has it then.
cdef struct Item:
    rc_lease lease
    uint64_t size
    void *message
    void *batch


@cython.final
@cython.no_gc
cdef class Hand:
    """What one thread or task was handed last, and has not acknowledged; its member's friend."""

    cdef Item *items
    cdef Py_ssize_t count, room
    cdef uint32_t number
    cdef void *loop     # the Loop that handed it out, if one did
    cdef void *member   # NULL: it is finished
    cdef void *previous  # hands of the same member
    cdef void *following

    def __dealloc__(self):
        if self.member != NULL:
            (<Member>self.member).drop(self)
        free(self.items)

    cdef Item *put(self) except NULL:
        """Room for one more."""
        cdef Item *larger
        cdef Py_ssize_t room
        if self.count == self.room:
            room = max(HAND_FIRST, 2 * self.room)
            larger = <Item *>realloc(self.items, room * sizeof(Item))
            if larger == NULL:
                raise MemoryError
            self.items = larger
            self.room = room
        self.count += 1
        return &self.items[self.count - 1]


@cython.no_gc
@cython.final
cdef class GroupMessage(Message):
    """A message of a work group. As `shm.broadcast.Message`; and it is this member's to handle until it is
    acknowledged or given back.

    Its bytes lie in the ring, and while this object or a buffer made from it lives, the ring does not
    reuse them (unless the member is evicted).
    """

    def __dealloc__(self):
        if self.lease.word:
            (<Member>self.reader).lose(self)

    cdef int detach(self) noexcept:
        cdef int error = Message.detach(self)
        if error == 0 and self.lease.word:
            (<Member>self.reader).detached(self)
        return error

    cdef void unexported(self) noexcept:
        if self.place == GIVEN_BACK and self.lease.word:  # it had to wait for this
            self.detach()
        Message.unexported(self)

    @property
    def deliveries(self) -> int:
        """How often it was handed to a program, with this time: 1, unless somebody had it before."""
        return self.descriptor.f.reserved

    def ack(self) -> None:
        """It is done, and the ring may have its bytes: up to 64 KiB are copied if they are still in
        place, a longer message holds its place until it goes or is copied. A second time does
        nothing.

        Raises:
            Evicted: this member lost the message, and another has it or will.
            ValueError: it was given back.
            RingClosed: this end is closed.
        """
        (<Member>self.reader).acknowledge(self)

    def nack(self) -> None:
        """Give it back: it is delivered again. With balance "key" it is the next of its key; else it
        goes to another member, if there is one. Here it comes after a pause, which doubles with each
        delivery, from 1 ms, and is at least 100 ms while others may have it. (Of more than 16 that
        pause at once in one member, the rest come without.) Does nothing if it was acknowledged or
        given back before.

        Raises:
            BufferError: a view of it is still alive; it would dangle.
            Evicted, RingClosed: as `ack` does.
        """
        (<Member>self.reader).refuse(self)


@cython.no_gc
@cython.final
cdef class GroupBatch(Batch):
    """Many messages of a work group, claimed and acknowledged as one; use it in a ``with`` block.

    With `auto_ack` the end of the block says that all are done, and an exception gives all back. Without,
    `ack` says so; the end of the block gives back what was not.
    """

    cdef bint given_back

    def __dealloc__(self):
        if self.leases != NULL:
            if self.reader is not None:
                (<Member>self.reader).lose_batch(self)
            free(self.leases)
            self.leases = NULL

    @property
    def deliveries(self) -> int:
        """How often its messages were handed to a program, with this time. Those that somebody had
        before come singly."""
        return self.table[0].f.reserved if self.count else 0

    def ack(self) -> None:
        """All of it is done. A second time does nothing. Raises as `GroupMessage.ack` does."""
        (<Member>self.reader).acknowledge_batch(self)

    def nack(self) -> None:
        """Give all of it back. Raises as `GroupMessage.nack` does."""
        (<Member>self.reader).refuse_batch(self, True)

    def __exit__(self, kind, error, traceback):
        if self.leases != NULL and self.reader is not None:
            (<Member>self.reader).end_batch(self, kind is not None)
        self.release()

    def release(self) -> None:
        """End the batch. What was not acknowledged is given back, once no array or view of it is
        left."""
        if self.released:
            return
        if self.leases != NULL and self.reader is not None:
            (<Member>self.reader).end_batch(self, True)
        self.released = True
        if self.pin.exports == 0:
            self.unpin()

    cdef void unpin(self) noexcept:
        if self.leases != NULL and self.reader is not None:
            (<Member>self.reader).free_batch(self)
        Batch.unpin(self)


@cython.final
@cython.no_gc
cdef class Loop:
    """A ``for`` or ``async for`` loop over a member. When it goes, what it handed out last is given back."""

    cdef Member member
    cdef Hand hand

    def __init__(self):
        raise TypeError("iterate a Member")

    def __dealloc__(self):
        if self.hand is not None and self.hand.loop == <void *>self:
            self.member.give_back(self.hand)

    def __iter__(self):
        return self

    def __next__(self):
        return self.member.next_for(self)

    def take_nowait(self):
        """The next message, after the one before was done with; None: there is none now.

        Raises:
            StopAsyncIteration: the ring has ended.
        """
        return self.member.take_nowait_for(self.hand, <void *>self)


cdef void take_out(Hand hand, Py_ssize_t place) noexcept:
    """What the hand has at this place is not its any more; the last one takes the place."""
    hand.count -= 1
    if place != hand.count:
        hand.items[place] = hand.items[hand.count]
        if hand.items[place].message != NULL:
            (<GroupMessage>hand.items[place].message).place = place


cdef class Member(Reader):
    """The native half of `shm.group.Member`, which see."""

    cdef rc_member *m
    cdef bint auto_ack
    cdef readonly str group
    cdef readonly str balance
    cdef object local    # the hands of threads
    cdef object tasks    # and of tasks
    cdef void *hands     # all of them
    cdef void *last_hand  # of the thread that asked last
    cdef unsigned long last_thread
    cdef uint32_t numbers

    def __cinit__(self, *args, **kwargs):
        self.m = self.a.member
        self.group = args[10]
        self.auto_ack, self.balance = args[13:]
        self.local = threading.local()
        self.tasks = weakref.WeakKeyDictionary()

    def __dealloc__(self):
        cdef void *hand = self.hands
        while hand != NULL:
            (<Hand>hand).member = NULL
            hand = (<Hand>hand).following
        self.hands = NULL

    # -- hands

    cdef Hand new_hand(self):
        cdef Hand hand = Hand.__new__(Hand)
        self.numbers = self.numbers % HANDS_MOST + 1
        hand.number = self.numbers
        hand.member = <void *>self
        hand.following = self.hands
        if self.hands != NULL:
            (<Hand>self.hands).previous = <void *>hand
        self.hands = <void *>hand
        return hand

    cdef Hand hand_here(self):
        """The calling thread's."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef Hand hand
        if self.last_hand != NULL and thread == self.last_thread:
            return <Hand>self.last_hand
        hand = getattr(self.local, "hand", None)
        if hand is None:
            hand = self.local.hand = self.new_hand()
        self.last_hand = <void *>hand
        self.last_thread = thread
        return hand

    def _hand_of(self, task):
        """The hand of an asyncio task."""
        hand = self.tasks.get(task)
        if hand is None:
            hand = self.tasks[task] = self.new_hand()
        return hand

    cdef void drop(self, Hand hand) noexcept:
        """This hand goes: its thread or task has ended."""
        if self.last_hand == <void *>hand:
            self.last_hand = NULL
        if hand.previous != NULL:
            (<Hand>hand.previous).following = hand.following
        else:
            self.hands = hand.following
        if hand.following != NULL:
            (<Hand>hand.following).previous = hand.previous
        self.give_back(hand)
        hand.member = NULL

    cdef bint works(self) noexcept:
        """May leases be changed? Not in a forked child, nor once the slot is given up."""
        return self.joined and rc_endpoint_phase(&self.a.endpoint) in (RC_OPEN, RC_CLOSING)

    cdef void after(self) noexcept:
        """Another thread may wait for a key that was in hand."""
        if self.m.rouse:
            self.m.rouse = 0
            rc_endpoint_rouse(&self.a.endpoint, self.a.reader.wake)

    cdef void done_with(self, Hand hand) noexcept:
        """Acknowledge what the hand has."""
        cdef Py_ssize_t i
        cdef Item *item
        for i in range(hand.count):
            item = &hand.items[i]
            if item.message != NULL:
                self.finish_message(<GroupMessage>item.message)
            elif item.batch != NULL:
                self.finish_batch(<GroupBatch>item.batch)
            else:
                rc_member_finish(self.m, &item.lease, 0, item.size)
        hand.count = 0
        hand.loop = NULL
        self.after()

    cdef void give_back(self, Hand hand) noexcept:
        """Give back what the hand has."""
        cdef Py_ssize_t i, count = hand.count
        cdef Item *item
        hand.count = 0
        hand.loop = NULL
        if not self.works():
            return
        for i in range(count):
            item = &hand.items[i]
            if item.message != NULL:
                self.return_message(<GroupMessage>item.message, 0)
            elif item.batch != NULL:
                self.return_batch(<GroupBatch>item.batch, 0)
            else:
                rc_member_give_back(self.m, &item.lease, 0)
        if count:
            rc_member_call(self.m, count)
        self.after()

    # -- messages

    cdef void out_of_hand(self, GroupMessage message) noexcept:
        """It is acknowledged or given back by itself."""
        if message.hand == NULL:
            return
        take_out(<Hand>message.hand, message.place)
        message.hand = NULL

    cdef bint finish_message(self, GroupMessage message) noexcept:
        """Acknowledge it; False: it was taken from us."""
        message.hand = NULL
        message.place = ACKNOWLEDGED
        return rc_member_finish(self.m, &message.lease, message.pin.linked, message.size)

    cdef bint return_message(self, GroupMessage message, int pause) noexcept:
        """Give it back, with a private copy of its bytes; later, if a view is alive. False: it was
        taken from us. The caller calls rc_member_call()."""
        message.hand = NULL
        message.place = GIVEN_BACK
        if message.pin.exports or Message.detach(message):
            return True
        return rc_member_give_back(self.m, &message.lease, pause)

    cdef void lose(self, GroupMessage message) noexcept:
        """The object goes, and has a lease."""
        cdef Item *item
        if not self.works():
            return
        if message.lease.word & 7 == RC_LEASE_KEPT:
            rc_member_release(self.m, &message.lease, message.size)
        elif message.hand != NULL:
            item = &(<Hand>message.hand).items[message.place]
            item.lease = message.lease
            item.size = message.size
            item.message = NULL
        else:
            rc_member_give_back(self.m, &message.lease, 0)
            rc_member_call(self.m, 1)
        self.after()

    cdef void detached(self, GroupMessage message) noexcept:
        """It has taken a private copy: of what was acknowledged, or because this end closes."""
        if not self.works():
            return
        if message.lease.word & 7 == RC_LEASE_KEPT:
            rc_member_release(self.m, &message.lease, message.size)
            return
        self.out_of_hand(message)
        message.place = GIVEN_BACK
        rc_member_give_back(self.m, &message.lease, 0)
        rc_member_call(self.m, 1)
        self.after()

    cdef int acknowledge(self, GroupMessage message) except -1:
        if message.lease.word & 7 != RC_LEASE_CLAIMED or message.place == GIVEN_BACK:
            if message.place == GIVEN_BACK:
                raise ValueError(f"message {message.sequence} was given back: whoever has it next"
                                 " acknowledges it")
            return 0
        self.check_ours()
        self.out_of_hand(message)
        if message.pin.exports == 0 and message.size <= COPIED_MOST:
            Message.detach(message)  # if that can't be, its bytes are KEPT
        if not self.finish_message(message):
            raise self.lost_it()
        if rc_load_u64(&self.m.map.row.floor) == message.descriptor.f.seq1 - 1:
            rc_member_flush(self.m)  # this may be the last call for a while
        self.after()
        return 0

    cdef int refuse(self, GroupMessage message) except -1:
        if message.lease.word & 7 != RC_LEASE_CLAIMED or message.place == GIVEN_BACK:
            return 0
        self.check_ours()
        if message.pin.exports:
            raise BufferError(f"a view of message {message.sequence} is still alive: release it, then"
                              " give the message back")
        self.out_of_hand(message)
        if not self.return_message(message, 1):
            raise self.lost_it()
        rc_member_call(self.m, 1)
        self.after()
        return 0

    cdef object lost_it(self):
        return Evicted(f"member {self.a.reader.index} of group {self.group!r} was evicted, or the group"
                       f" demoted: it held ring {self.name!r} full for too long, or wrote what no member"
                       " does. Its messages are others' now; attach again")

    cdef int check_ours(self) except -1:
        """Is this end open, and a member still?"""
        check_open(&self.a.endpoint)
        if rc_member_changed(self.m) == RC_TAKEN_AWAY:
            raise self.lost_it()
        return 0

    # -- batches

    cdef bint finish_batch(self, GroupBatch batch) noexcept:
        cdef Py_ssize_t i
        cdef int keep = batch.pin.exports != 0
        cdef bint ours = True
        batch.hand = NULL
        for i in range(batch.count):
            if batch.leases[i].word & 7 == RC_LEASE_CLAIMED:
                ours &= rc_member_finish(self.m, &batch.leases[i], keep,
                                         batch.table[i].f.length)
        if not keep:
            free(batch.leases)
            batch.leases = NULL
        return ours

    cdef bint return_batch(self, GroupBatch batch, int pause) noexcept:
        """Give it back; later, if an array or view is alive. The caller calls rc_member_call()."""
        cdef Py_ssize_t i
        cdef bint ours = True
        batch.hand = NULL
        batch.given_back = True
        if batch.pin.exports:
            return True
        for i in range(batch.count):
            if batch.leases[i].word & 7 == RC_LEASE_CLAIMED:
                ours &= rc_member_give_back(self.m, &batch.leases[i], pause and i == 0)
        free(batch.leases)
        batch.leases = NULL
        return ours

    cdef void batch_out_of_hand(self, GroupBatch batch) noexcept:
        cdef Hand hand
        cdef Py_ssize_t i
        if batch.hand == NULL:
            return
        hand = <Hand>batch.hand
        batch.hand = NULL
        for i in range(hand.count):
            if hand.items[i].batch == <void *>batch:
                take_out(hand, i)
                return

    cdef int acknowledge_batch(self, GroupBatch batch) except -1:
        if batch.given_back:
            raise ValueError("the batch was given back: whoever has its messages next acknowledges them")
        if batch.leases == NULL or batch.count == 0 or (
                batch.leases[0].word & 7 != RC_LEASE_CLAIMED):
            return 0
        self.check_ours()
        self.batch_out_of_hand(batch)
        if not self.finish_batch(batch):
            raise self.lost_it()
        rc_member_flush(self.m)
        self.after()
        return 0

    cdef int refuse_batch(self, GroupBatch batch, bint pause) except -1:
        if batch.leases == NULL or batch.count == 0 or (
                batch.leases[0].word & 7 != RC_LEASE_CLAIMED):
            return 0
        self.check_ours()
        if batch.pin.exports:
            raise BufferError("an array or view of this batch is still alive: release it, then give"
                              " the batch back")
        self.batch_out_of_hand(batch)
        if not self.return_batch(batch, pause):
            raise self.lost_it()
        rc_member_call(self.m, batch.count)
        self.after()
        return 0

    cdef int end_batch(self, GroupBatch batch, bint failed) except -1:
        """The end of its block."""
        if batch.count == 0 or batch.leases[0].word & 7 != RC_LEASE_CLAIMED or not self.works():
            return 0
        self.batch_out_of_hand(batch)
        if self.auto_ack and not failed:
            self.check_ours()
            if not self.finish_batch(batch):
                raise self.lost_it()
            rc_member_flush(self.m)
        else:
            self.return_batch(batch, 0)
            rc_member_call(self.m, batch.count)
        self.after()
        return 0

    cdef void free_batch(self, GroupBatch batch) noexcept:
        """No array or view of it is left, and its block is over: what is KEPT is done, what is not
        acknowledged goes back."""
        cdef Py_ssize_t i
        cdef uint64_t returned = 0
        if batch.pin.exports or not self.works():
            return
        self.batch_out_of_hand(batch)
        for i in range(batch.count):
            if batch.leases[i].word & 7 == RC_LEASE_KEPT:
                rc_member_release(self.m, &batch.leases[i], batch.table[i].f.length)
            elif batch.leases[i].word & 7 == RC_LEASE_CLAIMED:
                returned += rc_member_give_back(self.m, &batch.leases[i], 0)
        free(batch.leases)
        batch.leases = NULL
        if returned:
            rc_member_call(self.m, returned)
        self.after()

    cdef void lose_batch(self, GroupBatch batch) noexcept:
        """The object goes, and has leases: in a hand they stay there."""
        cdef Hand hand
        cdef Item *item
        cdef Py_ssize_t i
        if batch.hand == NULL or not self.works():
            self.free_batch(batch)
            return
        hand = <Hand>batch.hand
        self.batch_out_of_hand(batch)
        for i in range(batch.count):
            try:
                item = hand.put()
            except MemoryError:  # no room to remember it: it goes back
                rc_member_give_back(self.m, &batch.leases[i], 0)
                continue
            item.lease = batch.leases[i]
            item.size = batch.table[i].f.length
            item.message = NULL
            item.batch = NULL

    # -- taking

    cdef int asks(self, Hand hand) except -1:
        """Whoever's hand it is asks for the next: with `auto_ack` the last is done."""
        check_open(&self.a.endpoint)
        if self.auto_ack and hand.count:
            self.done_with(hand)
        return 0

    cdef int look(self) except -1:
        """Each 40 ms: does everybody live, and is nobody's work left?"""
        cdef int64_t now = rc_clock_ns(CLOCK_MONOTONIC_COARSE)
        if rc_member_look_due(self.m, now) and not rc_member_look_around(self.m, now):
            raise self.lost_it()
        return 0

    cdef int take_for(self, GroupMessage message, Hand hand, void *loop,
                      rc_sort sort, const rc_descriptor *first) except -1:
        """Fill a fresh message with the next one for this hand: TAKEN; EMPTY; AT_END; NOT_FOR_IT.

        From the look to the end nothing runs that could take from this same member."""
        cdef rc_result result
        cdef Item *item
        check_open(&self.a.endpoint)
        self.look()
        item = hand.put() if self.auto_ack else NULL
        result = rc_member_take(self.m, hand.number, sort, first, &message.lease,
                                &message.descriptor)
        if result == RC_MESSAGE:
            self.hand_out_to(message, hand, item)
            hand.loop = loop
            return TAKEN
        if item != NULL:
            hand.count -= 1
        if result == RC_EMPTY:
            return EMPTY
        if result == RC_STEP_DOWN:
            return NOT_FOR_IT
        if result == RC_ENDED:
            self.settle()
            return AT_END
        if result == RC_TAKEN_AWAY:
            raise self.lost_it()
        rc_member_give_back(self.m, &message.lease, 1)
        raise self.corrupt()

    cdef void hand_out_to(self, GroupMessage message, Hand hand, Item *item) noexcept:
        cdef rc_descriptor *d = &message.descriptor
        d.f.reserved = rc_lease_deliveries(message.lease.word)
        message.reader = self
        message.data = self.a.reader.arena + (d.f.position & (self.a.reader.capacity - 1))
        message.size = d.f.length
        message.missed = rc_member_take_gap(self.m)
        message.pin.message = <void *>message
        pin_link(&self.pins, &message.pin, d.f.seq1 - 1)
        if item != NULL:
            item.message = <void *>message
            item.batch = NULL
            message.hand = <void *>hand
            message.place = hand.count - 1

    cdef void flush(self) noexcept:
        if self.works():
            rc_member_flush(self.m)

    cdef int settle(self) except -1:
        """What was acknowledged and is not viewed takes a private copy; the floor moves."""
        cdef rc_pin *pin = self.pins.following
        cdef rc_pin *following
        cdef int error = 0
        while pin != &self.pins and error == 0:
            following = pin.following
            if pin.exports == 0 and pin.message != NULL and (
                    (<GroupMessage>pin.message).lease.word & 7 == RC_LEASE_KEPT):
                error = (<GroupMessage>pin.message).detach()
            pin = following
        if error == ENOMEM:
            raise MemoryError
        if error:
            raise self.lost_it()
        self.flush()
        return 0

    cdef bint hoards(self) noexcept:
        """Does the writer wait for what was acknowledged here, and of which a view or array lives?"""
        return rc_load_u64(&self.a.reader.control.wanted) != 0 and rc_member_hoards(self.m)

    cdef int refuse_to_hoard(self) except -1:
        if not self.hoards():
            return 0
        gc.collect()  # a cycle may be all that holds it
        self.settle()
        if self.hoards():
            raise RingFull(
                "this member would wait for ever: the ring is full, and the writer waits for a message"
                " of which a view or array is still alive here. Release it, or copy what you keep with"
                " bytes(message)")
        return 0

    cdef int rest(self, int64_t deadline, Hand hand) except -1:
        """Wait for something to happen, 40 ms at most; 0: the deadline is over."""
        cdef rc_look look
        cdef uint32_t number = hand.number
        self.settle()
        if rc_now_ns() >= deadline:
            return 0
        self.refuse_to_hoard()
        look = self.m.look
        with nogil:
            rc_attached_member_wait(&self.a, &look, number, self.m.received, self.wait.c, deadline)
        PyErr_CheckSignals()
        check_open(&self.a.endpoint)
        self.look_around()
        return 1

    cdef GroupMessage wait_for(self, Hand hand, void *loop, object timeout, bint *ended):
        """The next message; None: the time is over, or the ring has ended."""
        cdef int64_t deadline
        cdef GroupMessage message = GroupMessage.__new__(GroupMessage)
        cdef int taken
        ended[0] = False
        self.asks(hand)
        taken = self.take_for(message, hand, loop, RC_ANY_SORT, NULL)
        if taken == TAKEN:
            return message
        deadline = deadline_of(timeout)
        while taken != TAKEN:
            if taken == AT_END:
                ended[0] = True
                return None
            if not self.rest(deadline, hand):
                return None
            taken = self.take_for(message, hand, loop, RC_ANY_SORT, NULL)
        return message

    cdef GroupMessage next_for(self, Loop loop):
        cdef bint ended
        if loop.hand.number != self.hand_here().number:
            loop.hand = self.hand_here()
        message = self.wait_for(loop.hand, <void *>loop, None, &ended)
        if message is None:
            raise StopIteration
        return message

    def read(self, timeout=None):
        """The next message for this member, waiting for it. With `auto_ack` this says that the one
        before, of the same thread, is done.

        Args:
            timeout: seconds; None waits as long as it takes, 0 not at all.

        Returns:
            A `GroupMessage`, or None when the time is over.

        Raises:
            RingClosed: the ring has ended, and every message is done or in the hands of this very
                member; or it was removed.
            Evicted: this member was evicted; its messages are others' now.
            RingFull: a view held here is what the full ring's writer waits for.
            RingCorrupt: the segments hold what nobody writes.
        """
        cdef bint ended
        message = self.wait_for(self.hand_here(), NULL, timeout, &ended)
        if ended:
            raise self.ended()
        return message

    def __iter__(self):
        return self._loop(self.hand_here())

    def __next__(self):
        cdef bint ended
        message = self.wait_for(self.hand_here(), NULL, None, &ended)
        if message is None:
            raise StopIteration
        return message

    def _loop(self, Hand hand not None):
        """A new `Loop`."""
        cdef Loop loop = Loop.__new__(Loop)
        loop.member = self
        loop.hand = hand
        return loop

    def read_available(self, Py_ssize_t limit=256) -> list:
        """What is there now for this member, at most `limit` messages; never waits. What somebody has
        had before comes alone. Raises as `read` does."""
        cdef list messages = []
        cdef GroupMessage message
        cdef Hand hand = self.hand_here()
        cdef const rc_descriptor *first = NULL
        cdef int taken
        if limit < 1:
            raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
        self.asks(hand)
        try:
            while len(messages) < limit:
                message = GroupMessage.__new__(GroupMessage)
                taken = self.take_for(message, hand, NULL,
                                      RC_ANY_SORT if first == NULL else RC_FRESH, first)
                if taken == TAKEN:
                    messages.append(message)
                    if message.descriptor.f.reserved > 1:
                        break
                    first = &(<GroupMessage>messages[0]).descriptor
                elif taken == AT_END and not messages:
                    raise self.ended()
                else:
                    break
        except RingError:
            if not messages:  # else the next call raises it, and these are not lost
                raise
        if not messages:
            self.settle()
        return messages

    def batch(self, Py_ssize_t limit=65536, timeout=None) -> GroupBatch:
        """The next messages for this member at once, claimed and acknowledged as one, waiting for the
        first; use it in a ``with`` block. What somebody has had before comes alone.

        Args:
            limit: at most so many messages.
            timeout: seconds to wait for the first; None for as long as it takes, 0 not at all.
                When it is over the batch is empty.

        Raises: as `read` does.
        """
        cdef GroupBatch batch = GroupBatch.__new__(GroupBatch)
        cdef Hand hand = self.hand_here()
        cdef int64_t deadline = deadline_of(timeout)
        cdef int taken
        if limit < 1:
            raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
        self.asks(hand)
        batch.reader = self
        taken = self.fill(batch, hand, limit)
        while taken != TAKEN:
            if taken == AT_END:
                raise self.ended()
            if not self.rest(deadline, hand):
                batch.pin.sequence = self.m.position
                break
            taken = self.fill(batch, hand, limit)
        return batch

    cdef int fill(self, GroupBatch batch, Hand hand, Py_ssize_t limit) except -1:
        """Take what is there, at most `limit` messages."""
        cdef rc_descriptor *table = NULL
        cdef Py_ssize_t room = 0, count = 0
        cdef Item *item = NULL
        cdef rc_result result = RC_EMPTY
        check_open(&self.a.endpoint)
        self.look()
        if self.auto_ack:
            item = hand.put()
            hand.count -= 1
        while count < limit:
            if count == room:
                room = min(limit, max(<Py_ssize_t>BATCH_FIRST, 2 * room))
                if not grow(&table, &batch.leases, room):
                    break
            result = rc_member_take(self.m, hand.number, RC_SAME_ROUND if count else RC_ANY_SORT, table,
                                    &batch.leases[count], &table[count])
            if result != RC_MESSAGE:
                break
            table[count].f.reserved = rc_lease_deliveries(batch.leases[count].word)
            count += 1
            if table[0].f.reserved > 1:
                break
        if count == 0:
            free(table)
            if result == RC_TAKEN_AWAY:
                raise self.lost_it()
            if result == RC_ENDED:
                self.settle()
                return AT_END
            if result == RC_EMPTY:
                if room == 0:
                    raise MemoryError
                return EMPTY
            rc_member_give_back(self.m, &batch.leases[0], 1)
            raise self.corrupt()
        if result not in (RC_MESSAGE, RC_EMPTY, RC_ENDED, RC_STEP_DOWN, RC_TAKEN_AWAY):
            rc_member_give_back(self.m, &batch.leases[count], 1)  # the next call reports it
        batch.owned = <unsigned char *>table
        batch.table = table
        batch.count = count
        batch.payloads = self.a.reader.arena
        batch.missed = rc_member_take_gap(self.m)
        pin_link(&self.pins, &batch.pin, table[0].f.seq1 - 1)
        if item != NULL:
            item.message = NULL
            item.batch = <void *>batch
            batch.hand = <void *>hand
            hand.count += 1
        return TAKEN

    def check(self) -> None:
        """Do what a member does now and then besides taking messages: look whether it is still one,
        and whether the others live. For one that takes none for a while; at most every 40 ms this
        does something.

        Raises:
            Evicted: this member was evicted; its messages are others' now.
            RingClosed: this end is closed.
        """
        check_open(&self.a.endpoint)
        self.look()

    def ack(self, messages) -> None:
        """Acknowledge a message, or several: all that can be, before it raises for one that can't.

        Raises:
            Evicted: this member lost one of them, and others have it or will.
            TypeError: one is no message of this member; none was acknowledged.
            ValueError, RingClosed: as `GroupMessage.ack` does.
        """
        if isinstance(messages, (GroupMessage, GroupBatch)):
            messages = [messages]
        messages = list(messages)
        for message in messages:
            if not (isinstance(message, GroupMessage) and (<GroupMessage>message).reader is self
                    or isinstance(message, GroupBatch) and (<GroupBatch>message).reader is self):
                raise TypeError(f"{message!r:.60} is no message of this member")
        failure = None
        for message in messages:
            try:
                message.ack()
            except (RingError, ValueError) as error:  # the others are done all the same
                failure = failure or error
        if failure is not None:
            raise failure

    # -- asyncio

    def _take_nowait_for(self, Hand hand not None):
        """The next message or None, StopAsyncIteration at the end."""
        return self.take_nowait_for(hand, NULL)

    cdef object take_nowait_for(self, Hand hand, void *loop):
        cdef GroupMessage message = GroupMessage.__new__(GroupMessage)
        cdef int taken
        self.asks(hand)
        taken = self.take_for(message, hand, loop, RC_ANY_SORT, NULL)
        if taken == AT_END:
            raise StopAsyncIteration
        return message if taken == TAKEN else None

    def _before_await(self) -> None:
        self.settle()
        self.refuse_to_hoard()
        self.look_around()

    def wait_into(self, int eventfd) -> bool:
        """Wait, without the GIL, for a reason to look, 40 ms at most, then write `eventfd`. False: this
        end is closed."""
        cdef rc_look look = self.m.look
        cdef rc_turn turn
        cdef int64_t limit
        cdef uint64_t one = 1
        with nogil:
            limit = rc_now_ns() + RC_GROUP_SLICE_NS
            turn = rc_endpoint_turn(&self.a.endpoint, limit)
            if turn == RC_MY_TURN:
                rc_member_sleep(self.m, &look, RC_NO_HAND, limit)
                rc_endpoint_wake_up(&self.a.endpoint)
            write(eventfd, &one, sizeof(one))
        return turn != RC_CLOSED_MEANWHILE

    # -- figures

    @property
    def chooses(self) -> bool:
        """Does the group get the topics that it wants, or every message?"""
        return rc_load_u32(&self.m.map.row.chooses) & RC_CHOOSES != 0

    @property
    def skipped(self) -> int:
        """0: what a group does not want counts as done, and is passed over by nobody in particular."""
        return 0

    @property
    def policy(self) -> str:
        """"group": the floor of the group holds the ring."""
        return "group"

    @property
    def cursor(self) -> int:
        """Sequence after the last message that this member has taken."""
        return self.m.position

    @property
    def received(self) -> int:
        """Messages handed out to this member."""
        return self.m.received

    @property
    def lag(self) -> int:
        """Messages published that the group has not done, those in hand included."""
        cdef uint64_t published, floor
        check_open(&self.a.endpoint)
        published = rc_load_u64(&self.header().published)
        floor = rc_load_u64(&self.m.map.row.floor)
        return published - floor if published > floor else 0

    @property
    def lost(self) -> int:
        """Messages that the group has missed: see `GroupMessage.gap`."""
        check_open(&self.a.endpoint)
        return rc_load_u64(&self.m.map.row.lost)


cdef bint grow(rc_descriptor **table, rc_lease **leases, Py_ssize_t room) noexcept:
    """Room for so many; False: there is no memory for it."""
    cdef void *larger = realloc(table[0], room * sizeof(rc_descriptor))
    if larger == NULL:
        return False
    table[0] = <rc_descriptor *>larger
    larger = realloc(leases[0], room * sizeof(rc_lease))
    if larger == NULL:
        return False
    leases[0] = <rc_lease *>larger
    return True


# ---- looking ---------------------------------------------------------------------------------


DELIVERIES_MAX = RC_DELIVERIES_MAX
BALANCES = {RC_ANY: "any", RC_KEY: "key", RC_ROUND_ROBIN: "round-robin"}


def partition_of_key(uint64_t key) -> int:
    """The partition of messages with this key, 0 to 1023: those of one partition have one owner at a time."""
    return rc_partition_of_key(key)


def segment_name(str name not None, str group not None) -> str:
    """Shared-memory name of a group's segment."""
    cdef char out[64]
    rc_group_object(out, name.encode(), group.encode())
    return out.decode()


def remove_group(Segments segments not None, Endpoint endpoint not None, Semaphores wake not None,
                 str group not None) -> bool:
    """Free the row of a group that has no living members, under the lock of the ring's groups, which the
    endpoint keeps until it is closed: the caller unlinks the segment before. `wake`: the writer's
    semaphore and that of the wishes. False: there is none.

    Raises:
        RingError: it has members, or a process that makes or joins a group comes to no end.
    """
    cdef rc_control *control = segments.control()
    cdef bytes name = group.encode()
    cdef const char *ring = segments.ring.name
    cdef uint32_t slot, i
    cdef rc_segment segment
    cdef rc_group_map map
    cdef rc_error error
    cdef ringcast_status locked
    cdef uint32_t living = 0
    with nogil:
        locked = rc_lock_groups(&endpoint.c, ring, &error)
    if locked != RINGCAST_OK:
        raise error_of(&error)
    i = rc_find_group(control, name)
    if i == RC_NOBODY:
        return False
    if rc_group_open(&segment, &segments.ring, name, i, RC_LOOKING, &error) == RINGCAST_OK:
        rc_group_map_at(&map, segments.ring.data.address, control,
                        <rc_group_segment *>segment.address, &segments.ring.g, i)
        for slot in range(segments.ring.g.max_readers):
            living += rc_group_has(&map, slot, 0, 0) and not rc_group_is_gone(
                &map, slot, rc_load_u64(&map.segment.members[slot]) - 1, endpoint.c.lock_fd)
        rc_segment_unmap(&segment)
    if living:
        raise RingError(f"group {group!r} of ring {segments.name!r} has living members, {living} of them:"
                        " stop them first")
    rc_group_remove(control, i, wake.handles[0])
    rc_post(wake.handles[1])
    return True


def read_groups(Segments segments not None) -> list:
    """The groups of a ring, as `GroupStatus`, in the order of their rows."""
    cdef rc_control *control = segments.control()
    cdef uint32_t i
    cdef list found = []
    for i in range(RC_GROUPS_MAX):
        if rc_group_is_made(&control.group_rows[i]):
            found.append(look_at_group(segments, i))
    return found


cdef str group_name(const rc_group_row *row):
    cdef char name[33]
    rc_group_name(row, name)
    return (<bytes>name).decode("utf-8", "replace")


cdef object look_at_group(Segments segments, uint32_t i):
    cdef rc_control *control = segments.control()
    cdef rc_group_row *row = &control.group_rows[i]
    cdef rc_segment segment
    cdef rc_group_map map
    cdef rc_group_census census
    cdef rc_error error
    cdef uint32_t holder = RC_NOBODY, chooses = rc_load_u32(&row.chooses)
    cdef str name = group_name(row)
    cdef uint64_t floor, published
    detail = ""
    members = ()
    aside = ()
    census.claimed = census.returned = 0
    redelivered = voided = 0
    if rc_group_open(&segment, &segments.ring, name.encode(), i, RC_LOOKING, &error):
        detail = error.text.decode("utf-8", "replace")
    else:
        rc_group_map_at(&map, segments.ring.data.address, control,
                        <rc_group_segment *>segment.address, &segments.ring.g, i)
        rc_group_count(&map, &census)
        holder = rc_group_holder(&map, rc_partitions_at(control, &segments.ring.g, i))
        members = tuple([slot for slot in range(segments.ring.g.max_readers)
                         if rc_group_has(&map, slot, 0, 0)])
        redelivered = rc_load_u64(&map.segment.redelivered)
        voided = rc_load_u64(&map.segment.voided)
        aside = read_aside(map.segment)
        rc_segment_unmap(&segment)
    wishes = read_group_wishes(segments, i)
    floor = rc_load_u64(&row.floor)
    published = rc_load_u64(&segments.header().published)
    return GroupStatus(
        name=name,
        balance=BALANCES.get(rc_load_u32(&row.balance), "?"),
        state="active" if rc_group_holds(row) else "demoted",
        members=members,
        floor=floor,
        lag=min(published - floor, segments.ring.g.slots) if published > floor else 0,
        in_flight=census.claimed,
        returned=census.returned,
        redelivered=redelivered,
        set_aside=rc_load_u64(&row.aside),
        newest_set_aside=aside,
        lost=rc_load_u64(&row.lost),
        voided=voided,
        holder=None if holder == RC_NOBODY else holder,
        topics=wishes.topics if chooses & RC_CHOOSES and wishes is not None else None,
        others=chooses & RC_OTHERS != 0,
        max_deliveries=rc_load_u32(&row.max_deliveries),
        created_ns=rc_load_u64(&row.created_ns),
        detail=detail,
    )


cdef tuple read_aside(const rc_group_segment *segment):
    cdef list found = []
    cdef uint32_t i, k, count
    cdef uint64_t sequence1
    for i in range(RC_ASIDE):
        sequence1 = rc_load_u64(&segment.aside[i].sequence1)
        if sequence1 == 0:
            continue
        count = min(rc_load_u32(&segment.aside[i].count), RC_ASIDE_MEMBERS)
        record = SetAside(
            sequence=sequence1 - 1,
            topic=rc_load_u32(&segment.aside[i].topic),
            time_ns=rc_load_u64(&segment.aside[i].time_ns),
            set_aside_ns=rc_load_u64(&segment.aside[i].set_aside_ns),
            deliveries=rc_load_u32(&segment.aside[i].deliveries),
            pids=tuple([rc_load_u32(&segment.aside[i].pids[k]) for k in range(count)]),
        )
        if rc_load_u64(&segment.aside[i].sequence1) == sequence1:  # else it is just being replaced
            found.append(record)
    return tuple(sorted(found, key=lambda record: record.set_aside_ns))
