"""Threads of lanes that end where no lane sees it: a new one takes their place."""

import socket
import socketserver
import threading

import pytest
from clients import wait_for

from poolserver import PreThreadTCPServer
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
