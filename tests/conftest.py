"""Fixtures of several test files. A test file that wants one in all its tests says so with pytestmark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import coin
from servers import Server


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread, in which sums have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def server() -> Iterator[Server]:
    """An address that answers chats."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def coin_grades(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are graded by helpers.coin, in one thread."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
