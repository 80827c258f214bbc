"""Parked connections and their workers: hand-over to those that have time or stay, deaths, stops, descriptors."""

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGTTOU

import measures
import pytest
from clients import Storm, connect, read_line, wait_for
from test_limits import come_from
from test_parking import answer, connected, get, is_ended, options, order, stopped, wait_parked

PATIENT = options(parking__keep_alive="1h", timeouts__head="1h", timeouts__graceful="1h")


def pid_of(client: socket.socket) -> int:
    return int(order(client, b"pid"))


def pids(served) -> list[int]:
    """By slot: the last is the first to leave."""
    return [worker["pid"] for worker in served.status()["workers"]]


@contextlib.contextmanager
def held(served, wanted: list[int]) -> Iterator[list[socket.socket]]:
    """Hold a lane of each of these workers. Where a newcomer goes is the kernel's choice, while somebody has time."""
    with ExitStack() as stack:
        clients, others = [], []
        left = list(wanted)
        while left:
            client = stack.enter_context(connect(served))
            pid = pid_of(client)
            assert order(client, b"hold") == b"holding\n"
            (clients if pid in left else others).append(client)
            left = [each for each in left if each != pid]
        for client in others:
            assert order(client, b"go") == b"released\n"
            client.close()
        yield clients


def talking_with(served, stack: ExitStack, pid: int, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """So many conversations with a worker, of one lane each: all others are held meanwhile."""
    with held(served, [other for other in pids(served) if other != pid]):
        clients = [stack.enter_context(come_from(served, source)) for _ in range(count)]
        assert {pid_of(client) for client in clients} == {pid}
    return clients


# -- to a worker that has time


def test_conversation_parked_at_a_busy_worker_is_answered_by_an_idle_one(daemon) -> None:
    """4 workers x 1 lane, three of them held, its own among them."""
    served = daemon("parking_handlers:MovableOrders", *PATIENT, workers=4, threads=1)
    busy, idle = pids(served)[:3], pids(served)[3]
    with ExitStack() as stack:
        clients = [client for pid in busy for client in talking_with(served, stack, pid, 3)]
        stack.enter_context(held(served, busy))
        for client in clients:
            assert pid_of(client) == idle
    assert stopped(served)["errors"] == 0


def test_silent_newcomers_parked_at_a_busy_worker_are_served_by_an_idle_one(daemon) -> None:
    """Wherever they were parked while all were idle."""
    served = daemon("parking_handlers:MovableOrders", *PATIENT, workers=2, threads=1)
    with connected(served, 10) as silent:
        wait_parked(served, new=10)
        for busy, idle in (pids(served), pids(served)[::-1]):
            with held(served, [busy]):
                for client in silent[:5]:
                    assert pid_of(client) == idle
            del silent[:5]


def test_conversation_that_may_not_move_waits_for_its_worker(daemon) -> None:
    """It is answered there, once a lane is free."""
    served = daemon("parking_handlers:Orders", *PATIENT, workers=2, threads=1)
    busy, idle = pids(served)
    with ExitStack() as stack:
        [client] = talking_with(served, stack, busy, 1)
        with held(served, [busy]) as [holder]:
            client.sendall(b"pid\n")
            with connect(served) as good:  # a lane that has time does not take it
                assert pid_of(good) == idle
            assert order(holder, b"go") == b"released\n"
            assert int(read_line(client)) == busy


def test_source_counts_once_wherever_its_connections_go(daemon) -> None:
    """Between workers and back: exactly as many as allowed, then and after."""
    served = daemon("parking_handlers:MovableOrders", *PATIENT, *options(limits__per_source=5), workers=2, threads=1)
    first, second = pids(served)
    for _ in range(2):
        with ExitStack() as stack:
            clients = talking_with(served, stack, first, 5, "127.0.0.2")
            for there, here in ((second, first), (first, second)):
                with held(served, [here]):
                    assert {pid_of(client) for client in clients} == {there}
            wait_parked(served, new=0, between=5)
            assert is_refused(served, "127.0.0.2")
        served.wait_open(0)


def is_refused(served, source: str) -> bool:
    """Whether one more of this source is turned away."""
    try:
        with come_from(served, source) as client:
            client.sendall(b"pid\n")
            return read_line(client) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


# -- to workers that stay


@pytest.mark.parametrize("how", ["scale", "reload"])
def test_idle_clients_do_not_notice_that_their_worker_leaves(daemon, how: str) -> None:
    """Silent newcomers, those in the middle of a head, and those between two requests; none is waited for."""
    served = daemon("parking_handlers:Page", *PATIENT, workers=2, threads=2)
    with connected(served, 60) as clients:
        for client in clients[:40]:
            assert get(client, "/before") == b"/before"
        for client in clients[40:50]:
            client.sendall(b"GET /mid")
        wait_parked(served, new=20, between=40)
        before = served.workers()
        served.signal(SIGTTOU if how == "scale" else SIGHUP)
        wait_for(lambda: set(before) - set(served.workers()) and is_settled(served, how, before), 20, "the leaving")
        wait_parked(served, new=20, between=40)
        for client in clients[40:50]:
            client.sendall(b"dle HTTP/1.1\r\n\r\n")
            assert answer(client) == b"/middle"
        for client in clients:
            assert get(client, "/after") == b"/after"
    counted = stopped(served)
    assert counted["served"] == counted["accepted"]


def is_settled(served, how: str, before: list[int]) -> bool:
    """Whether whoever was to leave has left."""
    after = served.workers()
    return len(after) == 1 if how == "scale" else not set(after) & set(before) and len(after) == 2


def test_clients_that_talk_do_not_notice_that_workers_come_and_go(daemon) -> None:
    """Kept connections, each with its next request as soon as it has the answer, over five comings and goings."""
    served = daemon("parking_handlers:Page", *PATIENT, workers=2, threads=2)

    def talk(client: socket.socket, line: bytes) -> bool:
        path = "/" + line.decode().strip().replace(" ", "-")
        return all(get(client, f"{path}/{number}") == f"{path}/{number}".encode() for number in range(50))

    with Storm(served, clients=6, exchange=talk) as storm:
        for command, number in (("scale", 3), ("scale", 2), ("reload", 0), ("scale", 1), ("reload", 0)):
            assert served.ask(command, number)["ok"]
            storm.wait_for_more(1)
    assert storm.counts.is_lossless, storm.counts
    assert served.stop() == 0


def test_conversations_that_may_not_move_are_ended_politely(daemon, tmp_path) -> None:
    """Their handlers are finished, and their worker leaves without waiting for them; others stay."""
    marks = tmp_path / "marks"
    served = daemon("parking_handlers:Orders", *PATIENT, workers=2, threads=1, env={"MARKS": str(marks)})
    stays, leaves = pids(served)
    with ExitStack() as stack:
        staying = talking_with(served, stack, stays, 5)
        leaving = talking_with(served, stack, leaves, 5)
        served.wait_open(10)
        wait_parked(served, new=0, between=10)
        marks.write_text("")
        served.signal(SIGTTOU)
        assert all(is_ended(client) for client in leaving)
        wait_for(lambda: served.workers() == [stays], 20, "one to leave")
        assert len(marks.read_text().splitlines()) == 5
        assert {pid_of(client) for client in staying} == {stays}


def test_many_parked_move_at_once(daemon) -> None:
    """More than fit on the way: all arrive."""
    served = daemon("parking_handlers:Page", *PATIENT, workers=2, threads=2)
    with connected(served, 700) as clients:
        wait_parked(served, new=700)
        served.signal(SIGTTOU)
        wait_for(lambda: len(served.workers()) == 1, 30, "one to leave")
        wait_parked(served, new=700)
        for client in clients[::10]:
            assert get(client, "/here") == b"/here"


# -- deaths and stops


def test_killed_worker_loses_its_parked_and_nothing_else(daemon) -> None:
    """And the places of its sources are free at once."""
    served = daemon("parking_handlers:Orders", *PATIENT, *options(limits__per_source=8), workers=2, threads=1)
    stays, dies = pids(served)
    with ExitStack() as stack:
        here = talking_with(served, stack, stays, 4, "127.0.0.2")
        there = talking_with(served, stack, dies, 4, "127.0.0.2")
        wait_parked(served, new=0, between=8)
        assert is_refused(served, "127.0.0.2")
        os.kill(dies, SIGKILL)
        assert all(is_ended(client) for client in there)
        wait_for(lambda: len(set(served.workers()) - {dies}) == 2, 20, "another worker")
        assert {pid_of(client) for client in here} == {stays}
        again = [stack.enter_context(come_from(served, "127.0.0.2")) for _ in range(4)]
        assert all(pid_of(client) for client in again)
        wait_parked(served, new=0, between=8)
        assert is_refused(served, "127.0.0.2")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sig", [SIGTERM, SIGINT])
def test_stop_does_not_wait_for_those_that_are_silent(daemon, tmp_path, workers: int, sig: int) -> None:
    """New ones and conversations are closed; the handlers of the latter are finished; who has asked is answered."""
    marks = tmp_path / "marks"
    served = daemon("parking_handlers:Orders", *PATIENT, workers=workers, threads=2, env={"MARKS": str(marks)})
    with connected(served, 20) as silent, connected(served, 20) as regulars:
        for client in regulars:
            assert order(client, b"echo hi") == b"hi\n"
        wait_parked(served, new=20, between=20)
        if sig == SIGTERM:
            regulars[0].sendall(b"echo at the last moment\n")
        served.signal(sig)
        if sig == SIGTERM:
            assert read_line(regulars[0]) == b"at the last moment\n"
        for client in [*silent, *regulars]:
            assert is_ended(client)
        assert served.wait() == 0
    finished = len(marks.read_text().splitlines())
    # A stop now leaves them half a second, which may be all gone at once on a machine that stands still.
    assert finished == 20 if sig == SIGTERM else 0 < finished <= 20


def test_requests_under_way_are_answered_before_a_stop(daemon) -> None:
    """More kept connections have asked than there are lanes: all are answered, and then closed."""
    served = daemon("parking_handlers:Page", *PATIENT, workers=1, threads=1)
    with connected(served, 4) as clients:
        for client in clients:
            assert get(client, "/") == b"/"
        for client in clients:
            client.sendall(b"GET /hold/1 HTTP/1.1\r\n\r\n")
        wait_for(lambda: served.status()["pool"]["busy"] == 1, 10, "the lane to be busy")
        served.signal(SIGTERM)
        for client in clients:
            assert answer(client) == b"held"
            assert is_ended(client)
    assert served.wait() == 0


# -- descriptors


def limited(soft: int, hard: int) -> list[str]:
    """The daemon's command under limits of descriptors."""
    return ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-m", "poolserver", "run"]


def test_soft_limit_of_descriptors_is_raised_to_the_hard_one(daemon) -> None:
    """In the master, and so in every worker."""
    served = daemon("parking_handlers:Page", program=limited(100, 300), workers=1)
    for pid in [served.pid, *served.workers()]:
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (300, 300)
    with connected(served, 200) as clients:
        assert all(get(client, "/") == b"/" for client in clients)
        assert all(get(client, "/again") == b"/again" for client in clients)


def test_parked_are_served_though_no_descriptor_is_left(daemon) -> None:
    """Accepting pauses, and says so once; lanes go on with whom they have; when some have left, others come in."""
    served = daemon("parking_handlers:Page", *PATIENT, program=limited(100, 100), workers=1, threads=2)
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        while "accepting is paused" not in served.log():
            clients.append(stack.enter_context(connect(served)))
            clients[-1].sendall(b"GET /in HTTP/1.1\r\n\r\n")
            wait_for(lambda: "accepting is paused" in served.log() or regulars(served) == len(clients), 10, "it")
        count = regulars(served)
        inside, outside = clients[:count], clients[count:]
        assert len(inside) > 60
        assert all(answer(client) == b"/in" for client in inside)
        for _ in range(3):
            assert all(get(client, "/on") == b"/on" for client in inside)
        for client in inside[:30]:
            client.close()
        assert all(answer(client) == b"/in" for client in outside)
    assert served.log().count("accepting is paused") <= 2


def test_silent_ones_give_their_descriptors_to_newcomers(daemon) -> None:
    """The oldest first, and nobody who has had an answer: newcomers are served at once, and accepting never pauses."""
    served = daemon("parking_handlers:Page", *PATIENT, program=limited(100, 100), workers=1, threads=2)
    with connected(served, 20) as regulars, ExitStack() as stack:
        assert all(get(client, "/in") == b"/in" for client in regulars)
        silent: list[socket.socket] = []
        while not refused_for_descriptors(served):
            silent.append(stack.enter_context(connect(served)))
            silent[-1].sendall(b"GET")  # accepted at once, where the kernel keeps those back that say nothing
            count = len(silent)
            wait_for(lambda count=count: parked_or_refused(served) == count, 10, "it to be parked, or another cut")
        assert is_ended(silent[0])
        with connected(served, 5) as newcomers:
            assert all(get(client, "/new") == b"/new" for client in newcomers)
            assert all(get(client, "/on") == b"/on" for client in regulars)
        assert all(is_ended(client) for client in silent[: refused_for_descriptors(served)])
    assert "accepting is paused" not in served.log()
    assert stopped(served)["refused_descriptors"] >= 6


def parked_or_refused(served) -> int:
    """How many that have not spoken in full were parked by now."""
    return served.status()["parked"]["new"] + refused_for_descriptors(served)


def refused_for_descriptors(served) -> int:
    return served.status()["totals"]["refused"].get("descriptors", 0)


def regulars(served) -> int:
    return served.status()["parked"]["between"]


def test_check_warns_of_more_parked_than_descriptors(daemon, tmp_path) -> None:
    """In each worker: one may have most of them."""
    command = [*limited(500, 1000)[:-1], "check", "parking_handlers:Page", "--set", "parking.max_parked=950"]
    served = daemon(None, program=command, bind=(), workers=None, threads=None, ready=False)
    assert served.wait() == 0
    said = Path(served.out_path).read_text()
    assert "parking.max_parked = 950: a worker may need 1022 descriptors and has at most 1000" in said


# -- the processor


def test_worker_with_silent_clients_sleeps(daemon) -> None:
    """Also while one of its lanes is held for long: two wake-ups a second at most for each thread and a few."""
    served = daemon("parking_handlers:Orders", *PATIENT, workers=1, threads=4)
    [pid] = served.workers()
    with connected(served, 50), held(served, [pid]):
        wait_parked(served, new=50)
        quiet = measures.rate(lambda: measures.voluntary_switches([pid]), 2.0)
        assert quiet < 12
