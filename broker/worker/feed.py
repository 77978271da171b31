"""A worker's end: `attach` to a manager's ring by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast, overload

from ringcast import shm
from ringcast.shm import broadcast, group
from ringcast.shm.group import Balance

from .answers import REQUEST_TIMEOUT, Answer, Following, Payload
from .requests import Requests
from .sending import MessageKind, MessageSender
from .state import ConnectionState, Phase
from .subscribing import wait_for_server

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .addresses import ClientAddress

__all__ = ["Feed", "GroupFeed", "attach"]

_NOT_OVER_SOCKETS: Final = frozenset(("wait", "owner"))
"""Arguments of `attach` that a gateway's socket does not know."""
_COLON: Final = ":"
"""In every address of a gateway, and in no ring's name; see addresses.py."""
NO_KIND: Final = 0xFFFF
"""Of no message: a feed passes nothing over but what is for another worker alone."""


class Connected:
    """What every feed knows and does besides reading: the connection's state, sending, and asking.
    Stands before the reader, which has the rest."""

    __slots__ = ()

    _messages: MessageSender
    _requests: Requests

    if TYPE_CHECKING:  # the reader has them

        @property
        def name(self) -> str: ...
        @property
        def note(self) -> bytes: ...
        @property
        def writer_alive(self) -> bool: ...

    @property
    def state(self) -> ConnectionState:
        """The connection, as its manager last said; phase ORPHANED if there is no manager now.

        Raises:
            shm.RingClosed: this end is closed.
            shm.RingError: no manager writes this ring.
        """
        state = ConnectionState.decode(self.note)
        if state is None:
            raise shm.RingError(
                f"ring {self.name!r} is not a manager's: read it with shm.broadcast.Reader"
            )
        if state.phase is not Phase.STOPPED and not self.writer_alive:
            return dataclasses.replace(state, phase=Phase.ORPHANED)
        return state

    def check_manager(self) -> None:
        """Raise RingClosed if no manager will answer any more."""
        state = ConnectionState.decode(self.note)
        if state is not None and state.phase is Phase.STOPPED:
            raise shm.RingClosed(f"the manager of {self.name!r} has stopped: nobody is asked")

    # -- sending

    def send(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """Send a message to the server, through the manager.

        Args:
            payload: a str (UTF-8), or bytes or any C-contiguous buffer; copied. At most a quarter
                of the ring's capacity; what is longer than half of a lane goes through it in parts.
            kind: "text" or "binary", or the `shm.Kind` of either; None sends a str as text and
                bytes as binary. Bytes sent as text have to be UTF-8.
            timeout: seconds to wait while too many messages of this worker are under way; None
                waits as long as it takes.

        Returns:
            The message's ticket: its place in the order of all workers' messages.

        Raises:
            shm.RingFull: no room in time. Nothing was sent: of a message in parts, the manager
                throws away those it has.
            shm.MessageTooLarge: longer than may be.
            shm.SendRejected: there is no connection, and the manager is configured to refuse; or
                messages sent before were rejected. Nothing was sent.
            shm.SendUnconfirmed: a manager died with messages sent before; nobody knows of them.
                Nothing was sent.
            shm.Evicted: the manager evicted this worker's sender, for text that was not UTF-8.
            shm.RingClosed: the manager has ended, or this end is closed.
            ValueError: `kind` is another, or text as "text" is not UTF-8.
        """
        return self._messages.send(payload, kind, timeout)

    def try_send(self, payload: str | Buffer, *, kind: MessageKind | None = None) -> int | None:
        """As `send`, but waits for no room: the ticket, or None when there is none and nothing was
        sent. Only attaching to the uplink, with the first message, may take a moment.

        Raises: as `send` does, without RingFull. A message that would go in parts, and so need room
            that the manager makes only meanwhile, is MessageTooLarge.
        """
        return self._messages.try_send(payload, kind)

    async def asend(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `send`, for asyncio: other tasks go on while it waits.

        It waits only when there is no room, until the manager has handed over what this worker sent
        before; tasks then send in the order in which they came. A buffer must not be changed before
        this returns.

        Cancelled while it waits, it has sent nothing; a ticket that it returned stands for a
        message that was sent. One exception: a message in parts (see `send`) whose last part was
        just being sent may be sent whole, or not at all. Never is a part of it sent to the server.

        Raises: as `send` does.
        """
        return await self._messages.asend(payload, kind, timeout)

    def flush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """Wait until the manager has handed a message to the socket.

        Args:
            ticket: of the message; None for the last one sent here.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not in time; it may still be sent.
            shm.SendRejected, shm.SendUnconfirmed, shm.Evicted, shm.RingClosed: as `send` does.
        """
        self._messages.flush(ticket, timeout)

    async def aflush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """As `flush`, for asyncio: other tasks go on while it waits. Cancelling it changes nothing:
        the message is under way, and what becomes of it is reported to a later call.

        Raises: as `flush` does.
        """
        await self._messages.aflush(ticket, timeout)

    # -- asking

    def request(
        self,
        payload: Payload,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
    ) -> Answer:
        """Send a request to the server, through the manager, and wait for the answer to it, which
        comes here and to nobody else.

        The request's id is replaced by one that no other worker's request has, and the answer has
        its own again; all other bytes stay as they are. Reading goes on meanwhile: other threads
        get what the feed hands out. The first request takes a second reader slot, for answers.

        Args:
            payload: JSON, an object: as str, as bytes or any C-contiguous buffer of UTF-8, or as a
                mapping. Sent as text. Its id, at the manager's `Config.request_id`, is a whole
                number or text; if there is none, one is added.
            timeout: seconds to wait until it is sent and answered; None waits as long as it takes,
                which is for ever if the connection is lost before the answer came.

        Returns:
            The answer, whatever it says: one that reports an error is not raised.

        Raises:
            TimeoutError: no answer in time. The server may have acted on the request; an answer
                that comes later is dropped, and counted in `answers_dropped`.
            ValueError: the payload is no JSON object, its id is of another type or stands in it
                more than once, or the manager has no `request_id`.
            shm.TooManyReaders: no reader slot is left for answers.
            shm.Evicted: the manager evicted this worker's sender, or its reader of answers.
            shm.RingFull, shm.MessageTooLarge, shm.SendRejected, shm.SendUnconfirmed,
            shm.RingClosed: as `send` does.
        """
        return self._requests.request(payload, timeout, self.state)

    async def arequest(
        self,
        payload: Payload,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
    ) -> Answer:
        """As `request`, for asyncio: other tasks go on while it waits. Cancelling it drops the
        answer; the request may have been sent.

        Raises: as `request` does.
        """
        return await self._requests.arequest(payload, timeout, self.state)

    def follow(self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT) -> Following:
        """Send a request to which many messages answer, such as a subscription of GraphQL, and get
        all that bear its id, until what this returns is closed. Use it in a ``with`` block.

        After a reconnect the server knows nothing of it any more: ask again.

        Args:
            payload: as `request` has it.
            timeout: seconds to wait until it is sent; None waits as long as it takes.

        Returns:
            An iterator, plain and ``async``.

        Raises: as `request` does, but for TimeoutError, which is shm.RingFull here.
        """
        return self._requests.follow(payload, timeout, self.state)

    async def afollow(
        self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT
    ) -> Following:
        """As `follow`, for asyncio: other tasks go on while it is sent.

        Raises: as `follow` does.
        """
        return await self._requests.afollow(payload, timeout, self.state)

    @property
    def answers_dropped(self) -> int:
        """Answers to requests of this feed that came when nobody waited for them any more."""
        return self._requests.dropped

    # -- closing

    def close(self) -> None:
        """Leave the ring and the uplink; what was sent is sent, and calls that wait raise
        RingClosed. Raises as the reader's does."""
        super().close()  # type: ignore[misc]
        self._end_calls()

    def __exit__(self, *exc: object) -> None:
        self._end_calls()
        super().__exit__(*exc)  # type: ignore[misc]

    def _end_calls(self) -> None:
        self._messages.close()
        self._requests.close()


class Feed(Connected, broadcast.Reader):
    """The server's messages, one after the other; made with `attach`.

    It has everything that `shm.broadcast.Reader` has (iteration plain and ``async``, `read`,
    `read_available`, `batch`, `cursor`, `lag`, `lost`, `topics`, `latest`, `close`, ``with``),
    knows the connection's state, and sends to the server through the manager. If the manager has a
    venue, what it subscribes to is asked for at the server, once for all workers. Threads may share
    it.
    """

    __slots__ = ("_messages", "_requests")

    _messages: MessageSender
    _requests: Requests

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        policy: Literal["block", "lossy"] = "block",
        start: Literal["latest", "oldest"] | int = "latest",
        wait: shm.WaitStrategy | None = None,
        label: str | None = None,
        owner: int | None = None,
        skip: int = shm.Kind.EVENT,
        topics: Iterable[str] | None = None,
        others: bool = False,
    ) -> Self:
        """As the function `attach`; `skip` as in `shm.broadcast.Reader.attach`."""
        feed = super().attach(
            name,
            policy=policy,
            start=start,
            wait=wait,
            label=label,
            owner=owner,
            skip=skip,
            topics=topics,
            others=others,
        )
        feed._messages = MessageSender(name, label=label, owner=owner, max_message=feed.max_message)
        feed._requests = Requests(name, label=label, owner=owner, messages=feed._messages)
        return feed

    # -- subscribing

    def subscribe(
        self,
        *topics: str,
        timeout: float | None = None,
        wait: bool = True,
        snapshot: bool = False,
    ) -> None:
        """Want these topics, too, and have the server asked for them. It holds for every message
        published after it returns, and for topics that appear later.

        Names are asked for at the server, unless it has them already for another worker; patterns,
        in which `*` stands for any run of characters, select among the topics that there are. What
        is wanted stands until `unsubscribe`, `close` or this process's end, also while there is no
        connection or no manager. If the manager has no venue, nobody is asked, and this returns at
        once.

        Args:
            topics: names and patterns.
            timeout: seconds to wait for the server's answer; None waits as long as it takes.
            wait: False does not wait for it.
            snapshot: and have the server send the present state of what these topics describe, such
                as an order book, as far as the venue offers it: for a worker that joins late.

        Raises:
            SubscriptionRefused: the server refuses a topic, in its words, or the manager does: it
                is not in `Config.allow`, or there are too many. The wish stands; unsubscribe to
                give it up. Others of these topics are not affected.
            TimeoutError: no answer in time; the wish stands.
            ValueError: no topic can have such a name, or the list would become too long: its names
                and patterns take 32,759 bytes at most. Nothing has changed then.
            shm.RingClosed: the manager has stopped, or this end is closed.
        """
        self._subscribe(topics, snapshot)
        if wait:
            wait_for_server(self, topics, timeout)


class GroupFeed(Connected, group.Member):
    """The server's messages shared out among the members of a work group; made with `attach`.

    It has everything that `shm.group.Member` has, knows the connection's state, and sends to the
    server through the manager. What the group wants is asked for at the server, as long as the
    group exists and is not demoted, with or without members. Records of kind EVENT go to no member.
    """

    __slots__ = ("_messages", "_requests")

    _messages: MessageSender
    _requests: Requests

    @classmethod
    def attach(
        cls,
        name: str,
        group: str,
        *,
        balance: Balance = "any",
        auto_ack: bool = True,
        max_deliveries: int | None = None,
        start: Literal["latest", "oldest"] | int = "latest",
        wait: shm.WaitStrategy | None = None,
        label: str | None = None,
        owner: int | None = None,
        topics: Iterable[str] | None = None,
        others: bool = False,
    ) -> Self:
        """As the function `attach`, and as `shm.group.Member.attach`."""
        feed = super().attach(
            name,
            group,
            balance=balance,
            auto_ack=auto_ack,
            max_deliveries=max_deliveries,
            start=start,
            wait=wait,
            label=label,
            owner=owner,
            topics=topics,
            others=others,
        )
        feed._messages = MessageSender(name, label=label, owner=owner, max_message=feed.max_message)
        feed._requests = Requests(name, label=label, owner=owner, messages=feed._messages)
        return feed


@overload
def attach(
    name: str,
    *,
    policy: Literal["block", "lossy"] = ...,
    start: Literal["latest", "oldest"] | int = ...,
    wait: shm.WaitStrategy | None = ...,
    label: str | None = ...,
    owner: int | None = ...,
    events: bool = ...,
    topics: Iterable[str] | None = ...,
    others: bool = ...,
    timeout: float | None = ...,
) -> Feed: ...


@overload
def attach(
    name: str,
    *,
    group: str,
    balance: Balance = ...,
    auto_ack: bool = ...,
    max_deliveries: int | None = ...,
    start: Literal["latest", "oldest"] | int = ...,
    wait: shm.WaitStrategy | None = ...,
    label: str | None = ...,
    owner: int | None = ...,
    topics: Iterable[str] | None = ...,
    others: bool = ...,
    timeout: float | None = ...,
) -> GroupFeed: ...


def attach(
    name: str,
    *,
    policy: Literal["block", "lossy"] = "block",
    start: Literal["latest", "oldest"] | int = "latest",
    wait: shm.WaitStrategy | None = None,
    label: str | None = None,
    owner: int | None = None,
    events: bool = False,
    topics: Iterable[str] | None = None,
    others: bool = False,
    timeout: float | None = None,
    group: str | None = None,
    balance: Balance | None = None,
    auto_ack: bool | None = None,
    max_deliveries: int | None = None,
) -> Feed | GroupFeed:
    """Attach to a manager's ring by name, or to a gateway that serves it: by its socket, or by a
    message queue that it fills.

    Args:
        name: the manager's `Config.name`; or "unix:/PATH", "ws://HOST:PORT" or "wss://HOST:PORT",
            where a gateway listens; or "mq:NAME/LABEL", the queue of that label. A socket takes no
            `wait` and no `owner`, and with `group` no `timeout`. A queue takes `events` alone: what
            goes into it is the gateway's affair.
        policy: "block" (lossless) or "lossy".
        start: "latest", "oldest" or a sequence.
        wait: how to wait for messages.
        label: what to call this worker in `ringcast inspect`.
        owner: user id of the manager, if it is another's.
        events: hand out the records of kind EVENT, too, each where it happened: JSON, see
            `ringcast.broker.worker.state`. Without it they are passed over.
        topics: names and patterns of the topics that this worker wants, as `Feed.subscribe` takes
            them; None: every message, an empty list: none.
        others: with `topics`, hand out messages that have no topic, too, such as the server's
            acknowledgements and errors.
        timeout: seconds to wait until the server has acknowledged the topics that `topics` names;
            None does not wait, and `Feed.topics` shows what becomes of them.
        group: join this work group, whose members share the messages out; made if there is none.
            Its first member's `start` counts, and all name the same `topics` and `others`.
        balance: how a group shares out: "any", by default: whoever is free takes the next; "key":
            messages of one key in their order, by one member at a time; "round-robin": in turn.
        auto_ack: with a group, by default, asking for the next message says that the last one is
            done; False: each is acknowledged with its `ack`.
        max_deliveries: after how many deliveries a group sets a message aside; 5 by default.

    Returns:
        A `Feed`; with `group` a `GroupFeed`, whose messages have `ack`, `nack` and `deliveries`; of
        a queue a `QueueFeed`, and of a socket a `SocketFeed` or `SocketGroupFeed`, which have the
        methods of a `Feed` or `GroupFeed` that these can have.

    Raises: as `shm.broadcast.Reader.attach` does; RingNotFound while there is no manager. With
        `timeout` also as `Feed.subscribe` does.
    """
    given = {
        "policy": policy if policy != "block" else None,
        "start": start if start != "latest" else None,
        "wait": wait,
        "label": label,
        "owner": owner,
        "topics": topics,
        "others": others or None,
        "timeout": timeout,
        "group": group,
        "balance": balance,
        "auto_ack": auto_ack,
        "max_deliveries": max_deliveries,
    }
    given = {argument: value for argument, value in given.items() if value is not None}
    if _COLON in name:
        return _attach_to_gateway(name, given, events=events)
    if group is not None:
        if policy != "block" or events:
            raise ValueError(
                "a group is lossless and handles messages: it has no policy and no events"
            )
        feed: Feed | GroupFeed = GroupFeed.attach(
            name,
            group,
            balance=balance or "any",
            auto_ack=auto_ack is not False,
            max_deliveries=max_deliveries,
            start=start,
            wait=wait,
            label=label,
            owner=owner,
            topics=topics,
            others=others,
        )
    elif balance is not None or auto_ack is not None or max_deliveries is not None:
        raise ValueError("balance, auto_ack and max_deliveries are for members of a group: name it")
    else:
        feed = Feed.attach(
            name,
            policy=policy,
            start=start,
            wait=wait,
            label=label,
            owner=owner,
            skip=NO_KIND if events else shm.Kind.EVENT,
            topics=topics,
            others=others,
        )
    _wait_for_topics(feed, timeout)
    return feed


def _attach_to_gateway(name: str, given: dict[str, Any], *, events: bool) -> Feed:
    """A `QueueFeed` or a `SocketFeed`, which have a feed's methods as far as they can. What they
    need is loaded here: workers that map the ring need none of it."""
    from .addresses import AddressKind, ClientAddress

    address = ClientAddress.parse(name)
    if address.kind is AddressKind.QUEUE:
        return _attach_to_queue(address, given, events=events)
    return _attach_to_socket(address, given, events=events)


def _attach_to_queue(address: ClientAddress, given: dict[str, Any], *, events: bool) -> Feed:
    if given:
        raise ValueError(
            f"a message queue has no {' and no '.join(given)}: it passes on what the gateway puts"
            " in. Attach to the ring, or to the gateway's socket"
        )
    from .queue_feed import QueueFeed

    return cast(Feed, QueueFeed.attach(address, events=events))


def _attach_to_socket(address: ClientAddress, given: dict[str, Any], *, events: bool) -> Feed:
    missing = [argument for argument in given if argument in _NOT_OVER_SOCKETS]
    if missing:
        raise ValueError(
            f"not over a socket: {', '.join(missing)}. Attach to the ring, where it can be mapped"
        )
    from .gateway_link import asks_for

    if "group" in given or asks_for(address.target, "group"):
        from .socket_group import SocketGroupFeed

        return cast(Feed, SocketGroupFeed.attach(address, events=events, **given))
    if "auto_ack" in given:
        raise ValueError("auto_ack is for members of a group: name it")
    from .socket_feed import SocketFeed

    return cast(Feed, SocketFeed.attach(address, events=events, **given))


def _wait_for_topics(feed: Feed | GroupFeed, timeout: float | None) -> None:
    """Wait until the server has acknowledged what a new feed wants; or leave it again."""
    if timeout is None:
        return
    try:
        wait_for_server(feed, feed.subscriptions, timeout)
    except BaseException:
        feed.close()
        raise
