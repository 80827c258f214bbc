"""What is typed wrongly is answered with one clear line, and what --help says is worth reading."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolserver import cli
from poolserver.errors import PoolserverError
from poolserver.remote import Server

HELLO = """\
import socketserver


class Hello(socketserver.StreamRequestHandler):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's, who has a handler and no server."""
    (tmp_path / "helloworld.py").write_text(HELLO)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    (tmp_path / "serving.py").write_text("import threading\nthreading.Event().wait()\n")
    (tmp_path / "bad.toml").write_text("[server\n")
    (tmp_path / "proxied.toml").write_text('[proxy_protocol]\nmode = "v1"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("helloworld", None)


def typed(words: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of ``poolserver WORDS``."""
    monkeypatch.setattr(sys, "argv", ["poolserver", *words.split()])
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("rnu", 2, "Error: No such command 'rnu'."),
        ("run --bnid x", 2, "--bnid"),
        ("scale", 2, "Error: Missing argument 'N'."),
        ("run", 2, "poolserver: no handler: name one as package.module:attribute (try poolserver.examples."),
        (
            "unit",
            2,
            "EchoHandler), or as server.handler in -c FILE",
        ),
        ("run a:b --set threads=4", 2, "poolserver: --set threads=4: want SECTION.KEY=VALUE, as in "),
        ("run a:b --set pool.thread=4", 78, 'pool.thread: unknown key (did you mean "threads"?)'),
        ("run a:b -w many", 78, 'poolserver: --workers: pool.workers: must be "auto" or a whole number from 0 to 1024'),
        ("run -c nowhere.toml", 78, "poolserver: nowhere.toml: cannot be read: No such file or directory"),
        ("status -c .", 78, "poolserver: .: cannot be read: Is a directory"),
        ("check -c bad.toml", 78, "poolserver: bad.toml:1: not valid TOML: "),
        ("check a:b -c proxied.toml", 78, "proxy_protocol.trusted: must name the proxies' networks"),
        ("check helloworld:Hello -b 20000", 78, "'20000' is not an address (did you mean \"tcp://127.0.0.1:20000\"?)"),
        ("check helloworld:Hello -b localhost:80", 78, '(did you mean "tcp://localhost:80"?)'),
        ("check helloworld:Hello -b http://[::1]:80/", 78, '(did you mean "tcp://[::1]:80"?)'),
        ("check helloworld:Hello -b /tmp/s", 78, '(did you mean "unix:/tmp/s"?)'),
        ("check helloworld:Hello -b tpc://x", 78, "is not an address (known: tcp://HOST:PORT, "),
        ("check helloworld", 78, "server.handler: 'helloworld' is not of the form \"package.module:attribute\""),
        ("check helloworld.Hello", 78, '"package.module:attribute" (did you mean "helloworld:Hello"?)'),
        ("check ./helloworld:Hello", 78, '"package.module:attribute" (did you mean "helloworld:Hello"?)'),
        ("check helloworld.py:Hello", 78, "'helloworld' is not a package (did you mean \"helloworld:Hello\"?)"),
        ("check helloworld:Helo", 78, "module helloworld has no 'Helo' (did you mean \"Hello\"?)"),
        ("check helloworld:Goodbye", 78, "module helloworld has no 'Goodbye'"),
        ("check helloworld:socketserver", 78, "helloworld:socketserver is a module; want a subclass of "),
        ("stop --control nowhere", 69, "poolserver: no server answers at nowhere: No such file or directory"),
        ("reload -c helloworld.py", 78, "poolserver: helloworld.py:1: not valid TOML: "),
    ],
)
def test_mistake_is_answered_with_a_line(
    words: str, code: int, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what, where and what to do; a wrong command line has how it is used above it."""
    assert typed(words, monkeypatch) == code
    error = capsys.readouterr().err
    assert line in error.splitlines()[-1]
    assert len(error.splitlines()) == (4 if "\nError: " in error else 1)


@pytest.mark.parametrize(
    ("module", "lines"),
    [
        ("broken", ["    def f(:", "          ^", "SyntaxError: invalid syntax"]),
        ("failing", ["Traceback (most recent call last):", "    1 / 0", "ZeroDivisionError: division by zero"]),
        ("serving", ["    threading.Event().wait()", "TimeoutError: has not ended within timeouts.boot = 0.2 s"]),
    ],
)
def test_traceback_of_a_handler_begins_in_its_own_code(
    module: str, lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the line that names the cause; how it came to be imported is of no interest."""
    assert typed(f"check {module}:Handler --set timeouts.boot=200ms", monkeypatch) == 78
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith(f"poolserver: server.handler: cannot import {module}: ")
    assert set(lines) <= set(error)
    assert not [line for line in error[1:] if "importlib" in line or "handlers.py" in line]


def test_help_lists_commands_whole_and_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with a line that is not cut, as somebody meets them; ``run`` first."""
    monkeypatch.setenv("COLUMNS", "80")
    assert typed("--help", monkeypatch) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(cli.cli.commands)
    assert listed[0].split()[0] == "run"
    assert not [line for line in listed if "..." in line]


def test_stranger_is_told_why_it_is_not_answered(tmp_path: Path) -> None:
    """The server has refused and closed, perhaps before anything was asked of it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen()

        def refuse() -> None:
            client, _ = listener.accept()
            client.sendall(b'{"ok":false,"reason":"only root and the server\'s own user may ask"}\n')
            client.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        with (
            pytest.raises(PoolserverError, match="/s: only root and the server's own user may ask"),
            Server.at(tmp_path / "s"),
        ):
            pass
        thread.join()


def test_full_disk_is_a_line() -> None:
    """What cannot be printed is told on standard error."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "poolserver", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 71
    assert done.stderr == "poolserver: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["--version", "--help", "status"])
def test_who_only_asks_does_not_wait_for_what_serves_to_be_imported(command: str, tmp_path: Path) -> None:
    """A fifth of the start-up time. Without a configuration to read, there is no model of it."""
    lines = f"""\
import sys
from poolserver.cli import main
sys.argv = ["poolserver", {command!r}]
try:
    main()
finally:
    print(sorted({{"pydantic", "asyncio", "psutil", "poolserver.service", "poolserver.check"}} & {{*sys.modules}}))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("POOLSERVER_")}
    done = subprocess.run(
        [sys.executable, "-c", lines],
        env=env | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "[]"
