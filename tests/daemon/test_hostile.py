"""What handlers, server classes and operators do wrong must harm nobody else."""

import os
import sys
import threading
import time
from signal import SIGKILL

import jsonschema
import pytest
from clients import ask, connect, read_line, wait_for
from test_control import STATUS
from test_prometheus import scrape

COMMAND = (sys.executable, "-m", "poolserver", "run")
TCP = "tcp://127.0.0.1:0"


def seconds_for_forty(served, listeners: int) -> float:
    """How long forty clients at once, over so many listeners, take in all."""
    start = threading.Barrier(41)
    answers: list[bytes] = []

    def client(number: int) -> None:
        start.wait()
        answers.append(ask(served, b"", number % listeners))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    assert answers == [b"done\n"] * 40
    return time.monotonic() - began


def test_several_listeners_leave_no_lane_idle_while_clients_queue(daemon) -> None:
    """Forty clients over four listeners take four lanes no longer than over one: none waits for the next tick."""
    served = daemon("hostile_handlers:Work", bind=[TCP] * 4, workers=1, threads=4)
    ratios = (seconds_for_forty(served, 4) / seconds_for_forty(served, 1) for _ in range(5))
    assert any(ratio < 2 for ratio in ratios)  # 3.0 to 5.0 each time with lost wake-ups


@pytest.mark.parametrize("how", [b"return", b"exit", b"raise"])
def test_child_that_comes_back_from_its_handler_is_no_lane(daemon, how: bytes) -> None:
    """It ends there, does not touch the parent's conversation, and nothing of it outlives the service."""
    served = daemon("hostile_handlers:ForksAndComesBack", workers=1, threads=2)
    assert ask(served, how + b"\n") == b"parent\n"
    assert len(served.processes()) == 2
    assert served.stop() == 0


def test_server_class_that_binds_in_its_constructor_is_served(daemon) -> None:
    """Its server_bind runs against the master's listener."""
    served = daemon("hostile_handlers:BindsAnyway", workers=2, threads=2)
    assert ask(served, b"hi\n") == b"hi\n"
    assert served.stop() == 0


def test_tls_wrapped_listener_is_refused_not_served_in_the_clear(daemon) -> None:
    """A configuration error that says where to wrap."""
    served = daemon("hostile_handlers:WrapsItsListener", workers=1, ready=False)
    assert served.wait() == 78
    assert "wrap each connection" in served.log()


def test_get_request_that_waits_keeps_no_other_client_waiting(daemon) -> None:
    """Three clients say nothing; the fourth lane serves those who speak."""
    served = daemon("hostile_handlers:Ponders", workers=1, threads=4)
    silent = [connect(served) for _ in range(3)]
    try:
        for number in range(20):
            assert ask(served, b"%d\n" % number) == b"%d\n" % number
    finally:
        for sock in silent:
            sock.close()


def test_connection_that_the_server_class_keeps_stays_open(daemon) -> None:
    """A user's own shutdown_request decides."""
    served = daemon("hostile_handlers:KeepsConnections", workers=1, threads=2)
    with connect(served) as first, connect(served) as second:
        assert read_line(first) == read_line(second) == b"both are here\n"


def test_log_that_nobody_reads_stops_nobody(daemon, tmp_path) -> None:
    """R36: a full pipe behind log.file: clients are served, and TERM is heard."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        served = daemon("handlers:OrderHandler", "--set", f"log.file={pipe}", workers=1, threads=2)
        for _ in range(200):
            with connect(served) as sock:
                sock.sendall(b"raise\n")
                assert sock.recv(1) == b""
        assert served.stop() == 0
    finally:
        os.close(reader)


PASS_LISTENER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_passed_descriptor_has_the_options_of_a_bound_one(daemon) -> None:
    """fd://: timeouts.idle holds there too."""
    program = (sys.executable, "-c", PASS_LISTENER, *COMMAND)
    options = ("--set", "timeouts.idle=0.3")
    served = daemon("handlers:OrderHandler", *options, program=program, bind="fd://9", workers=1, threads=1)
    with connect(served) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("word", [1, 2**53 + 1, 2**64 - 1])
def test_worker_that_scribbles_hurts_only_itself(daemon, word) -> None:
    """What a worker tells is bounds-checked and never unpickled: status and metrics keep their shape, the others serve
    on, and when it dies its nonsense is gone (R51, C04)."""
    served = daemon("hostile_handlers:Scribbles", "--set", "metrics.bind=tcp://127.0.0.1:0", workers=2, threads=2)
    before = served.status()["totals"]["accepted"]
    scribbler = int(ask(served, b"scribble %d\n" % word))
    for _ in range(3):
        jsonschema.validate(served.status(), STATUS)
        assert scrape(served)["poolserver_connections_accepted_total"] >= before
    assert served.cli("status").returncode == 0
    os.kill(scribbler, SIGKILL)
    wait_for(lambda: served.status()["totals"]["respawns"] == 1, 20, "the replacement")
    for _ in range(20):
        assert int(ask(served, b"\n")) in served.workers()
    status = served.status()
    jsonschema.validate(status, STATUS)
    assert status["totals"]["accepted"] < 1000
    wait_for(lambda: {worker["state"] for worker in served.status()["workers"]} == {"ready"}, 20, "it to be ready")
    assert served.stop() == 0
