"""What a library call goes through, in a process of its own: ``python scenarios.py NAME prefork|prethread``.

A pre-fork server must not be forked from pytest. Each scenario asserts for itself; exit status 0: it held.
"""

import os
import signal
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from handlers import LineHandler

import poolserver

CLASSES = {"prefork": poolserver.PreForkTCPServer, "prethread": poolserver.PreThreadTCPServer}


def service(kind: str, **attributes: object) -> poolserver.server.PoolMixIn:
    made = type("Service", (CLASSES[kind],), {"threads": 4, "workers": 2, **attributes})
    return made(("127.0.0.1", 0), LineHandler)


def ask(server: poolserver.server.PoolMixIn, patience: float = 10.0) -> bytes:
    with socket.create_connection(server.server_address, patience) as client:
        client.sendall(b"hello\n")
        return client.recv(100)


def children() -> str:
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def while_serving(server: poolserver.server.PoolMixIn, act: Callable[[], None]) -> None:
    """Serve in this thread, as users do, and ``act`` in another, which must end the service."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            assert ask(server) == b"hello\n"
            act()
        except BaseException as error:
            failures.append(error)
            server.shutdown()

    actor = threading.Thread(target=run)
    actor.start()
    server.serve_forever()
    actor.join()
    if failures:
        raise failures[0]


def shutdown_stops_all(kind: str) -> None:
    """S02: no lane, no worker is left, and nobody answers."""
    with service(kind) as server:
        while_serving(server, server.shutdown)
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
        assert children() == ""
        try:
            answer = ask(server, 0.2)
        except TimeoutError:
            answer = b""
        assert answer == b"", "somebody still serves"


def shutdown_twice(kind: str) -> None:
    """S03: the second, and one after the end, find nothing to do; from several threads at once all return."""
    with service(kind) as server:
        others = [threading.Thread(target=server.shutdown) for _ in range(4)]

        def act() -> None:
            for other in others:
                other.start()
            server.shutdown()
            server.shutdown()

        while_serving(server, act)
        for other in others:
            other.join(20)
            assert not other.is_alive()
        server.shutdown()


def shutdown_before_serving(kind: str) -> None:
    """S03: it makes the next serve_forever return at once, and only that one."""
    with service(kind) as server:
        server.shutdown()
        server.serve_forever()
        while_serving(server, server.shutdown)


def shutdown_in_a_signal_handler(kind: str) -> None:
    """S03: a signal handler in the serving thread asks for the stop, and serve_forever returns."""
    with service(kind) as server:
        signal.signal(signal.SIGUSR1, lambda *_: server.shutdown())
        while_serving(server, lambda: os.kill(os.getpid(), signal.SIGUSR1))


def shutdown_in_a_signal_handler_at_any_moment(kind: str) -> None:
    """S03: the handler may interrupt any line of serve_forever, also where it holds the lock of shutdown()."""
    for number in range({"prefork": 30, "prethread": 60}[kind]):
        with service(kind, workers=1, threads=1) as server:
            signal.signal(signal.SIGALRM, lambda *_, server=server: server.shutdown())
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + number * 0.0001, 0.0002)
            server.serve_forever()
            signal.setitimer(signal.ITIMER_REAL, 0)


def served_again_and_again(kind: str) -> None:
    """S04: a stop is not remembered: start, serve and stop, each time with one shutdown() too many."""
    with service(kind, workers=1, threads=1) as server:

        def act() -> None:
            server.shutdown()
            server.shutdown()

        for _ in range({"prefork": 40, "prethread": 100}[kind]):  # 40 ms a round that forks
            while_serving(server, act)


def shutdown_is_not_polled_for(kind: str) -> None:
    """S05: the median of 9 idle stops is far below the mean of the stock loop, a quarter of a second; or, on a machine
    that is so busy, below that of ten processes."""
    references = [process_seconds() for _ in range(9)]
    times: list[float] = []
    with service(kind) as server:

        def act() -> None:
            start = time.monotonic()
            server.shutdown()
            times.append(time.monotonic() - start)

        for _ in range(9):
            while_serving(server, act)
    references += [process_seconds() for _ in range(9)]
    assert statistics.median(times) < max(0.15, 10 * statistics.median(references)), (times, references)


def process_seconds() -> float:
    """How long a process takes that does nothing."""
    start = time.monotonic()
    if pid := os.fork():
        os.waitpid(pid, 0)
        return time.monotonic() - start
    os._exit(0)


def complaint(server: poolserver.server.PoolMixIn) -> str:
    """What ``serve_forever`` refuses with; nothing if it served."""
    try:
        server.serve_forever()
    except (RuntimeError, poolserver.ConfigError) as error:
        return str(error)
    return ""


def second_serve_forever_is_refused(kind: str) -> None:
    """The recipe of many threads on one server object has one call for all of them here."""
    with service(kind) as server:

        def act() -> None:
            assert "runs already" in complaint(server)
            assert ask(server)
            server.shutdown()

        while_serving(server, act)


def unusable_attributes_are_refused(kind: str) -> None:
    """Nothing is served on terms that cannot be kept, and nothing hangs."""
    wrong: list[dict[str, object]] = [{"threads": 0}, {"threads": "4"}, {"timeouts": {"gracefull": 5}}]
    if kind == "prefork":
        wrong += [{"workers": 0}, {"workers": -1}, {"workers": "2"}, {"workers": None}]
    for attributes in wrong:
        with service(kind, **attributes) as server:
            assert next(iter(attributes)) in complaint(server), attributes


def tls_wrapped_listener_is_refused(kind: str) -> None:
    """Over a plain descriptor of it everything would be sent in the clear."""
    with service(kind) as server:
        server.socket = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(server.socket, server_side=True)
        assert "TLS" in complaint(server)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in [
        shutdown_stops_all,
        shutdown_twice,
        shutdown_before_serving,
        shutdown_in_a_signal_handler,
        shutdown_in_a_signal_handler_at_any_moment,
        served_again_and_again,
        shutdown_is_not_polled_for,
        second_serve_forever_is_refused,
        unusable_attributes_are_refused,
        tls_wrapped_listener_is_refused,
    ]
}


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](sys.argv[2])
