"""Plain functions, served."""

import pytest
from clients import ask, connect, storm, wait_for


@pytest.mark.parametrize("workers", [0, 2])
def test_function_owns_the_conversation_and_its_end_closes_it(daemon, workers):
    """From the command line; the connection ends with the function."""
    served = daemon("poolserver.examples.function:greet", workers=workers)
    assert ask(served, b"ann\n") == b"hello ann from 127.0.0.1\n"
    with connect(served) as client:
        client.sendall(b"\n")
        assert client.recv(1) == b""
    assert served.stop() == 0


def test_functions_of_either_order_answer_a_storm(daemon):
    """The Cookbook's order and ours."""
    for name in ("echo_line", "echo_line_of"):
        served = daemon(f"function_handlers:{name}")
        counts = storm(served, clients=8, requests=20)
        assert counts.is_lossless, counts


def test_function_that_raises_is_an_error_of_that_connection_alone(daemon):
    """The log names the peer; the lane lives on."""
    served = daemon("function_handlers:fail", workers=1, threads=1)
    for _ in range(3):
        assert ask(served, b"hello\n") == b""
    served.counted(errors=3)
    wait_for(lambda: served.status()["pool"]["idle"] == 1, 10, "the lane to be idle")
    assert "RuntimeError: ordered to fail" in served.log()


def test_function_on_a_datagram_listener_is_refused(daemon):
    """At the start, with exit code 78."""
    served = daemon("poolserver.examples.function:greet", bind="udp://127.0.0.1:0", ready=False)
    assert served.wait() == 78
    assert "greet is a plain function, which serves connections" in served.log()
