"""Fixtures of the tests with real processes."""

from __future__ import annotations

import random

import pytest

from tests.conftest import Processes

from .traffic import Followers


@pytest.fixture
def seed() -> int:
    """A seed for one test, printed so that a failure can be repeated."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def followers(processes: Processes, name: str, seed: int) -> Followers:
    """Reader processes, ended with the test."""
    return Followers(processes, name, seed)
