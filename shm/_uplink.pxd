# cython: language_level=3
"""The fields of an uplink's segment; see _uplink.pyx."""

from ringcast.shm._core cimport rc_uplink_segment


cdef class Uplink:
    cdef rc_uplink_segment c
    cdef readonly str name
