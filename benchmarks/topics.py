"""What it costs to read some topics of a ring, beside reading everything; and what waking costs.

*Skipping.* One process fills a ring of default size and takes what it wants of it, the last message
alone: in a batch, or by read(). Beside it, batches of all messages, each message checked. The ring
is filled before each turn, so its descriptors lie in the caches as far as they fit.

*Paced.* A writer publishes messages of many topics in turn, each when it is due, and late ones at
once. Readers want one topic each, or everything, and read one by one. The figures are CPU times: of
all readers, and of the writer in publish(), without its waiting for the time. At 100,000 messages
per second the writer watches the clock; at 10,000 it sleeps in between, because its readers need
the cores.

*Nothing wanted.* One reader that wants nothing of what comes is attached and asleep. The writer
first publishes as fast as it can, then at half that rate. The figures are how often the reader was
woken per eighth of the ring, and how often the writer found the ring full, which is when it would
wait.

*Finding topics.* The scanner alone is described in `topics_scan`, a manager with it in
`topics_manager`.

*Waking.* What 16 readers of everything cost the writer, as in `growth`; and round trips as in
`latency`, with both sides on one core, where a side that waits keeps the other from answering as
long as it spins.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ringcast.shm import broadcast

from . import growth, latency, topics_manager, topics_scan
from .errors import RunFailedError
from .figures import Figure, Samples, figures_of, interleave, ratio, samples_of
from .one_process import in_child, in_turns
from .payloads import Checker, Contents, Words, contents, last_word, words_unpacker
from .processes import Channel, child_processes
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .transports import Transport, Usage
from .transports.rings import Ring, batches
from .transports.stdlib import UnixSeqpacket, UnixStream

SIZE: Final = 128
ROUND: Final = 4800
"""Number of different messages: a multiple of the number of topics in each case."""
LAST: Final = "last"
"""The topic of the message that ends a flow. Every reader wants it."""
OTHER: Final = "other"
WATCH_PERIOD_NS: Final = 50_000
"""A writer that waits less than this for the next message to be due watches the clock."""
CHUNK: Final = 64
"""Number of messages that are due at once where a writer keeps to half of its flood rate."""
FLOOD_SHARE: Final = 0.5

SKIP_NS_MOST: Final = 3.0
RARE_COST: Final = 0.05
"""What a reader that wants one message in a hundred may cost, as a share of one that reads all."""
ONE_OF_16_COST: Final = 1 / 6
WRITER_COST: Final = 1.0
NUDGES: Final = 8
"""A reader that wants nothing is woken at most so often in each round of the ring."""
SOCKET_COST: Final = 1.2
"""How many times as long as a Unix socket's a round trip on one core may take."""
READERS: Final = 16


def _flow_contents() -> Contents:
    return contents(SIZE, ROUND)


# ---- skipping ------------------------------------------------------------------------------


def _skipping(channel: Channel, name: str, seconds: float, how: str) -> None:
    """Fill a ring and read it, in turns. Reports ns per message of the reading."""
    what = contents(SIZE)
    mark = what.mark(0)
    checker = Checker(what, lossy=False)
    with broadcast.Writer.create(name) as writer:
        other, last = writer.topic(OTHER), writer.topic(LAST)
        topics = None if how == "all" else [LAST]
        with broadcast.Reader.attach(name, topics=topics) as reader:

            def fill() -> None:
                for _ in range(writer.slots // len(what.payloads) - 1):
                    writer.publish_many(what.payloads, topic=other)
                writer.publish_many(what.payloads[:-1], topic=other)
                writer.publish(mark, topic=last)

            def take_batch() -> None:
                with reader.batch() as batch:
                    _check_last([batch.payload(i) for i in range(len(batch))], mark)

            def take_one() -> None:
                _check_last([reader.read()], mark)

            def take_all() -> None:
                checker.read_batches(batches(reader), 0)

            def give_room() -> None:
                if reader.read_available():
                    raise RunFailedError("there is a message after the last one")

            take = {"batch": take_batch, "read": take_one, "all": take_all}[how]
            spent = in_turns({"fill": fill, "take": take, "give room": give_room}, seconds)
            if how != "all" and reader.skipped != reader.received * (writer.slots - 1):
                raise RunFailedError(f"{reader.skipped} were skipped, not all but the last")
            channel.send({f"skip: {how}": spent["take"] / writer.slots})


def _check_last(found: Sequence[Any], mark: bytes) -> None:
    if [bytes(message) for message in found] != [mark]:
        raise RunFailedError(f"other messages came than the one that is wanted: {found[:4]}")


# ---- paced ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A flow of messages that belong to topics in turn.

    Attributes:
        readers: their number. Reader k wants topic k, or they all want everything.
        topics: number of topics.
        rate: messages per second; None for as fast as possible.
        readers_floor: the most that choosing readers may use of the CPU time of those that get all.
        writer_floor: likewise for the writer's.
    """

    readers: int
    topics: int
    rate: int | None
    readers_floor: float | None = None
    writer_floor: float | None = None

    @property
    def name(self) -> str:
        """How tables name this case."""
        what = f"{self.readers} of 1/{self.topics}"
        return f"{what}, at {self.rate:,} per second" if self.rate else f"{what}, flood"


CASES: Final = (
    Case(1, 100, 100_000, RARE_COST),
    Case(READERS, READERS, 10_000, ONE_OF_16_COST, WRITER_COST),
    Case(READERS, READERS, 100_000),
    Case(READERS, READERS, None),
)
BRIEF_CASES: Final = CASES[:2]


def topic_name(number: int) -> str:
    """The name of a topic of a flow."""
    return f"topic-{number}"


def check_messages(messages: Iterable[Any], due: Sequence[Words], mark: bytes) -> int:
    """Read messages until the mark. Returns how many came before it.

    Args:
        messages: of which each is compared by its first and last word.
        due: the words of a round of messages, which come over and over.
        mark: the last message.

    Raises:
        RunFailedError: another message came than the one that is due.
    """
    unpack = words_unpacker(SIZE)
    for received, (item, expected) in enumerate(zip(messages, itertools.cycle(due), strict=False)):
        if unpack(item) != expected:
            if bytes(item) == mark:
                return received
            raise RunFailedError(
                f"after {received} messages, number {expected[0]} of the round is due, and this"
                f" came: {bytes(item)[:64]!r}"
            )
    raise RunFailedError("the messages ended before their mark")


def pauses(rate: int | None, step: int, seconds: float) -> Iterator[None]:
    """Wait until the next `step` messages are due, over and over, for so many seconds."""
    clock = time.perf_counter_ns
    began = clock()
    end = began + int(seconds * 1e9)
    for number in itertools.count():
        if rate is None:
            now = clock()
        else:
            due = began + number * step * 10**9 // rate
            while (now := clock()) < due:
                if due - now >= WATCH_PERIOD_NS:
                    time.sleep((due - now) / 1e9)
        if now >= end:
            return
        yield


def _write(channel: Channel, name: str, case: Case, seconds: float) -> None:
    """Publish a flow. Reports how many messages that were and the CPU time in publish()."""
    clock = time.process_time_ns
    what = _flow_contents()
    with broadcast.Writer.create(name) as writer:
        publish = writer.publish
        topics = [writer.topic(topic_name(number)) for number in range(case.topics)]
        last = writer.topic(LAST)
        items = list(zip(what.payloads, itertools.cycle(topics), strict=False))
        step = 1 if case.rate else CHUNK
        chunks = itertools.cycle(items[i : i + step] for i in range(0, len(items), step))
        channel.send()
        channel.receive()  # the readers are attached
        cpu_ns = sent = 0
        for _ in pauses(case.rate, step, seconds):
            chunk = next(chunks)
            before = clock()
            for payload, topic in chunk:
                publish(payload, topic=topic)
            cpu_ns += clock() - before
            sent += len(chunk)
        publish(what.mark(0), topic=last)
        channel.send({"sent": sent, "cpu": cpu_ns / 1e9})
        channel.receive()  # all have read


def _read(channel: Channel, name: str, case: Case, wanted: int | None) -> None:
    """Read one topic of a flow, or everything. Reports how many messages came and the CPU time."""
    what = _flow_contents()
    of_all = [(number, last_word(number)) for number in range(ROUND)]
    due = of_all if wanted is None else of_all[wanted :: case.topics]
    topics = None if wanted is None else [topic_name(wanted), LAST]
    with broadcast.Reader.attach(name, topics=topics) as reader:
        channel.send()
        used = Usage.own()
        received = check_messages(reader, due, what.mark(0))
        used = Usage.own() - used
        channel.send({"received": received, "skipped": reader.skipped, "cpu": used.cpu_s})


def paced(case: Case, chooses: bool, seconds: float) -> dict[str, float]:
    """Measure the CPU time in s of a flow: of all its readers together, and of its writer in
    publish(), per message in us.

    Args:
        case: the flow.
        chooses: whether each reader wants a topic of its own; otherwise each wants everything.
        seconds: for which it lasts.

    Raises:
        RunFailedError: a reader did not get exactly what it wants, or a process failed.
    """
    _flow_contents()
    with temporary_ring_name() as name, child_processes(seconds) as children:
        writer = children.start(_write, name, case, seconds)
        writer.receive()
        readers = [
            children.start(_read, name, case, number if chooses else None)
            for number in range(case.readers)
        ]
        for reader in readers:
            reader.receive()
        writer.send()
        flow = writer.receive()
        sent = flow["sent"]
        found = [reader.receive() for reader in readers]
        for number, one in enumerate(found):
            wanted = len(range(number, sent, case.topics)) if chooses else sent
            if (one["received"], one["skipped"]) != (wanted, sent - wanted):
                raise RunFailedError(
                    f"reader {number} got {one['received']} of {wanted} messages and skipped"
                    f" {one['skipped']}, of {sent} that were sent"
                )
        writer.send()
    who = "choose" if chooses else "all"
    return {
        f"readers {who}: {case.name}": sum(one["cpu"] for one in found) / sent * 1e6,
        f"writer {who}: {case.name}": flow["cpu"] / sent * 1e6,
    }


# ---- nothing wanted ------------------------------------------------------------------------


def _publish_unwanted(
    writer: broadcast.Writer, topic: int, rate: int | None, seconds: float
) -> dict[str, float]:
    """Publish in chunks. Returns how many messages that were, how often the ring was full, and the
    seconds it took."""
    payloads = _flow_contents().payloads
    try_publish = writer.try_publish
    sent = full = 0
    began = time.perf_counter()
    for _ in pauses(rate, CHUNK, seconds):
        for payload in payloads[:CHUNK]:
            if try_publish(payload, topic=topic) is None:
                full += 1
                writer.publish(payload, topic=topic)
        sent += CHUNK
    return {"sent": sent, "full": full, "seconds": time.perf_counter() - began}


def _write_unwanted(channel: Channel, name: str, seconds: float) -> None:
    mark = _flow_contents().mark
    with broadcast.Writer.create(name) as writer:
        other, last = writer.topic(OTHER), writer.topic(LAST)
        channel.send(writer.slots)
        channel.receive()  # the reader is attached
        flood = _publish_unwanted(writer, other, None, seconds)
        writer.publish(mark(0), topic=last)
        channel.receive()  # it has read the mark
        rate = int(flood["sent"] / flood["seconds"] * FLOOD_SHARE)
        half = _publish_unwanted(writer, other, rate, seconds)
        writer.publish(mark(1), topic=last)
        channel.send([flood, half])
        channel.receive()  # it has read that mark


def _read_unwanted(channel: Channel, name: str) -> None:
    """Read the marks alone. Reports, for each phase, how many messages were skipped and how often
    this process has slept."""
    mark = _flow_contents().mark
    with broadcast.Reader.attach(name, topics=[LAST]) as reader:
        skipped = 0
        channel.send()
        for phase in range(2):
            slept = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
            _check_last([reader.read()], mark(phase))
            slept = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - slept
            channel.send({"skipped": reader.skipped - skipped, "slept": slept})
            skipped = reader.skipped


def nothing_wanted(seconds: float) -> dict[str, float]:
    """Measure how often a reader that wants nothing is woken, and how often its writer is held up.

    Raises:
        RunFailedError: the reader got another message, or a process failed.
    """
    _flow_contents()
    with temporary_ring_name() as name, child_processes(2 * seconds) as children:
        writer = children.start(_write_unwanted, name, seconds)
        slots = writer.receive()
        reader = children.start(_read_unwanted, name)
        reader.receive()
        writer.send()
        read = [reader.receive()]
        writer.send()
        read.append(reader.receive())
        written = writer.receive()
        writer.send()
    found = {}
    for rate, one, flow in zip(("flood", "half of it"), read, written, strict=True):
        if one["skipped"] != flow["sent"]:
            raise RunFailedError(f"{flow['sent']} messages were sent, {one['skipped']} skipped")
        found[f"woken: {rate}"] = one["slept"] / flow["sent"] * (slots / NUDGES)
        found[f"full: {rate}"] = flow["full"]
    return found


# ---- waking --------------------------------------------------------------------------------


def _on_one_core(transport: type[Transport], seconds: float) -> dict[str, float]:
    found = latency.round_trips(transport, SIZE, seconds, "block", "together")
    return {f"one core: {transport.name}": found["mean"]}


# ---- the scenario --------------------------------------------------------------------------


def _paced_ratios(found: Samples, cases: Sequence[Case], who: str) -> list[Figure]:
    choose, everything = (samples_of(found, f"{who} {how}") for how in ("choose", "all"))
    floors = {
        case.name: case.readers_floor if who == "readers" else case.writer_floor for case in cases
    }
    return [ratio(n, choose[n], everything[n], floors[n], "smaller") for n in floors]


def _paced_times(found: Samples, who: str) -> list[Figure]:
    return figures_of(
        {
            f"{name} | {title}": values
            for how, title in (("choose", "choosing"), ("all", "everything"))
            for name, values in samples_of(found, f"{who} {how}").items()
        },
        "us",
    )


def _one_core_ratios(found: Samples) -> list[Figure]:
    times = samples_of(found, "one core")
    return [
        ratio(
            f"ringcast / {socket.name}",
            times[Ring.name],
            times[socket.name],
            SOCKET_COST,
            "smaller",
        )
        for socket in (UnixStream, UnixSeqpacket)
    ]


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a reader did not get exactly what it wants, or a process failed.
    """
    seconds = plan.seconds
    cases = BRIEF_CASES if plan.brief else CASES
    runs: list[Callable[[], Mapping[str, float]]] = [
        *(partial(in_child, _skipping, seconds, how) for how in ("batch", "read", "all")),
        *(partial(paced, case, chooses, seconds) for case in cases for chooses in (True, False)),
        partial(nothing_wanted, seconds),
        *(partial(growth.writer_cost, seconds, readers, False) for readers in (1, READERS)),
        *topics_scan.runs(seconds, plan.captures),
        *(partial(topics_manager.run_alone, seconds, topics=on) for on in (False, True)),
        *(partial(_on_one_core, t, seconds) for t in (Ring, UnixStream, UnixSeqpacket)),
    ]
    contents(SIZE)
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    skip, woken = samples_of(found, "skip"), samples_of(found, "woken")
    cost, full = samples_of(found, "readers"), samples_of(found, "full")
    groups: dict[str, Sequence[Figure]] = {
        **topics_scan.groups(found),
        **topics_manager.groups(found),
        "time per message of a filled ring": [
            Figure("skip, in a batch", "ns", tuple(skip["batch"]), SKIP_NS_MOST, "smaller"),
            Figure("skip, by read()", "ns", tuple(skip["read"])),
            Figure("read all, in batches, with its check", "ns", tuple(skip["all"])),
        ],
        "readers' CPU time, choosing / everything": _paced_ratios(found, cases, "readers"),
        "writer's CPU time in publish(), choosing / everything": _paced_ratios(
            found, cases, "writer"
        ),
        "CPU time of all readers per message sent": _paced_times(found, "readers"),
        "writer's CPU time per publish()": _paced_times(found, "writer"),
        "a reader that wants nothing: times woken per eighth of the ring": [
            Figure(rate, "", tuple(values)) for rate, values in woken.items()
        ],
        "a reader that wants nothing: times that the writer found the ring full": [
            Figure("flood", "", tuple(full["flood"])),
            Figure("half of it", "", tuple(full["half of it"]), 0, "smaller"),
        ],
        "writer's CPU time per publish(), 16 readers / 1 reader": [
            ratio(
                "16 / 1, reading",
                cost[f"reading | {READERS}"],
                cost["reading | 1"],
                growth.COST_16,
                "smaller",
            )
        ],
        "round trip, both sides on one core": _one_core_ratios(found),
        "one way, half a round trip, both sides on one core": figures_of(
            samples_of(found, "one core"), "us"
        ),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE}
    return Report("topics", parameters, machine, groups)
