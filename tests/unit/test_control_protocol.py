"""The control socket's server half, turn by turn, with real clients in the same thread; and where sockets are."""

import json
import os
import random
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver import rendezvous
from poolserver.commands import Command
from poolserver.console import control_socket
from poolserver.control import MAX_CLIENTS, MAX_REQUEST_BYTES, PATIENCE, ControlSocket, parse
from poolserver.errors import SystemRefusedError
from poolserver.events import Asked, AskerLeft, Event

BIG = "x" * 4_000_000
"""More than a Unix socket's buffer holds."""


class Served:
    """A control socket and its clients; ``turn`` is one turn of the master's loop, at a time of the test's own."""

    def __init__(self, control: ControlSocket, path: Path) -> None:
        self.control = control
        self.path = path
        self.now = 1000.0
        self.clients: list[socket.socket] = []
        self.asked = 0
        control.serve({"who": lambda _asker: {"name": "service"}, "big": self._big, "later": lambda _asker: None})

    def _big(self, _asker: int) -> dict[str, str]:
        self.asked += 1
        return {"text": BIG}

    def client(self, *lines: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(self.path))
        sock.setblocking(False)
        self.clients.append(sock)
        for line in lines:
            sock.sendall(line)
        return sock

    def turn(self, after: float = 0.0) -> list[Event]:
        self.now += after
        poller = select.poll()
        for fd, events in self.control.interests().items():
            poller.register(fd, events)
        return self.control.attend([fd for fd, _ in poller.poll(0)], self.now)

    def turns(self, count: int = 5) -> list[Event]:
        return [event for _ in range(count) for event in self.turn()]

    def reply(self, sock: socket.socket) -> dict[str, Any]:
        """The next line, read as the server sends it."""
        octets = b""
        for _ in range(1000):
            self.turn()
            try:
                chunk = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            octets += chunk
            if octets.endswith(b"\n"):
                return json.loads(octets)
            if not chunk:
                break
        raise AssertionError(f"no reply but {octets[:100]!r}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "c"
    with control_socket(str(path), "service", 0o600, {}) as control:
        assert control is not None
        one = Served(control, path)
        yield one
        for sock in one.clients:
            sock.close()
    assert not path.exists()


def is_closed(sock: socket.socket) -> bool:
    try:
        while chunk := sock.recv(1 << 20):
            assert chunk
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_question_is_answered_and_the_next_too(served: Served) -> None:
    """One connection may ask again and again."""
    sock = served.client(b'{"command":"who"}\n')
    assert served.reply(sock) == {"ok": True, "reason": "", "name": "service"}
    sock.sendall(b'{"command":"who"}\n')
    assert served.reply(sock)["ok"]


def test_requests_sent_at_once_are_answered_one_by_one(served: Served) -> None:
    """The second waits in our buffer, which no descriptor tells of."""
    sock = served.client(b'{"command":"who"}\n{"command":"nonsense"}\n')
    served.turns(2)
    assert served.control.deadline() == 0.0
    served.turns()
    replies = [json.loads(line) for line in sock.recv(65536).splitlines()]
    assert [reply["ok"] for reply in replies] == [True, False]


def test_command_becomes_an_event_and_waits_for_its_answer(served: Served) -> None:
    """However long it takes."""
    sock = served.client(b'{"command":"scale","number":4}\n')
    (event,) = served.turns()
    assert isinstance(event, Asked)
    assert (event.command, event.number) == (Command.SCALE, 4)
    assert served.turn(after=1000 * PATIENCE) == []
    served.control.answer(event.asker, False, "no room")
    assert served.reply(sock) == {"ok": False, "reason": "no room"}


def test_question_may_be_answered_later(served: Served) -> None:
    """With whatever it asked for."""
    sock = served.client(b'{"command":"later"}\n')
    assert served.turns() == []
    served.control.answer(1, True, stacks=["one"])
    assert served.reply(sock) == {"ok": True, "reason": "", "stacks": ["one"]}


def test_client_that_left_is_told_nothing(served: Served) -> None:
    """Its command goes on; the answer finds nobody."""
    sock = served.client(b'{"command":"reload"}\n')
    (event,) = served.turns()
    assert isinstance(event, Asked)
    sock.close()
    served.turns()
    assert len(served.control.interests()) == 1
    served.control.answer(event.asker, True)


@pytest.mark.parametrize(
    "octets",
    [b"\n", b"{}\n", b"[]\n", b"\x00\xff\xfe\n", b"[" * 3000 + b"\n", b'{"command":["who"]}\n', b"1" * 4000 + b"\n"],
    ids=["empty", "object", "list", "binary", "nested", "word", "digits"],
)
def test_nonsense_is_refused_with_the_reason(served: Served, octets: bytes) -> None:
    """One line says what is wanted, then the end."""
    sock = served.client(octets)
    reply = served.reply(sock)
    assert not reply["ok"]
    assert reply["reason"]
    assert is_closed(sock)


def test_request_without_end_is_cut_at_the_bound(served: Served) -> None:
    """What it sends further is not even read."""
    sock = served.client(b"x" * (MAX_REQUEST_BYTES + 1))
    assert "at most" in served.reply(sock)["reason"]
    assert is_closed(sock)


def test_half_a_line_has_its_time_and_no_more(served: Served) -> None:
    """Trickling does not extend it."""
    sock = served.client(b'{"comm')
    served.turn()
    served.turn(after=PATIENCE / 2)
    sock.sendall(b"and")
    served.turn(after=PATIENCE / 4)
    assert not is_closed(sock)
    served.turn(after=PATIENCE / 2)
    assert is_closed(sock)


def test_client_that_never_reads_has_its_time_and_no_more(served: Served) -> None:
    """Its reply waits in our memory meanwhile; the loop never does."""
    sock = served.client(b'{"command":"big"}\n')
    served.turns()
    assert select.POLLOUT in served.control.interests().values()
    served.turn(after=PATIENCE)
    assert len(served.control.interests()) == 1
    assert len(sock.recv(1 << 22)) < len(BIG)


def test_reply_longer_than_the_buffer_arrives_whole(served: Served) -> None:
    """Piece by piece, as the client reads."""
    assert served.reply(served.client(b'{"command":"big"}\n'))["text"] == BIG


def test_all_who_ask_in_one_turn_share_one_answer(served: Served) -> None:
    """So that no number of clients makes a turn long."""
    served.turn()
    for _ in range(MAX_CLIENTS):
        served.client(b'{"command":"big"}\n')
    served.turns(2)
    assert served.asked == 1


def test_newcomer_takes_the_place_of_the_slowest(served: Served) -> None:
    """A thousand idle connections lock nobody out."""
    idle = [served.client() for _ in range(MAX_CLIENTS)]
    served.turn()
    sock = served.client(b'{"command":"who"}\n')
    assert served.reply(sock)["ok"]
    assert is_closed(idle[0])
    assert not is_closed(idle[1])


def test_newcomer_is_refused_while_all_wait_for_the_pool(served: Served) -> None:
    """Who waits for an outcome keeps its place."""
    for _ in range(MAX_CLIENTS):
        served.client(b'{"command":"reload"}\n')
    assert len(served.turns()) == MAX_CLIENTS
    assert "waiting" in served.reply(served.client())["reason"]


def test_pool_is_told_who_left_unanswered(served: Served) -> None:
    """Or it would remember all who ever gave up."""
    sock = served.client(b'{"command":"stop"}\n')
    (asked,) = served.turns()
    assert isinstance(asked, Asked)
    sock.close()
    assert served.turns() == [AskerLeft(asked.asker)]


@given(line=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_is_sent_is_a_request_or_refused(line: bytes) -> None:
    """Nothing but ValueError comes out."""
    try:
        word, number = parse(line, ["status"])
    except ValueError:
        return
    assert word
    assert number >= 0


@given(
    request=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("scale"),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["command", "number", "x"]), inner, max_size=3)
        ),
    )
)
def test_whatever_json_is_sent_is_a_request_or_refused(request: object) -> None:
    """Likewise for what is JSON."""
    try:
        word, number = parse(json.dumps(request).encode(), ["status"])
    except ValueError:
        return
    assert word in ("status", "scale")
    assert isinstance(number, int)


REQUESTS = [b'{"command":"who"}\n', b'{"command":"scale","number":4}\n', b'{"command":"big"}\n', b"x" * 5000]


def hurt(rng: random.Random, octets: bytes) -> bytes:
    """A few bytes of it changed, left out or repeated."""
    damaged = bytearray(octets)
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(damaged) + 1)
        damaged[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(damaged)


def fuzz(served: Served, count: int, seed: int) -> None:
    """Clients that send damaged requests in damaged pieces, come and go, and mostly do not read."""
    rng = random.Random(seed)
    for number in range(count):
        if len(served.clients) < 4 or rng.random() < 0.1:
            served.client()
        sock = rng.choice(served.clients)
        try:
            sock.send(hurt(rng, rng.choice(REQUESTS)))
            if rng.random() < 0.3:
                sock.recv(1 << 16)
        except OSError:
            pass  # it was hung up on
        if rng.random() < 0.1:
            served.clients.remove(sock)
            sock.close()
        if number % 3 == 0:
            served.turn(after=rng.random() * PATIENCE / 50)
        assert len(served.control.interests()) <= MAX_CLIENTS + 1
    for sock in served.clients:
        sock.close()
    served.clients.clear()
    served.turns(3)
    served.turn(after=PATIENCE)
    assert served.reply(served.client(b'{"command":"who"}\n'))["ok"]


def test_damaged_requests_break_nothing(served: Served) -> None:
    """Afterwards it answers as ever."""
    fuzz(served, 3_000, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_damaged_requests_break_nothing(served: Served) -> None:
    """R39."""
    fuzz(served, 1_000_000, seed=2)


class TestFile:
    def test_has_the_mode_whatever_the_umask(self, tmp_path: Path) -> None:
        """Neither wider nor narrower."""
        path = tmp_path / "c"
        before = os.umask(0)
        try:
            with control_socket(str(path), "service", 0o600, {}):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(before)

    def test_configured_path_that_cannot_be_used_is_an_error(self, tmp_path: Path) -> None:
        """It names the key."""
        with (
            pytest.raises(SystemRefusedError, match=r"control\.socket"),
            control_socket(f"{tmp_path}/no/c", "s", 0o600, {}),
        ):
            pass

    def test_default_path_that_cannot_be_used_leaves_the_service_without(self, tmp_path: Path) -> None:
        """A service is worth more than its control socket."""
        with control_socket("", "s", 0o600, {"XDG_RUNTIME_DIR": f"{tmp_path}/no/such"}) as control:
            assert control.listener is None
            assert control.interests() == {}

    def test_stale_file_is_replaced(self, tmp_path: Path) -> None:
        """One that a killed master left."""
        path = tmp_path / "c"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        with control_socket(str(path), "service", 0o600, {}) as control:
            assert control is not None

    def test_file_that_is_no_socket_is_left_alone(self, tmp_path: Path) -> None:
        """It is somebody's."""
        path = tmp_path / "c"
        path.write_text("precious")
        with pytest.raises(SystemRefusedError), control_socket(str(path), "service", 0o600, {}):
            pass
        assert path.read_text() == "precious"


class TestRendezvous:
    @pytest.mark.parametrize(
        ("environ", "uid", "path"),
        [
            ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/a/control.sock"),
            ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/poolserver/hello.sock"),
            ({}, 0, "/run/poolserver/hello.sock"),
            ({"XDG_RUNTIME_DIR": ""}, 7, "/tmp/poolserver-7/hello.sock"),
        ],
    )
    def test_default_path(self, environ: dict[str, str], uid: int, path: str) -> None:
        """Under systemd, in a session, for root, and without anything."""
        assert rendezvous.default_path("hello", environ, uid) == Path(path)

    def test_folder_is_made_for_us_alone(self, tmp_path: Path) -> None:
        """0700, and found again."""
        folder = tmp_path / "folder"
        rendezvous.make_folder(folder)
        rendezvous.make_folder(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize("trap", ["link", "open", "file"])
    def test_folder_that_others_prepared_is_refused(self, tmp_path: Path, trap: str) -> None:
        """A symbolic link, a folder that others may write to, a file: /tmp belongs to everybody."""
        folder = tmp_path / "folder"
        if trap == "link":
            folder.symlink_to(tmp_path)
        elif trap == "open":
            folder.mkdir()
            folder.chmod(0o777)
        else:
            folder.write_text("")
        with pytest.raises(SystemRefusedError):
            rendezvous.make_folder(folder)
