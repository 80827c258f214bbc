"""What a worker tells through its report pipe, without a worker: the test holds the other end."""

import os

import pytest

from poolserver.process import FAILED, READY, STOP_ASKED, Process, Report


@pytest.fixture
def pipe():
    """A process's handle, and the end that its worker would write to."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    process = Process(os.getpid(), None, read_fd)
    yield process, write_fd
    process.close()
    os.close(write_fd)


def test_ready_and_stop_are_told_in_order(pipe):
    """Each octet is a report."""
    process, write_fd = pipe
    assert process.reports() == []
    os.write(write_fd, READY + STOP_ASKED)
    assert process.reports() == [Report.READY, Report.STOP_ASKED]


def test_failure_in_the_same_read_as_ready_keeps_its_reason(pipe):
    """A listener may be lost before the master has looked; what the reason says is no report."""
    process, write_fd = pipe
    os.write(write_fd, READY + FAILED + b"lost! 1 + 1 - 1")
    assert process.reports() == [Report.READY]
    assert process.reason == "lost! 1 + 1 - 1"


def test_reason_in_two_pieces_is_put_together(pipe):
    """A long one may come so."""
    process, write_fd = pipe
    os.write(write_fd, FAILED + b"no ")
    assert process.reports() == []
    os.write(write_fd, b"such module!")
    assert process.reports() == []
    assert process.reason == "no such module!"
