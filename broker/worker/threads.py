"""Awaiting a call that blocks: it runs in a thread of its own, and the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["CANCEL_LOOK", "in_thread"]

CANCEL_LOOK: Final = 0.1
"""Seconds. Such a call looks at least so often whether it was cancelled."""

T = TypeVar("T")


async def in_thread(
    call: Callable[[threading.Event], T], on_unheard: Callable[[BaseException], None]
) -> T:
    """Run `call` in a new daemon thread and wait for it.

    When this is cancelled the event that the call was given is set, and nobody waits for the call
    any more; it is to return within `CANCEL_LOOK` seconds. The default executor is not used: a few
    long waits would fill it, and everything else that needs it would wait, too.

    Args:
        call: what blocks.
        on_unheard: is given the call's error if the caller was cancelled and does not get it. From
            any thread.

    Raises: as the call does.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    cancelled = threading.Event()

    def run() -> None:
        try:
            outcome = call(cancelled)
        except BaseException as error:
            settle(future.set_exception, error, error)
        else:
            settle(future.set_result, outcome, None)

    def settle(set_it: Callable[[Any], None], value: Any, error: BaseException | None) -> None:
        def in_loop() -> None:
            if not future.done():
                set_it(value)
            elif error is not None:
                on_unheard(error)

        try:
            loop.call_soon_threadsafe(in_loop)
        except RuntimeError:  # the loop has been closed
            if error is not None:
                on_unheard(error)

    threading.Thread(target=run, name="ringcast-send", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        # It may have been settled just before.
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None:
            on_unheard(error)
        raise
    finally:
        cancelled.set()
