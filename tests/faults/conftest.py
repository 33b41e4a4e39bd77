"""No child outlives its test."""

import os
import signal

import pytest
from child_runs import Child


@pytest.fixture(autouse=True)
def no_child_is_left():
    yield
    for child in Child.started:
        if not child.ended:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
    Child.started.clear()
