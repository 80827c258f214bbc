"""The traps of socketserver (RELIABILITY.md, section 1) that only a daemon can fall into, each with its figure."""

import os
import signal
import socket
import stat
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import measures
import pytest
from clients import Address, ask, connect, dial, own_port, read_line, storm, wait_for

TRAPS = "trap_handlers:TrapHandler"


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


def test_sixteen_workers_cost_three_switches_a_connection(daemon):
    """S06: of 16 idle workers a connection wakes one, not the herd: at most 3 context switches each."""
    served = daemon("trap_handlers:EmptyHandler", workers=16, threads=1)
    pids = served.workers()
    assert len(pids) == 16
    switches = []
    while not switches or switches[-1] > 300:  # the longer it takes, the more are the workers' own affairs
        assert len(switches) < 5, switches
        before = measures.voluntary_switches(pids)
        for _ in range(100):
            with connect(served) as client:
                assert client.recv(1) == b""
        switches.append(measures.voluntary_switches(pids) - before)


def test_stop_while_idle_takes_less_than_a_poll_interval(daemon):
    """S05: a stop is an event, not polled for: it takes less than half of the stock 0.5 s, or of what a start takes."""
    tries = []
    for _ in range(5):  # on a busy machine one may be unlucky
        begin = time.monotonic()
        served = daemon(TRAPS, workers=2, threads=8)
        ready = time.monotonic()
        assert served.stop() == 0
        tries.append((ready - begin, time.monotonic() - ready))
        if tries[-1][1] < max(0.25, 0.5 * max(tries)[0]):
            return
    pytest.fail(f"starts and stops took {tries}")


def test_worker_without_descriptors_leaves_the_clients_to_others(daemon):
    """S10, R21: the other worker serves them, nobody spins, the log says it once, and the first resumes by itself."""
    served = daemon(TRAPS, workers=2, threads=4)
    with connect(served) as client:
        starved = int(order(client, b"pid"))
        assert order(client, b"hog") == b"hogged\n"
        # clients until the starved worker has met one it cannot accept; each is answered
        wait_for(lambda: answered_elsewhere(served, starved) and "accepting is paused" in served.log(), 20, "EMFILE")
        counts = storm(served, clients=4, requests=25, exchange=lambda one, _: order(one, b"pid") != b"%d\n" % starved)
        assert counts.is_lossless, counts
        assert measures.rate(lambda: measures.cpu_seconds([starved]), 1.0) < 0.05
        assert order(client, b"free") == b"freed\n"
    wait_for(lambda: "accepting again after" in served.log(), 20, "the end of the episode")
    with ExitStack() as stack:  # more than the other worker has lanes for
        clients = [stack.enter_context(connect(served)) for _ in range(6)]
        assert b"%d\n" % starved in [order(client, b"pid") for client in clients]
    assert served.log().count("accepting is paused") == 1


def answered_elsewhere(served, starved: int) -> bool:
    """Whether the replies came from another worker, as they must: to more clients at once than it has lanes for, since
    the kernel may wake it alone as long as one of them is idle."""
    with ExitStack() as stack:
        for client in [stack.enter_context(connect(served)) for _ in range(6)]:
            assert order(client, b"pid") != b"%d\n" % starved
            client.close()
    return True


# -- Unix sockets


def test_stale_unix_socket_is_replaced(daemon, tmp_path):
    """S21: the file of a killed daemon is no obstacle, though allow_reuse_address does not help there."""
    path = f"{tmp_path}/s.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(path)
    assert Path(path).exists()
    served = daemon("handlers:LineHandler", bind=f"unix:{path}")
    assert ask(served, b"hello\n") == b"hello\n"
    assert served.stop() == 0
    assert not Path(path).exists()


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_live_unix_socket_is_not_taken(daemon, tmp_path, scheme):
    """S21: a second daemon on the same path ends with 71 and names the first, which serves on."""
    bind = f"{scheme}:{tmp_path}/s.sock"
    handler = {"unix": "handlers:LineHandler", "unixgram": "trap_handlers:DatagramEcho"}[scheme]
    first = daemon(handler, bind=bind)
    second = daemon(handler, bind=bind, ready=False)
    assert second.wait() == 71
    assert f"held by pid {first.pid}" in second.log() or f"held by pid {first.workers()[0]}" in second.log()
    assert ask(first, b"hello\n") == b"hello\n"
    assert first.stop() == 0


def test_leaving_daemon_spares_the_socket_of_a_new_one(daemon, tmp_path):
    """S21: at its end the old daemon removes its own file only, not the one that a newer daemon has put there."""
    path = tmp_path / "s.sock"
    old = daemon("handlers:LineHandler", bind=f"unix:{path}")
    path.unlink()
    new = daemon("handlers:LineHandler", bind=f"unix:{path}")
    assert old.stop() == 0
    assert ask(new, b"hello\n") == b"hello\n"


@pytest.mark.parametrize("mode", ["0600", "0666"])
def test_unix_socket_has_the_mode_that_was_set(daemon, tmp_path, mode):
    """S21: socket.unix_mode says who may connect, whatever the umask."""
    path = tmp_path / "s.sock"
    daemon("handlers:LineHandler", "--set", f"socket.unix_mode={mode}", bind=f"unix:{path}", program=with_umask())
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


def with_umask() -> list[str]:
    """The command line under a umask that would take bits away."""
    script = 'umask 077; exec "$@"'
    return ["sh", "-c", script, "sh", sys.executable, "-m", "poolserver", "run"]


# -- IPv6


def test_bare_port_listens_in_both_families(daemon):
    """S24, S35: tcp://:0 is two listeners on one port, IPV6_V6ONLY set, and each sees its family's addresses."""
    served = daemon(TRAPS, bind="tcp://:0")
    assert len(served.urls) == 2
    assert served.port_of(0) == served.port_of(1)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        where = Address(host, family, socket.SOCK_STREAM, (host, served.port))
        with dial(where, 5) as client:
            assert order(client, b"peer").startswith(f"('{host}', ".encode())


def test_dual_stack_listener_serves_mapped_clients(daemon):
    """S24: with socket.ipv6_only off an IPv4 client comes as ::ffff:127.0.0.1 in a 4-tuple, and is served."""
    served = daemon(TRAPS, "--set", "socket.ipv6_only=false", bind="tcp://[::]:0")
    with dial(Address("mapped", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", served.port)), 5) as client:
        assert order(client, b"peer").startswith(b"('::ffff:127.0.0.1', ")


# -- the port


def test_restart_finds_its_port_free_after_connections(daemon):
    """S27: connections in TIME_WAIT, which the server closed first, do not hold the port."""
    first = daemon("trap_handlers:EmptyHandler", bind=f"tcp://127.0.0.1:{own_port()}")
    with ExitStack() as stack:
        for _ in range(20):
            assert stack.enter_context(connect(first)).recv(1) == b""
    assert first.stop() == 0
    second = daemon("handlers:LineHandler", bind=first.urls[0])
    assert ask(second, b"hello\n") == b"hello\n"


def test_port_held_by_a_handlers_child_is_named(daemon):
    """S30: a child that a handler forked keeps the listener of a killed daemon: the next start says who it is."""
    first = daemon(TRAPS, workers=1)
    child = int(ask(first, b"fork\n"))
    try:
        first.signal(signal.SIGKILL)
        first.wait()
        wait_for(lambda: [process.pid for process in first.processes()] == [child], 20, "the workers to leave")
        second = daemon("handlers:LineHandler", bind=first.urls[0], ready=False)
        assert second.wait() == 71
        assert f"held by pid {child} (" in second.log()
    finally:
        os.kill(child, signal.SIGKILL)


# -- datagrams


def test_burst_of_datagrams_waits_in_a_raised_buffer(daemon):
    """S34: 2000 datagrams of 1000 bytes in one burst are all handled, where the default buffer drops most."""
    served = daemon(
        "trap_handlers:DatagramEcho",
        "--set",
        "socket.receive_buffer=16M",
        bind="udp://127.0.0.1:0",
        workers=1,
        threads=8,
    )
    if "granted of" in served.log():
        pytest.skip("neither privileges nor net.core.rmem_max allow the buffer")
    with connect(served) as client:
        for number in range(2000):
            client.send(b"%016d" % number + bytes(984))
        served.counted(served=2000, accepted=2000)
    assert served.status()["listeners"][0]["drops"] == 0
