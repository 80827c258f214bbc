"""Sockets that systemd passed: which URL gets which, and what is left."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolserver.address import parse
from poolserver.binding import bind_groups, close_all
from poolserver.errors import SystemRefusedError
from poolserver.listener import Listener, Options
from poolserver.systemd import STORED, Manager, Passed

OPTIONS = Options(backlog=5)


def bound(
    where: object = ("127.0.0.1", 0), family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.bind(where)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def url_of(sock: socket.socket, scheme: str = "tcp") -> str:
    return f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"


class Scene:
    """What was passed, and what is bound of it; all closed in the end."""

    def __init__(self) -> None:
        self.sockets: list[tuple[str, socket.socket]] = []
        self.listeners: list[Listener] = []

    def passes(self, name: str, *where: object) -> socket.socket:
        sock = bound(*where)  # type: ignore[arg-type]
        self.sockets.append((name, sock))
        return sock

    def bind(self, *urls: str) -> list[Listener]:
        self.passed = Passed(self.sockets)
        groups = bind_groups(urls, OPTIONS, passed=self.passed)
        self.listeners = [listener for group in groups for listener in group.listeners]
        return self.listeners

    def close(self) -> None:
        close_all(self.listeners)
        for _, sock in self.sockets:
            sock.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_names_take_their_own_and_the_bare_url_the_rest(scene: Scene) -> None:
    """In whatever order the URLs stand; two sockets may have one name."""
    first, a, b, datagrams = (
        scene.passes("a"),
        scene.passes("b"),
        scene.passes("b"),
        scene.passes("c", ("127.0.0.1", 0), socket.AF_INET, socket.SOCK_DGRAM),
    )
    listeners = scene.bind("systemd:", "systemd:b")
    assert [listener.socket for listener in listeners] == [first, datagrams, a, b]
    assert [listener.address.scheme for listener in listeners] == ["tcp", "udp", "tcp", "tcp"]
    assert all(listener.is_adopted for listener in listeners)
    assert scene.passed.left() == []


def test_socket_is_adopted_for_the_url_that_it_is_bound_to(scene: Scene) -> None:
    """Of the right kind only: the same port of UDP is another address."""
    stream = scene.passes("x")
    port = stream.getsockname()[1]
    listeners = scene.bind(f"udp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}")
    assert listeners[1].socket is stream
    assert not listeners[0].is_adopted


def test_host_may_be_written_in_any_way(scene: Scene) -> None:
    """[0:0::1] is [::1]."""
    sock = scene.passes("x", ("::1", 0), socket.AF_INET6)
    (listener,) = scene.bind(f"tcp://[0:0::1]:{sock.getsockname()[1]}")
    assert listener.socket is sock


def test_socket_of_both_families_is_all_that_a_port_needs(scene: Scene) -> None:
    """``ListenStream=8080`` binds [::] for IPv4 too: 0.0.0.0 cannot be bound beside it."""
    dual = socket.socket(socket.AF_INET6)
    dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    dual.bind(("::", 0))
    dual.listen()
    scene.sockets.append(("x", dual))
    (listener,) = scene.bind(f"tcp://:{dual.getsockname()[1]}")
    assert listener.socket is dual


def test_stored_listener_is_ours_again_file_and_all(scene: Scene, tmp_path: Path) -> None:
    """It is served with the backlog of today, and its file goes with it."""
    path = tmp_path / "socket"
    scene.passes(f"{STORED}x", str(path), socket.AF_UNIX)
    (listener,) = scene.bind(f"unix:{path}")
    assert not listener.is_adopted
    listener.close()
    assert not path.exists()


def test_stored_unix_socket_whose_file_is_gone_is_bound_anew(scene: Scene, tmp_path: Path) -> None:
    """Nobody could reach it."""
    path = tmp_path / "socket"
    old = scene.passes(f"{STORED}x", str(path), socket.AF_UNIX)
    path.unlink()
    (listener,) = scene.bind(f"unix:{path}")
    assert listener.socket is not old
    assert path.is_socket()


def test_what_was_stored_for_others_is_dropped_and_what_was_passed_is_named(scene: Scene) -> None:
    """The store is ours to tidy; a socket unit's socket is not."""
    stored, passed = scene.passes(f"{STORED}x"), scene.passes("unit")
    scene.bind("tcp://127.0.0.1:0")
    assert scene.passed.drop_stored() == [f"{STORED}x"]
    assert stored.fileno() == -1
    assert scene.passed.left() == [f"unit ({url_of(passed)})"]


def test_name_that_was_not_passed_is_refused(scene: Scene) -> None:
    """With what was; and what was bound before is closed."""
    sock = scene.passes("unit")
    with pytest.raises(
        SystemRefusedError, match=rf"cannot adopt systemd:other: systemd passed unit \({url_of(sock)}\)"
    ):
        scene.bind("systemd:other")


def test_socket_that_does_not_listen_is_refused(scene: Scene) -> None:
    """As with fd://."""
    deaf = socket.socket()
    scene.sockets.append(("x", deaf))
    with pytest.raises(SystemRefusedError, match="cannot adopt systemd:x: it is not listening"):
        scene.bind("systemd:x")


def test_successor_finds_all_that_we_found() -> None:
    """With its own pid: with ours it would be deaf. What systemd passed to us is not passed to it so."""
    manager = Manager("/run/notify", 2.5, has_store=True)
    environ = {"LISTEN_FDS": "2", "LISTEN_PID": "4710", "WATCHDOG_PID": "4710", "HOME": "/srv"}
    assert manager.environment_of(4711, environ) == {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_PID": "4711",
        "WATCHDOG_USEC": "2500000",
        "FDSTORE": "1",
        "HOME": "/srv",
    }
    assert Manager().environment_of(os.getpid(), {}) == {}


def test_url_without_a_name_means_all() -> None:
    assert [address.url for address in parse("systemd:") + parse("systemd:web")] == ["systemd:", "systemd:web"]
