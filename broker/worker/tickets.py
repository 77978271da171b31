"""What became of what a worker sent through a gateway: numbers go up, and answers come back.

Nothing here waits, and one call at a time is made.
"""

from __future__ import annotations

from ringcast import shm

__all__ = ["Tickets"]


class Tickets:
    """Numbers of messages and of wishes, from 1, and those of them that are not answered yet."""

    def __init__(self) -> None:
        self._numbers = 0
        self._messages: dict[int, None] = {}
        self._wishes: dict[int, str | None] = {}  # "" stands for: granted
        self._rejected: list[str] = []
        self._unconfirmed = 0

    @property
    def under_way(self) -> int:
        """How many messages are not answered."""
        return len(self._messages)

    @property
    def last(self) -> int:
        """Of the message that was sent last, if it is not answered; else 0."""
        return next(reversed(self._messages), 0)

    def new(self) -> int:
        """The next number."""
        self._numbers += 1
        return self._numbers

    def message(self, number: int) -> None:
        """A message with this number is sent."""
        self._messages[number] = None

    def take_back(self, number: int) -> None:
        """This message is not sent after all."""
        self._messages.pop(number, None)

    def wish(self, number: int) -> None:
        """A wish with this number is sent; `outcome` has to be asked for."""
        self._wishes[number] = None

    def settle(self, number: int, refusal: str | None) -> None:
        """The gateway has answered."""
        if number in self._wishes:
            self._wishes[number] = refusal or ""
        elif number in self._messages:
            del self._messages[number]
            if refusal is not None:
                self._rejected.append(refusal)

    def lose(self) -> None:
        """The connection has ended: nobody will answer for what went over it."""
        self._unconfirmed += len(self._messages)
        self._messages.clear()

    def renewed(self) -> None:
        """A new connection has asked for all wishes again."""
        for number in self._wishes:
            self._wishes[number] = ""

    def is_under_way(self, number: int) -> bool:
        """Is this message, or one before it, not answered?"""
        return next(iter(self._messages), number + 1) <= number

    def is_answered(self, number: int) -> bool:
        """Is this wish?"""
        return self._wishes.get(number, "") is not None

    def outcome(self, number: int) -> str | None:
        """What the gateway says of a wish: why not, or ""; None if it says nothing yet. It is
        forgotten."""
        return self._wishes.pop(number, None)

    def check(self) -> None:
        """Report, once, what has become of messages.

        Raises:
            shm.SendRejected: some were refused.
            shm.SendUnconfirmed: a connection ended before some were answered.
        """
        if self._rejected:
            reasons, self._rejected = self._rejected, []
            raise shm.SendRejected(
                f"{len(reasons)} messages sent before were rejected: {reasons[0]}", len(reasons)
            )
        if self._unconfirmed:
            count, self._unconfirmed = self._unconfirmed, 0
            raise shm.SendUnconfirmed(
                f"the connection to the gateway ended with {count} messages sent before: nobody"
                " knows whether they were delivered",
                count,
            )
