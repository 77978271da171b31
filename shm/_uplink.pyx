# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""An uplink's segment as a Python object: made, opened, and looked at. The bytes are in
native/uplink_layout.h.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_ACTIVE, RC_EVICTED, RC_FREE, RC_LANE_MAX, RC_LANE_MIN, RC_LOCK_LANE,
    RC_LOCK_RECEIVER, RC_LOOKING, RC_READING, RC_RING_CLOSED, RC_SENDERS_MAX, is_finalizing,
    rc_access, rc_clock_ns, rc_error, rc_lane, rc_load_u32, rc_load_u64, rc_uplink, rc_uplink_fits,
    rc_uplink_format, rc_uplink_geometry, rc_uplink_message_limit, rc_uplink_open, rc_uplink_seal,
    rc_uplink_size, rc_uplink_tickets, rc_uplink_unmap, write,
)
from ringcast.shm._endpoint cimport NewMapping, error_of, label_text, owner_of

from .counters import LaneCounters, UplinkCounters
from .errors import RingCorrupt

LOCK_RECEIVER = RC_LOCK_RECEIVER
LOCK_LANE = RC_LOCK_LANE
FREE = RC_FREE
ACTIVE = RC_ACTIVE
EVICTED = RC_EVICTED
SENDERS_MAX = RC_SENDERS_MAX
LANE_MIN = RC_LANE_MIN
LANE_MAX = RC_LANE_MAX


def check_sizes(uint32_t max_senders, uint64_t lane_bytes) -> None:
    """Raise ValueError for sizes that no uplink can have."""
    if not 1 <= max_senders <= <uint32_t>RC_SENDERS_MAX:
        raise ValueError(f"max_senders={max_senders} is not from 1 to {RC_SENDERS_MAX}")
    if not rc_uplink_fits(1, lane_bytes):
        raise ValueError(f"lane_bytes={lane_bytes} is not a power of two from {RC_LANE_MIN} to"
                         f" {RC_LANE_MAX}")
    if not rc_uplink_fits(max_senders, lane_bytes):
        raise ValueError(f"{max_senders} lanes of {lane_bytes} bytes are too much: make"
                         " max_senders or lane_bytes smaller")


cdef void fill_geometry(rc_uplink_geometry *g, uint32_t max_senders, uint64_t lane_bytes) noexcept:
    memset(g, 0, sizeof(rc_uplink_geometry))
    g.max_senders = max_senders
    g.lane_bytes = lane_bytes
    g.tickets = rc_uplink_tickets(max_senders, lane_bytes)
    g.max_message = rc_uplink_message_limit(lane_bytes)


def segment_size(uint32_t max_senders, uint64_t lane_bytes) -> int:
    """Bytes of an uplink's segment."""
    cdef rc_uplink_geometry g
    fill_geometry(&g, max_senders, lane_bytes)
    return rc_uplink_size(&g)


def format_uplink(NewMapping mapping not None, uint32_t max_senders, uint64_t lane_bytes,
                  uint64_t instance) -> None:
    """Write the header of a new, zeroed uplink; the magic last."""
    cdef rc_uplink_geometry g
    fill_geometry(&g, max_senders, lane_bytes)
    g.instance = instance
    if mapping.size != rc_uplink_size(&g):
        raise ValueError("the mapping does not have the size of such an uplink")
    rc_uplink_format(mapping.address, &g, rc_clock_ns(CLOCK_REALTIME))
    rc_uplink_seal(mapping.address)


@cython.final
cdef class Uplink:
    """An uplink's segment, checked and mapped until nothing refers to this object.

    Args:
        name: the uplink's.
        access: "look": it is not mapped for writing; "write".
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: it does not pass.
    """

    def __cinit__(self, str name not None, str access not None, owner):
        cdef rc_error error
        cdef rc_access how = RC_READING if access == "write" else RC_LOOKING
        if rc_uplink_open(&self.c, name.encode(), how, owner_of(owner), &error):
            raise error_of(&error)
        self.name = name

    def __dealloc__(self):
        if self.c.segment.address != NULL and not is_finalizing():  # as for Segments
            rc_uplink_unmap(&self.c)

    @property
    def instance(self) -> int:
        return self.c.map.g.instance

    @property
    def tickets(self) -> int:
        return self.c.map.g.tickets

    @property
    def lane_bytes(self) -> int:
        return self.c.map.g.lane_bytes

    @property
    def max_message(self) -> int:
        return self.c.map.g.max_message

    @property
    def max_senders(self) -> int:
        return self.c.map.g.max_senders

    def counters(self):
        """An `UplinkCounters`."""
        cdef rc_uplink *u = self.c.map.shared
        return UplinkCounters(rc_load_u32(&u.state) == RC_RING_CLOSED, rc_load_u32(&u.epoch),
                              rc_load_u64(&u.receiver_pid), rc_load_u64(&u.head),
                              rc_load_u64(&u.flushed), rc_load_u64(&u.tail))

    def lane_counters(self, uint32_t index):
        """A `LaneCounters`."""
        if index >= self.c.map.g.max_senders:
            raise IndexError(f"the uplink has {self.c.map.g.max_senders} lanes")
        cdef rc_lane *lane = &self.c.map.shared.lanes[index]
        cdef uint64_t pending = rc_load_u64(&lane.written) - rc_load_u64(&lane.taken)
        return LaneCounters(
            rc_load_u64(&lane.state) & 0xff, rc_load_u32(&lane.pid), rc_load_u64(&lane.joined_ns),
            label_text(lane.label), rc_load_u64(&lane.sent), rc_load_u64(&lane.taken_count),
            rc_load_u64(&lane.done_count), rc_load_u64(&lane.rejected),
            rc_load_u64(&lane.unconfirmed), min(pending, self.c.map.g.lane_bytes))
