"""Threads of lanes that end where no lane sees it: a new one takes their place."""

import socket
import socketserver
import threading

import pytest
from clients import wait_for

from poolserver import ParkingMixIn, PreThreadTCPServer
from poolserver.crew import Crew
from poolserver.lane import Lane


class Holds(socketserver.BaseRequestHandler):
    """Has its lane for as long as its client stays."""

    def handle(self) -> None:
        self.request.sendall(b"h")
        self.request.recv(1)


def test_thread_that_ends_before_it_is_a_lane_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a SystemExit that another thread raises in it, say, of which `threading` says nothing."""
    run, doomed = Crew._run_lane, iter([True])

    def run_lane(crew: Crew, lane: Lane) -> None:
        if next(doomed, False):
            return
        run(crew, lane)

    monkeypatch.setattr(Crew, "_run_lane", run_lane)
    with PreThreadTCPServer(("127.0.0.1", 0), Holds) as server:
        server.threads = 2
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with socket.create_connection(server.server_address, 20) as first:
            assert first.recv(1) == b"h"
            with socket.create_connection(server.server_address, 20) as second:
                assert second.recv(1) == b"h"
        server.shutdown()
        serving.join(20)
    assert not serving.is_alive()
    wait_for(lambda: "died; replacing it" in caplog.text, 10, "the log's word")


class HoldsLater(ParkingMixIn, socketserver.StreamRequestHandler):
    """Has its lane in its second exchange, until it is let go."""

    let_go = threading.Event()
    wait_for = "line"

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        self.wfile.write(line)
        self.close_connection = line != b"first\n"
        if self.close_connection:
            self.let_go.wait(60)


def test_lane_that_leaves_waits_for_no_conversation_that_another_has() -> None:
    """It may hang, and the worker with it then, until the end of the time that there is for leaving."""

    before = set(threading.enumerate())

    def lanes() -> int:
        return sum(thread.name.startswith("lane-") for thread in set(threading.enumerate()) - before)

    with PreThreadTCPServer(("127.0.0.1", 0), HoldsLater) as server:
        server.threads = 2
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with socket.create_connection(server.server_address, 20) as client, client.makefile("rb") as answers:
            for line in (b"first\n", b"second\n"):
                client.sendall(line)
                assert answers.readline() == line
            assert lanes() == 2
            stopping = threading.Thread(target=server.shutdown)
            stopping.start()
            try:
                wait_for(lambda: lanes() == 1, 20, "the end of the idle lane")
            finally:
                HoldsLater.let_go.set()
        for thread in (serving, stopping):
            thread.join(20)
            assert not thread.is_alive()
