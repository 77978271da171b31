"""Messages that the members of a work group share out among them, beside other ways to do so.

*Flows.* One process sends, four consumers share the messages out, as fast as they can: see
`groups_flow`. The figure is messages handled per second by all together. Each message is to be
handled exactly once (`groups_tally`). Members of a group read one by one, and asking for the next
message acknowledges the last; or in batches of up to 256, while the writer publishes 64 at a time.
The others are used as their documentation advises, with what batching they offer.

*By key.* How evenly `transports.sharing.KEYS` keys are spread over four members and over eight: the
number of messages that the busiest member handles, relative to their mean.

*A claim and its acknowledgement* alone are measured in `groups_claim`; the writer's cost, a slow
member, and waking in `groups_paced`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from . import groups_claim, groups_paced
from .figures import Figure, Samples, interleave, ratio, samples_of
from .groups_flow import share
from .groups_paced import PACES, Pace, Who
from .groups_tally import SIZE, flow_contents
from .report import Plan, Report, describe_machine
from .transports import Transport
from .transports.peers import FasterFifo, FasterFifoBatched
from .transports.servers import NatsQueue, RedisStream
from .transports.sharing import KEYS, SHARING, GroupAny, GroupBatched, GroupKey
from .transports.stdlib import Queue

CONSUMERS: Final = 4
MANY: Final = 8
FLOORS: Final[Mapping[type[Transport], float]] = {
    Queue: 20,
    FasterFifo: 3,
    RedisStream: 10,
    NatsQueue: 10,
}
"""How many times as many messages as another way a group "any" has to handle, one by one."""
BATCHES: Final = 3.0
"""How many times as many messages it has to handle in batches as one by one."""
WRITER_COST: Final = 1.1
"""What members may cost the writer, relative to ordinary readers."""
LARGEST_SHARE: Final = 1.5
"""The most messages that a member handles by key, relative to the mean."""
SLOW_FLOW_S: Final = 2.2
"""How long messages come while a member is slow, at least: it takes a second for each."""
SLOW_ROUNDS: Final = 3
BRIEF_SLOW_FLOW_S: Final = 1.2
WAKE_S: Final = 0.8
BRIEF_WAKE_S: Final = 0.4

Run = Callable[[], Mapping[str, float]]

_WHO: Final[tuple[Who, ...]] = ("members", "readers")


def _flow(transport: type[Transport], consumers: int, seconds: float) -> dict[str, float]:
    found = share(transport, consumers, seconds)
    return {f"{what} to {consumers}: {transport.name}": value for what, value in found.items()}


def _paced_runs(plan: Plan) -> list[Run]:
    wake_s = max(BRIEF_WAKE_S if plan.brief else WAKE_S, plan.seconds)
    return [
        *(
            partial(groups_paced.writer_cost, kind, pace, plan.seconds)
            for pace in PACES
            for kind in _WHO
        ),
        partial(groups_paced.wakes, wake_s),
    ]


def _available() -> tuple[list[type[Transport]], dict[str, Any]]:
    why = {transport: transport.missing() for transport in SHARING}
    missing = {transport.name: reason for transport, reason in why.items() if reason is not None}
    return [t for t in SHARING if why[t] is None], {"not measured": missing} if missing else {}


def _rate_ratios(rates: Samples) -> list[Figure]:
    one_by_one, batched = rates[GroupAny.name], rates[GroupBatched.name]
    return [
        *(
            ratio(f"any / {other.name}", one_by_one, rates[other.name], floor)
            for other, floor in FLOORS.items()
            if other.name in rates
        ),
        ratio("any, batched / any", batched, one_by_one, BATCHES),
        *(
            ratio(f"any, batched / {other.name}", batched, rates[other.name])
            for other in (FasterFifoBatched,)
            if other.name in rates
        ),
    ]


def _writer_ratio(found: Samples, pace: Pace) -> Figure:
    members, readers = (samples_of(found, f"writer {who}")[pace.name] for who in _WHO)
    return ratio(pace.name, members, readers, WRITER_COST, "smaller")


def _cpu_times(found: Samples) -> list[Figure]:
    return [
        Figure(f"{name} | {who}", "us", tuple(values))
        for who in ("sender", "consumers", "server")
        for name, values in samples_of(found, f"cpu of {who} to {CONSUMERS}").items()
        if any(values)
    ]


def _slow_figures(found: Samples) -> list[Figure]:
    slow, alone = samples_of(found, "with"), samples_of(found, "without")
    return [ratio(name, slow[name], alone[name]) for name in slow]


def _slow_values(found: Samples) -> list[Figure]:
    return [
        Figure(f"{name}, {how} the slow one", "/s" if name == "rate" else "us", tuple(values))
        for how in ("with", "without")
        for name, values in samples_of(found, how).items()
    ]


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a message was lost, doubled or wrong, or a process failed.
    """
    present, missing = _available()
    slow_s = max(BRIEF_SLOW_FLOW_S if plan.brief else SLOW_FLOW_S, plan.seconds)
    slow_runs = [partial(groups_paced.slow_member, slow, slow_s) for slow in (True, False)]
    many = () if plan.brief else (MANY,)
    flow_contents()
    machine = describe_machine()
    with groups_claim.runs(plan.seconds) as claims:
        runs: list[Run] = [
            *(partial(_flow, transport, CONSUMERS, plan.seconds) for transport in present),
            *(partial(_flow, GroupKey, count, plan.seconds) for count in many),
            *claims,
            *_paced_runs(plan),
        ]
        found = interleave(runs, plan.repeat)
    slow = interleave(slow_runs, min(plan.repeat, SLOW_ROUNDS))
    rates = samples_of(found, f"rate to {CONSUMERS}")
    groups: dict[str, Sequence[Figure]] = {
        "messages per second, all consumers together, group / other": _rate_ratios(rates),
        "messages per second, all consumers together": [
            Figure(name, "M/s", tuple(value * 1e-6 for value in values))
            for name, values in rates.items()
        ],
        "CPU time per message, in a flood": _cpu_times(found),
        "context switches of all processes per 1000 messages": [
            Figure(name, "", tuple(value * 1000 for value in values))
            for name, values in samples_of(found, f"switches to {CONSUMERS}").items()
        ],
        "messages of the busiest consumer / mean, by key": [
            Figure(
                f"{consumers} members",
                "x",
                tuple(samples_of(found, f"largest to {consumers}")[GroupKey.name]),
                LARGEST_SHARE,
                "smaller",
            )
            for consumers in (CONSUMERS, *many)
        ],
        "messages of the busiest consumer / mean": [
            Figure(name, "x", tuple(values))
            for name, values in samples_of(found, f"largest to {CONSUMERS}").items()
        ],
        "a claim and its acknowledgement": groups_claim.figures(found),
        "writer's CPU time in publish(), 4 members / 4 readers": [
            _writer_ratio(found, pace) for pace in PACES
        ],
        "writer's CPU time in publish()": [
            Figure(f"{pace} | {who}", "us", tuple(values))
            for who in _WHO
            for pace, values in samples_of(found, f"writer {who}").items()
        ],
        "three members, with a slow one beside them / without": _slow_figures(slow),
        "three members": _slow_values(slow),
        "times that members went to sleep": [
            Figure(name, "", tuple(values)) for name, values in samples_of(found, "woken").items()
        ],
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, "consumers": CONSUMERS, "keys": KEYS}
    copies = {transport.name: transport.copies for transport in present}
    return Report("groups", {**parameters, "copies": copies, **missing}, machine, groups)
