"""systemd's protocols without a systemd: what the service does with a NOTIFY_SOCKET and with passed descriptors."""

import array
import os
import re
import socket
import sys
from signal import SIGTERM

import pytest
from clients import ask, wait_for

PASS = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="lines")
os.execv(sys.executable, [sys.executable, "-m", "poolserver", "run", *sys.argv[1:]])
"""
"""What systemd does: it binds, forks, and passes on."""


class Manager:
    """The other end of a NOTIFY_SOCKET: keeps what it is told, and the descriptors that it is given."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)
        self.told: list[str] = []
        self.fds: list[int] = []

    def hears(self, text: str) -> bool:
        """Whether this has been told by now."""
        while True:
            try:
                octets, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return any(text in message.splitlines() for message in self.told)
            self.told.append(octets.decode())
            for _, _, passed in ancillary:
                self.fds += array.array("i", passed)

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A NOTIFY_SOCKET of either kind."""
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@pool-test-{os.getpid()}")
    yield made
    made.close()


def test_life_of_a_service_is_told_in_order(daemon, manager):
    """Listeners are stored, READY=1 when the workers accept, STOPPING=1 when it is told to stop."""
    served = daemon("handlers:LineHandler", env={"NOTIFY_SOCKET": manager.address})
    wait_for(lambda: manager.hears("READY=1"), 10, "READY=1")
    assert served.stop(SIGTERM) == 0
    assert manager.hears("STOPPING=1")
    words = [message.partition("\n")[0] for message in manager.told]
    assert [word for word in words if not word.startswith(("STATUS=", "EXTEND"))] == [
        "FDSTORE=1",
        "READY=1",
        "FDSTOREREMOVE=1",
        "STOPPING=1",
    ]
    assert len(manager.fds) == 1


def test_master_without_a_listener_for_its_news_serves_on(daemon, tmp_path):
    """The address may be dead: nothing is told, nobody waits."""
    served = daemon("handlers:LineHandler", env={"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"})
    assert ask(served, b"hello\n") == b"hello\n"
    assert served.stop(SIGTERM) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_handlers_inherit_nothing_of_it(daemon, manager, workers):
    """Neither the variables nor the descriptors: a program that a handler starts is not the service."""
    served = daemon(
        "systemd_handlers:SurroundingsHandler",
        bind="systemd:lines",
        workers=workers,
        env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "10000000", "FDSTORE": "4"},
        program=(sys.executable, "-c", PASS),
    )
    assert ask(served, b"look\n") == b"[] []\n"


def test_descriptors_for_another_process_are_left_alone(daemon):
    """LISTEN_PID names somebody else, as in a shell that systemd started: nothing was passed to us."""
    served = daemon("handlers:LineHandler", bind="systemd:", env={"LISTEN_PID": "1", "LISTEN_FDS": "1"}, ready=False)
    assert served.wait() == 71
    assert "cannot adopt systemd:: systemd passed nothing" in served.log()


def test_passed_socket_that_no_url_wants_is_named(daemon):
    """Its clients would wait for ever, and somebody should know."""
    served = daemon("handlers:LineHandler", program=(sys.executable, "-c", PASS))
    assert re.search(r"lines \(tcp://127\.0\.0\.1:\d+\) was passed, but no server\.bind is for it", served.log())


@pytest.mark.parametrize("bind", ["fd://3", "systemd:", "systemd:lines"])
def test_passed_socket_is_served_by_any_of_its_names(daemon, bind):
    """And a stop leaves its door open: it is systemd's."""
    served = daemon("handlers:LineHandler", bind=bind, program=(sys.executable, "-c", PASS))
    assert ask(served, b"hello\n") == b"hello\n"
    assert "was passed" not in served.log()


def test_nonsense_in_the_environment_is_refused(daemon):
    """71, and the variable's name."""
    served = daemon("handlers:LineHandler", env={"WATCHDOG_USEC": "often"}, ready=False)
    assert served.wait() == 71
    assert "$WATCHDOG_USEC, which systemd sets, is no number: 'often'" in served.log()
