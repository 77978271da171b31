"""From a ring to WebSocket clients through the gateway, beside servers that send to as many.

*Flows.* A flow of 128-byte messages goes to 1, 4 and 16 clients over a Unix socket, as fast as the
slowest receives, and nothing may be lost. All clients are the same program in C, a process each
(`gateway_client`). Compared are

* the gateway, with messages that a writer published, so that it makes the frame headers; and with
  messages that a manager received, so that the server's headers lie in the ring (`gateway_ring`);
* the gateway's clients that ask for the subprotocol ringcast.1, with messages that were published;
* servers in Python, which have the messages in memory (`gateway_servers`).

The measurement begins with the first message, for all alike. Figures:

* messages per second that each client received, from the first message of any client to the end of
  the last;
* CPU time, user and system, of the server's process per message and client: of the gateway, from
  before the first message until all clients have the last; of the others likewise, which includes
  having the messages ready;
* CPU time of the clients likewise.

*attach().* A writer publishes 64 messages per call, and a worker in Python reads them one by one:
from the ring, through a gateway's socket, and from its message queue. Beside it, the transport
"Unix stream, batched". All as in `throughput`.

*Paced.* What a gateway costs a manager that receives at a fixed rate: see `gateway_paced`.

Everything runs where the scheduler likes, but for the servers that feed a manager, which run on the
first core.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

from . import gateway_paced, gateway_ring
from .figures import Figure, Samples, figures_of, interleave, ratio, samples_of
from .flows import broadcast
from .gateway_client import SIZE, ReceivingEnd, figures_of_flow, flow_contents
from .gateway_ring import (
    BLOCKING,
    Attached,
    AttachedOverSocket,
    AttachedToQueue,
    Gateway,
    load_of,
    publish,
)
from .gateway_servers import PEERS, AiohttpJoined, Peer, Picows, Websockets, serve
from .processes import child_processes
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .transports.stdlib import UnixStreamGrouped
from .websocket.ringcast_side import run_manager

CLIENTS: Final = (1, 4, 16)
BRIEF_CLIENTS: Final = (1, 16)
PUBLISHED: Final = "gateway, published"
RECEIVED: Final = "gateway, received"
RECORDS: Final = "gateway, ringcast.1"
FLOORS: Final[Mapping[type[Peer], float]] = {Websockets: 8, Picows: 2, AiohttpJoined: 1.5}
"""How many times as many messages per second the gateway has to send as another server."""
COST: Final = 0.2
"""Its CPU time per message and client, at most, relative to that of picows."""
ATTACHED: Final = 1.0
"""How many times as many messages per second attach() has to read as "Unix stream, batched"."""

Run = Callable[[], Mapping[str, float]]


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
        yield Path(folder)


# ---- runs ----------------------------------------------------------------------------------


def run_peer(end: ReceivingEnd, peer: type[Peer], clients: int, seconds: float) -> dict[str, float]:
    """Measure another server. Returns what `figures_of_flow` returns.

    Raises:
        RunFailedError: a client did not get exactly what was sent, or a process failed.
    """
    with _temporary_folder() as folder, child_processes(seconds) as children:
        path = folder / "server"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(clients)
            server = children.start(serve, listener, peer, clients, seconds)
        ends = end.start(children, folder, f"unix:{path}", clients)
        server.send()
        served = server.receive()
        return figures_of_flow(ends.results(), served["sent"], served["cpu"])


def run_published(
    end: ReceivingEnd, clients: int, seconds: float, *options: str
) -> dict[str, float]:
    """Measure the gateway with messages that a writer publishes. `options` are those of the
    clients. Returns and raises as `run_peer`."""
    with (
        temporary_ring_name() as name,
        _temporary_folder() as folder,
        child_processes(seconds) as children,
    ):
        writer = children.start(publish, name, seconds)
        writer.receive()
        gateway = Gateway(children, name, folder)
        ends = end.start(children, folder, gateway.address, clients, *BLOCKING, *options)
        before = gateway.cpu_s()
        writer.send()
        sent = writer.receive()
        found = ends.results()
        used = gateway.cpu_s() - before
        gateway.stop()
        writer.send()
    return figures_of_flow(found, sent, used)


def run_received(end: ReceivingEnd, clients: int, seconds: float) -> dict[str, float]:
    """Measure the gateway with messages that a manager receives. Returns and raises as
    `run_peer`."""
    with (
        temporary_ring_name() as name,
        _temporary_folder() as folder,
        load_of(seconds).serve(1) as (children, server, address),
    ):
        manager = children.start(run_manager, address, name)
        manager.receive()
        gateway = Gateway(children, name, folder)
        ends = end.start(children, folder, gateway.address, clients, *BLOCKING)
        before = gateway.cpu_s()
        manager.send()
        found = ends.results()
        used = gateway.cpu_s() - before
        gateway.stop()
        server.send()
        sent = int(server.receive()["sent"])
        manager.receive()
    return figures_of_flow(found, sent, used)


def _named(name: str, clients: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
    return {f"{what}: {name} | {_text(clients)}": value for what, value in run().items()}


def _paced(end: ReceivingEnd | None, seconds: float) -> dict[str, float]:
    with _temporary_folder() as folder:
        return gateway_paced.run(end, folder, seconds)


def _reading(transport: type[UnixStreamGrouped | Attached], seconds: float) -> Run:
    return lambda: {f"reading: {transport.name}": broadcast(transport, SIZE, 1, seconds)["rate"]}


def _text(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"


def _runs_of_gateway(end: ReceivingEnd, counts: Sequence[int], seconds: float) -> list[Run]:
    return [
        *(
            partial(_named, name, n, run)
            for n in counts
            for name, run in {
                PUBLISHED: partial(run_published, end, n, seconds),
                RECEIVED: partial(run_received, end, n, seconds),
                RECORDS: partial(run_published, end, n, seconds, "--ringcast-1"),
            }.items()
        ),
        _reading(Attached, seconds),
        _reading(AttachedOverSocket, seconds),
        _reading(AttachedToQueue, seconds),
        _reading(UnixStreamGrouped, seconds),
        partial(_paced, None, seconds),
        partial(_paced, end, seconds),
    ]


# ---- the scenario --------------------------------------------------------------------------


def _ratios(
    found: Samples,
    counts: Sequence[int],
    floors: Mapping[type[Peer], float],
    better: Literal["larger", "smaller"],
) -> list[Figure]:
    """Ratios of the gateway, in both ways that have floors, and other servers."""
    return [
        ratio(f"{ours} / {peer.name} | {_text(n)}", found[mine], found[theirs], floor, better)
        for ours in (PUBLISHED, RECEIVED)
        for peer, floor in floors.items()
        for n in counts
        if (mine := f"{ours} | {_text(n)}") in found
        and (theirs := f"{peer.name} | {_text(n)}") in found
    ]


def groups_of(found: Samples, counts: Sequence[int]) -> dict[str, Sequence[Figure]]:
    """The figures of the samples that the runs to so many clients gave."""
    rates, server = samples_of(found, "rate"), samples_of(found, "server")
    reading = samples_of(found, "reading")
    ours, theirs = AttachedOverSocket.name, UnixStreamGrouped.name
    attached = [ratio("one by one", reading[ours], reading[theirs], ATTACHED)] if reading else []
    return {
        "messages per second to each client, gateway / other": _ratios(
            rates, counts, FLOORS, "larger"
        ),
        "messages per second to each client": figures_of(rates, "M/s", 1e-6),
        "server's CPU time per message and client, gateway / other": _ratios(
            server, counts, {Picows: COST}, "smaller"
        ),
        "server's CPU time per message and client": figures_of(server, "us"),
        "clients' CPU time per message and client": figures_of(samples_of(found, "client"), "us"),
        "messages per second, attach() through the gateway / Unix stream, batched": attached,
        "messages per second to a worker in Python": figures_of(reading, "M/s", 1e-6),
        **gateway_paced.figures(found),
    }


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a client did not get exactly what was sent, or a process failed.
    """
    machine = describe_machine()
    counts = BRIEF_CLIENTS if plan.brief else CLIENTS
    why = {peer.name: peer.missing() for peer in PEERS}
    why["gateway"] = gateway_ring.missing()
    flow_contents()
    with ReceivingEnd.compiled() as end:
        runs: list[Run] = []
        if end is None:
            why["everything"] = "there is no C compiler, which the clients need"
        else:
            runs += [
                partial(_named, peer.name, n, partial(run_peer, end, peer, n, plan.seconds))
                for n in counts
                for peer in PEERS
                if why[peer.name] is None
            ]
            if why["gateway"] is None:
                runs += _runs_of_gateway(end, counts, plan.seconds)
        found = interleave(runs, plan.repeat)
    missing = {name: reason for name, reason in why.items() if reason is not None}
    parameters = {
        "message_bytes": SIZE,
        **plan.as_json(),
        "batches": {peer.name: peer.batch for peer in PEERS},
        **({"not measured": missing} if missing else {}),
    }
    return Report("gateway", parameters, machine, groups_of(found, counts))
