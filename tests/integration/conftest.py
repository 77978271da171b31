"""Fixtures of the tests with real processes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

import shm
from tests.conftest import Processes

from .traffic import Followers


@pytest.fixture
def seed() -> int:
    """A seed for one test, printed so that a failure can be repeated."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def other(name: str) -> Iterator[str]:
    """The name of a second ring; removed if its writer was killed. For a test that starts processes
    it stands before `processes`, so that they have ended by then."""
    other = f"{name}b"
    yield other
    with contextlib.suppress(shm.RingNotFound):
        shm.unlink(other)


@pytest.fixture
def followers(processes: Processes, name: str, seed: int) -> Followers:
    """Reader processes, ended with the test."""
    return Followers(processes, name, seed)
