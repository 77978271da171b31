"""What it costs to claim a message and to acknowledge it, where nobody else wants it.

*In Python.* One process publishes a round of messages; then a member of a group reads it, and an
ordinary reader, each with read(0), each message checked. Asking for the next message acknowledges
the last. What the member takes longer is the cost.

*In C.* A ring is filled once. A program takes each message as a member, from the oldest on, checks
it and acknowledges it; beside it stands the reader of `native`. Here the figure is the whole CPU
time per message, not what goes beyond reading.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from ringcast.shm import broadcast, group

from . import native
from .errors import RunFailedError
from .figures import Figure, Samples, samples_of
from .one_process import in_child, in_turns
from .payloads import contents, last_word, words_unpacker
from .processes import Channel
from .transports.sharing import GROUP

SIZE: Final = native.SIZE
COST_NS_MOST: Final = 150.0
"""What claiming and acknowledging may cost, beyond reading; in C with it."""
_PROGRAM: Final = Path(__file__).with_name("native_group.c")
_MEMBER: Final = "member.read(0)"
_READER: Final = "reader.read(0)"

Run = Callable[[], dict[str, float]]


def _claiming(channel: Channel, name: str, seconds: float) -> None:
    """Publish and read in turns. Reports ns per message of each."""
    payloads = contents(SIZE).payloads
    unpack = words_unpacker(SIZE)
    due = [(i, last_word(i)) for i in range(len(payloads))]
    with (
        broadcast.Writer.create(name) as writer,
        group.Member.attach(name, GROUP) as member,
        broadcast.Reader.attach(name) as reader,
    ):

        def read_all(read: Callable[[float], Any]) -> None:
            for expected in due:
                if unpack(read(0)) != expected:
                    raise RunFailedError(f"another message came than {expected}")

        def publish() -> None:
            writer.publish_many(payloads)

        spent = in_turns(
            {
                "publish": publish,
                _MEMBER: partial(read_all, member.read),
                _READER: partial(read_all, reader.read),
            },
            seconds,
        )
        if member.read(0) is not None or reader.read(0) is not None:
            raise RunFailedError("there is a message after the last one")
    count = len(payloads)
    channel.send({f"claim: {how}": spent[how] / count for how in (_MEMBER, _READER)})


def _in_c(seconds: float, what: str, program: Path | None, filler: Path) -> dict[str, float]:
    found = native.filled(seconds, native.NATIVE, program, filler)
    return {f"claim: {what}, in C": value * 1e9 for value in found.values()}


@contextlib.contextmanager
def runs(seconds: float) -> Iterator[list[Run]]:
    """The runs, for `figures.interleave`, while the programs in C are there."""
    contents(SIZE)
    with (
        native.compiled(_PROGRAM) as member,
        native.compiled(*native.READER) as reader,
        tempfile.NamedTemporaryFile(prefix="ringcast-bench-") as file,
    ):
        file.write(contents(SIZE).filler)
        file.flush()
        found: list[Run] = [partial(in_child, _claiming, seconds)]
        if member is not None:
            filler = Path(file.name)
            found += [
                partial(_in_c, seconds, "member", member, filler),
                partial(_in_c, seconds, "reader", reader, filler),
            ]
        yield found


def figures(found: Samples) -> list[Figure]:
    """The figures of the samples that the runs gave."""
    claim = samples_of(found, "claim")
    beyond = tuple(a - b for a, b in zip(claim[_MEMBER], claim[_READER], strict=True))
    return [
        Figure("member.read(0) beyond reader.read(0)", "ns", beyond, COST_NS_MOST, "smaller"),
        *(
            Figure(name, "ns", tuple(values), COST_NS_MOST, "smaller")
            if name == "member, in C"
            else Figure(name, "ns", tuple(values))
            for name, values in claim.items()
        ),
    ]
