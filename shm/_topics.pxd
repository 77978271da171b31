# cython: language_level=3
"""Hashing, the topic table and waiting for wishes; see _topics.pyx."""

from libc.stdint cimport uint64_t

from ringcast.shm._core cimport rc_flag, rc_ring, sem_t
from ringcast.shm._endpoint cimport Semaphores

cdef uint64_t hash_of(bytes data) noexcept
cdef list rows_of(rc_ring *ring)


cdef class WishWatch:
    cdef Semaphores semaphores
    cdef sem_t *posted
    cdef rc_flag closing
