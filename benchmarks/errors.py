"""What makes a run fail. A fast wrong answer is no result, so all of these fail the benchmark."""

from __future__ import annotations


class RunFailedError(RuntimeError):
    """A run gave a wrong result or none.

    Attributes:
        closeness: how close the error is to the cause of the failure; more is closer.
    """

    closeness = 0


class ChildFailedError(RunFailedError):
    """A child process failed.

    The message is its traceback, or what a program wrote to its standard error.
    """

    def __init__(self, why: str, *, found_wrong: bool) -> None:
        super().__init__(why)
        self.closeness = 2 if found_wrong else 1


class ProcessDiedError(RunFailedError):
    """The process at the other end of a channel ended without saying why."""

    def __init__(self) -> None:
        super().__init__("the other process died")
