"""Types of the native module; what the methods do stands in _scan.pyx and in help()."""

from collections.abc import Sequence
from typing import Self

from typing_extensions import Buffer

from .found import Found
from .patterns import TopicFunction

class Finder:
    @property
    def names_known(self) -> int: ...
    @property
    def unnamed(self) -> int: ...
    @property
    def unusable(self) -> int: ...
    @property
    def overflowed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    def scan(self, payload: Buffer) -> Found: ...
    def name(self, raw: bytes, topic: int, key: int) -> None: ...
    def forget_names(self) -> None: ...

class Scanner(Finder):
    def __new__(
        cls,
        topic: Sequence[str],
        *,
        key: Sequence[str] = (),
        control: Sequence[str] = (),
        names_max: int,
    ) -> Self: ...
    def scan_all(self, payloads: list[bytes], repeat: int = 1) -> int: ...

class FunctionScanner(Finder):
    def __new__(cls, function: TopicFunction, *, names_max: int) -> Self: ...
    @property
    def first_error(self) -> str | None: ...
