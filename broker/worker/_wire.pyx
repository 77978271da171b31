# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The walk over the records of a frame: wire.py says what a record is.

Where a record begins follows from the sizes of all before it, so the walk can't be numpy's; in
Python it takes longer than all else that is done with a record.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy

cdef enum:
    HEADER = 64
    TOTAL = 48
    OFFSET = 52
    ZERO = 60

WHOLE, TRUNCATED, LATER, IMPOSSIBLE = range(4)


cdef uint32_t u32(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8 | <uint32_t>at[2] << 16 | <uint32_t>at[3] << 24


cdef int look(const uint8_t *header, uint64_t left, uint32_t payload_max) noexcept nogil:
    """What is wrong with a record that `left` bytes are there for."""
    if left < HEADER:
        return 1
    if u32(header + ZERO) != 0:
        return 2
    cdef uint64_t size = u32(header)
    cdef uint32_t total = u32(header + TOTAL)
    if size + u32(header + OFFSET) > total or total > payload_max:
        return 3
    return 1 if size > left - HEADER else 0


def scan(const uint8_t[::1] data not None, uint32_t payload_max) -> tuple:
    """Of the records that stand at the beginning of `data`: their headers, as an array of so many
    rows of 64 bytes; where their payloads begin; what is wrong with the record after them (WHOLE:
    there is none); and where that stands."""
    cdef uint64_t end = data.shape[0]
    cdef const uint8_t *start = &data[0] if end else NULL
    cdef uint64_t at = 0
    cdef Py_ssize_t count = 0
    cdef int wrong = 0
    cdef Py_ssize_t i
    with nogil:
        while at < end:
            wrong = look(start + at, end - at, payload_max)
            if wrong:
                break
            at += HEADER + u32(start + at)
            count += 1
    headers = numpy.empty((count, HEADER), dtype=numpy.uint8)
    starts = numpy.empty(count, dtype=numpy.int64)
    cdef uint8_t[:, ::1] to = headers
    cdef int64_t[::1] place = starts
    cdef uint64_t after = at
    at = 0
    for i in range(count):
        # The size is read from the copy: who shares the buffer may have changed it meanwhile.
        memcpy(&to[i, 0], start + at, HEADER)
        place[i] = at + HEADER
        at += HEADER + u32(&to[i, 0])
        if at > after:
            return headers[:i], starts[:i], TRUNCATED, place[i] - HEADER
    return headers, starts, wrong, after
