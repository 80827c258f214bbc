"""A client that insists: how long it waits for a service that starts, or whose worker was killed."""

import os
import signal
import socket
import time

from load import TALKS
from running import BenchError, Running, children

# Between two tries of the client whose connection the killed worker took down with it: the resolution.
RETRY_INTERVAL = 0.001
ANSWER_TIMEOUT = 10.0


def gap_ms(server: Running) -> float:
    """Kill the worker and time the gap that one insistent client sees."""
    await_answer(server)  # the worker has served: it is not killed half started
    (worker,) = children(server.pid)
    killed = time.perf_counter()
    os.kill(worker, signal.SIGKILL)
    await_answer(server)
    return (time.perf_counter() - killed) * 1000


def await_answer(server: Running) -> None:
    """Ask until answered; a refused or reset try is followed by the next.

    Raises:
        BenchError: no answer within ANSWER_TIMEOUT.
    """
    deadline = time.perf_counter() + ANSWER_TIMEOUT
    while not is_answered(server):
        if time.perf_counter() > deadline:
            raise BenchError(f"{server.label}: no answer within {ANSWER_TIMEOUT:g} s\n{server.log()}")
        time.sleep(RETRY_INTERVAL)


def is_answered(server: Running, timeout: float = ANSWER_TIMEOUT) -> bool:
    """One request, one try, in the words that the server speaks."""
    request, end = TALKS[server.talk]
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout) as client:
            client.sendall(request)
            reply = b""
            while chunk := client.recv(4096):
                reply += chunk
            return reply.endswith(end)
    except (ConnectionError, TimeoutError):
        return False
