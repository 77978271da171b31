# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""Finding the topic of a message: pointer.h with its patterns, or a Python function, and the map
from names to topics (names.h)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import os

from .found import Found, RequestId, What

cdef enum:
    KINDS_OF_FOUND = RT_IS_ANSWER + 1

cdef tuple KIND_NAMES = ("topic", "key", "control", "answer")

REQUEST_COUNTERS = 1 << RT_COUNTER_BITS


@cython.final
cdef class Payload:
    """A payload as a function sees it, read-only. `owner` keeps its memory."""

    cdef object owner
    cdef uint8_t *address
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 1, flags)


cdef class Finder:
    """What `Scanner` and `FunctionScanner` have in common: a bounded map from names to topics, and
    counters.

    A name that is new is reported once; who is told calls `name`. When the map is full, other names
    are no topic.
    """

    def __cinit__(self, *_, uint32_t names_max, **__):
        if not 1 <= names_max <= RT_NAMES_MAX:
            raise ValueError(f"names_max is {names_max}; it must be 1 to {RT_NAMES_MAX}")
        self.counts = <uint64_t *>calloc(KINDS_OF_FOUND, sizeof(uint64_t))
        if self.counts == NULL or not rt_names_make(&self.names, names_max,
                                                    int.from_bytes(os.urandom(8))):
            raise MemoryError

    def __dealloc__(self):
        rt_names_free(&self.names)
        free(self.counts)

    def __init__(self, *_, **__):
        raise TypeError("make a Scanner or a FunctionScanner")

    cdef void find(self, object owner, const uint8_t *payload, uint64_t n,
                   rt_found *found) noexcept nogil:
        """What a payload is, with the map looked at. `owner` keeps the payload's memory."""

    cdef void look(self, rt_found *found) noexcept nogil:
        """Look at the map, for a name that was found or was new before."""
        rt_names_look(&self.names, found, self.has_keys)

    cdef int raise_interruption(self) except -1:
        """Raise what has interrupted the function, such as KeyboardInterrupt."""
        interruption = self.interruption
        if interruption is not None:
            self.interruption = None
            raise interruption
        return 0

    def scan(self, payload) -> Found:
        """Look at one payload and count it, as if it were published."""
        cdef Py_buffer view
        cdef rt_found found
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.find(payload, <const uint8_t *>view.buf, view.len, &found)
        finally:
            PyBuffer_Release(&view)
        self.raise_interruption()
        self.counts[<int>found.what] += 1
        name = PyBytes_FromStringAndSize(<char *>found.name, found.length) if found.length else None
        return Found(What(<int>found.what), name, found.topic, found.key)

    def name(self, bytes raw not None, uint32_t topic, uint64_t key) -> None:
        """Say what topic a name is, for all messages with it that come.

        Args:
            raw: the name as it was found, 1 to 127 bytes.
            topic: its id; 0 for none.
            key: its messages' key, unless there are patterns for keys.

        Raises:
            ValueError: the name is empty or too long.
            RuntimeError: the map is full.
        """
        if not 1 <= len(raw) <= RT_NAME_MAX:
            raise ValueError(f"a name of {len(raw)} bytes; it must have 1 to {RT_NAME_MAX}")
        if not rt_names_put(&self.names, <const uint8_t *><char *>raw, <uint32_t>len(raw), topic,
                            key):
            raise RuntimeError(f"the map has its {self.names.max} names already")

    def forget_names(self) -> None:
        """Empty the map: every name is new again."""
        rt_names_forget(&self.names)

    @property
    def names_known(self) -> int:
        """Names in the map."""
        return self.names.count

    @property
    def unnamed(self) -> int:
        """Messages without a name: no pattern has all its values, or it is no JSON."""
        return self.counts[<int>RT_UNNAMED]

    @property
    def unusable(self) -> int:
        """Messages whose name is empty, not UTF-8 or longer than 127 bytes."""
        return self.counts[<int>RT_UNUSABLE]

    @property
    def overflowed(self) -> int:
        """Messages whose name is not in the map, which was full."""
        return self.counts[<int>RT_OVERFLOWED]

    @property
    def failed(self) -> int:
        """Messages for which the function raised, or returned neither a name nor None."""
        return self.counts[<int>RT_FAILED]


@cython.final
cdef class Scanner(Finder):
    """Finds topics by JSON pointers; pointer.h and patterns.h say all the rules.

    Args:
        topic: patterns such as "{/arg/channel}:{/arg/instId}"; the first whose values are all there
            wins.
        key: patterns whose joined string is hashed (XXH64, seed 0) to a message's key; without any,
            it is what `name` was given. No value, or more than 1023 bytes: the key 0.
        control: patterns of messages for the manager itself, such as "{/event}=bts:*": the joined
            string must look like what follows the first =, where * stands for anything.
        answer: a JSON pointer: messages that have an id of ours there (request_ids.h) are answers.
        names_max: names in the map, at most.

    Raises:
        ValueError: a pattern is wrong; the message says which, where and why.
    """

    cdef rt_patterns *patterns
    cdef const rt_way *way

    def __cinit__(self, *_, **__):
        self.patterns = <rt_patterns *>malloc(sizeof(rt_patterns))
        if self.patterns == NULL:
            raise MemoryError
        rt_patterns_begin(self.patterns)
        self.way = rt_best_way()

    def __dealloc__(self):
        free(self.patterns)

    def __init__(self, topic, *, key=(), control=(), str answer=None, uint32_t names_max):
        rt_patterns_begin(self.patterns)
        answers = () if answer is None else ("{" + answer + "}",)
        for kind, patterns in enumerate((topic, key, control, answers)):
            if isinstance(patterns, str):
                raise TypeError(f"{KIND_NAMES[kind]} is a sequence of patterns, not one pattern")
            for pattern in patterns:
                self.add(kind, pattern)
        self.has_keys = self.patterns.count[<int>RT_KEY] > 0

    cdef int add(self, int kind, str pattern) except -1:
        cdef rt_error error
        cdef bytes text = pattern.encode("utf-8", "surrogatepass")
        if not rt_patterns_add(self.patterns, <rt_kind>kind, <const uint8_t *><char *>text,
                               len(text), &error):
            at = len(text[:error.at].decode("utf-8", "replace"))
            raise ValueError(f"{KIND_NAMES[kind]} pattern {pattern!r}, character {at + 1}:"
                             f" {error.why.decode()}")
        return 0

    cdef void find(self, object owner, const uint8_t *payload, uint64_t n,
                   rt_found *found) noexcept nogil:
        rt_find(self.patterns, self.way, payload, n, found)
        if found.what == RT_NAMED:
            rt_names_look(&self.names, found, self.has_keys)

    def locate(self, payload) -> tuple[int, int] | None:
        """Where the value lies that the only pattern of this scanner points at, a topic's of one
        pointer: the place of its first byte, and that after its last; a string with its quotes. None
        if it is not there."""
        cdef Py_buffer view
        cdef uint64_t begin = 0, end = 0
        cdef bint found
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            found = rt_locate(self.patterns, self.way, <const uint8_t *>view.buf, view.len, &begin,
                              &end)
        finally:
            PyBuffer_Release(&view)
        return (begin, end) if found else None

    def scan_all(self, list payloads not None, uint64_t repeat=1) -> int:
        """Scan all these payloads so many times, without the map and without counting, as a measure
        of speed. Returns how many had a usable name, all rounds together."""
        cdef Py_ssize_t i, n = len(payloads)
        cdef uint64_t named = 0, turn
        cdef rt_found found
        cdef bytes payload
        cdef list kept = list(payloads)  # whatever happens to the other one meanwhile
        cdef const uint8_t **starts = <const uint8_t **>malloc((n + 1) * sizeof(void *))
        cdef uint64_t *lengths = <uint64_t *>malloc((n + 1) * sizeof(uint64_t))
        try:
            if starts == NULL or lengths == NULL:
                raise MemoryError
            for i in range(n):
                payload = kept[i]
                starts[i] = <const uint8_t *><char *>payload
                lengths[i] = len(payload)
            with nogil:
                for turn in range(repeat):
                    for i in range(n):
                        rt_find(self.patterns, self.way, starts[i], lengths[i], &found)
                        named += found.what == RT_NAMED
        finally:
            free(starts)
            free(lengths)
        return named


@cython.final
cdef class FunctionScanner(Finder):
    """Finds topics by a Python function, for payloads that are not JSON.

    The function is called for each message, in the thread that receives, with a read-only
    memoryview of the payload, which is released when it returns. It returns the topic's name, or
    None. If it raises, or returns anything else, the message has no topic and is counted.

    Args:
        function: see `patterns.load_function`.
        names_max: names in the map, at most.
    """

    cdef object function
    cdef readonly str first_error

    def __init__(self, function, *, uint32_t names_max):
        if not callable(function):
            raise TypeError(f"a {type(function).__name__} is no function")
        self.function = function

    cdef void find(self, object owner, const uint8_t *payload, uint64_t n,
                   rt_found *found) noexcept nogil:
        with gil:
            try:
                self.call(owner, payload, n, found)
            except Exception as error:
                rt_found_nothing(found, RT_FAILED)
                if self.first_error is None:
                    self.first_error = f"{type(error).__name__}: {error}"
            except BaseException as error:
                rt_found_nothing(found, RT_FAILED)
                self.interruption = error
        if found.what == RT_NAMED:
            rt_names_look(&self.names, found, self.has_keys)

    cdef int call(self, object owner, const uint8_t *payload, uint64_t n,
                  rt_found *found) except -1:
        cdef Payload exporter = Payload()
        cdef bytes raw
        exporter.owner = owner
        exporter.address = <uint8_t *>payload
        exporter.size = n
        view = memoryview(exporter)
        try:
            name = self.function(view)
        finally:
            view.release()
        rt_found_nothing(found, RT_UNNAMED)
        if name is None:
            return 0
        if not isinstance(name, str):
            raise TypeError(f"the topic function returned a {type(name).__name__}, not a str or None")
        try:
            raw = name.encode()
        except UnicodeEncodeError:
            raw = b""
        found.what = RT_UNUSABLE
        if 1 <= len(raw) <= RT_NAME_MAX:
            found.what = RT_NAMED
            found.length = <uint32_t>len(raw)
            memcpy(found.name, <char *>raw, len(raw))
        return 0


def make_request_id(uint32_t slot, uint64_t generation, uint64_t counter) -> int:
    """The id of a request that the reader in a slot makes; see request_ids.h. Of generation and counter
    the low bits count."""
    if slot >= 1 << RT_SLOT_BITS:
        raise ValueError(f"slot is {slot}; it must be below {1 << RT_SLOT_BITS}")
    return rt_request_id(slot, generation, counter)


def read_request_id(bytes text not None) -> RequestId | None:
    """What an id says, given as a number is spelled, or what a string means; None if it is none of
    ours."""
    cdef uint64_t found = rt_read_request_id(<const uint8_t *><char *>text, len(text))
    if found == 0:
        return None
    return RequestId(rt_request_slot(found), rt_request_generation(found), rt_request_counter(found))
