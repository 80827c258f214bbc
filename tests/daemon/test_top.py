"""``poolserver top`` on a real terminal."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from signal import SIGKILL

import pytest
from clients import wait_for
from test_lifecycle import hold

SIZE = (24, 80)


class Terminal:
    """A pseudo-terminal of 80 x 24 and the program on it."""

    def __init__(self, *words: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", *SIZE, 0, 0))
        os.set_blocking(self.master, False)
        self.modes = termios.tcgetattr(self.slave)
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "poolserver", *words],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.output += os.read(self.master, 65536).decode(errors="replace")
        return self.output

    def shows(self, text: str) -> bool:
        return text in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.read())

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator:
    opened: list[Terminal] = []

    def open_one(*words: str) -> Terminal:
        opened.append(Terminal(*words))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_shows_the_service_live_and_leaves_the_terminal_as_it_was(daemon, terminal, key) -> None:
    """A client that comes is seen; a key ends it with 0."""
    served = daemon("handlers:OrderHandler", workers=2, threads=4)
    screen = terminal("top", "--control", str(served.control_path))
    wait_for(lambda: screen.shows(" SERVING  handlers for "), 20, "the screen")
    with hold(served) as client:
        peer = "{}:{}".format(*client.getsockname())
        wait_for(lambda: screen.shows(peer), 20, f"{peer} on the screen")
    screen.type(key)
    wait_for(lambda: screen.read() is not None and screen.process.poll() is not None, 20, "the end of top")
    assert screen.process.returncode == 0
    assert termios.tcgetattr(screen.slave) == screen.modes
    # the cursor, and what was there before; the kernel may be late to bring it
    wait_for(lambda: screen.read().rstrip().endswith("\x1b[?25h\x1b[?1049l"), 10, "the screen of before")
    assert served.stop() == 0


def test_tells_when_nobody_answers_any_more(daemon, terminal) -> None:
    """And goes on looking."""
    served = daemon("handlers:LineHandler")
    screen = terminal("top", "--control", str(served.control_path))
    wait_for(lambda: screen.shows(" SERVING "), 20, "the screen")
    served.signal(SIGKILL)
    wait_for(lambda: screen.shows("NO ANSWER FOR"), 20, "the silence")
    screen.type(b"q")
    wait_for(lambda: screen.read() is not None and screen.process.poll() == 0, 20, "the end of top")


def test_without_a_terminal_says_so(daemon) -> None:
    """1, and what to use instead."""
    served = daemon("handlers:LineHandler")
    done = served.cli("top")
    assert (done.returncode, done.stderr) == (1, "poolserver: top needs a terminal; `poolserver status` does not\n")


def test_without_the_extra_says_how_to_get_it(tmp_path) -> None:
    """One line."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "poolserver", "top"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "poolserver: top needs rich: pip install 'poolserver[top]'\n")
