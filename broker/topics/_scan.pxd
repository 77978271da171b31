# cython: language_level=3
"""The native scanner as Cython sees it, and what `Ingest` needs of a finder; see _scan.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "names.h" nogil:
    int RT_NAME_MAX, RT_COPY, RT_NAMES_MAX

    ctypedef enum rt_what:
        RT_UNNAMED, RT_UNUSABLE, RT_IS_CONTROL, RT_NAMED, RT_NEW, RT_OVERFLOWED, RT_KNOWN, RT_FAILED
        RT_IS_ANSWER

    ctypedef struct rt_found:
        uint64_t key
        uint32_t topic, length
        rt_what what
        uint8_t *name

    ctypedef struct rt_way:
        pass

    ctypedef enum rt_kind:
        RT_TOPIC, RT_KEY, RT_CONTROL, RT_ANSWER

    ctypedef struct rt_error:
        const char *why
        uint64_t at

    ctypedef struct rt_patterns:
        uint32_t *count

    ctypedef struct rt_names:
        uint32_t count, max

    const rt_way *rt_best_way()
    void rt_patterns_begin(rt_patterns *)
    int rt_patterns_add(rt_patterns *, rt_kind, const uint8_t *, uint64_t, rt_error *)
    void rt_find(const rt_patterns *, const rt_way *, const uint8_t *, uint64_t, rt_found *)
    int rt_locate(const rt_patterns *, const rt_way *, const uint8_t *, uint64_t, uint64_t *begin,
                  uint64_t *end)
    void rt_found_nothing(rt_found *, rt_what)
    int rt_names_make(rt_names *, uint32_t, uint64_t)
    void rt_names_free(rt_names *)
    void rt_names_forget(rt_names *)
    void rt_names_look(const rt_names *, rt_found *, int has_key)
    int rt_names_put(rt_names *, const uint8_t *, uint32_t, uint32_t, uint64_t)

cdef extern from "request_ids.h" nogil:
    uint64_t rt_request_id(uint32_t slot, uint64_t generation, uint64_t counter)
    uint64_t rt_read_request_id(const uint8_t *, uint64_t)
    uint32_t rt_request_slot(uint64_t)
    uint32_t rt_request_generation(uint64_t)
    uint32_t rt_request_counter(uint64_t)
    int rt_request_is_of(uint64_t, uint64_t generation)
    int RT_COUNTER_BITS, RT_GENERATION_BITS, RT_SLOT_BITS

cdef extern from "hash.h" nogil:
    uint64_t rc_hash(const uint8_t *, uint64_t, uint64_t)


cdef class Finder:
    cdef rt_names names
    cdef uint64_t *counts  # by rt_what: as what messages were published
    cdef bint has_keys  # found in the message, not in the map
    cdef object interruption
    cdef void find(self, object owner, const uint8_t *payload, uint64_t n,
                   rt_found *found) noexcept nogil
    cdef void look(self, rt_found *found) noexcept nogil
    cdef int raise_interruption(self) except -1
