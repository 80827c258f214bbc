"""docs/deploy-systemd.md does what it says: its files and commands, one after another, under a real systemd."""

import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "deploy-systemd.md"

URL = "tcp://127.0.0.1:20000"

PLACES = {
    "/etc/systemd/system": "/run/units",
    "/opt/hello/venv/bin/poolserver": "env PYTHONPATH=/run/repo /run/venv/bin/python -m poolserver",
    "/opt/hello": "/run/share/hello",
}
"""Where things are in the sandbox, whose disk is read-only."""

ELSEWHERE = ("python3 -m venv", "venv/bin/pip", "systemd-analyze security")
"""Needs a package index, or D-Bus."""


def blocks(kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_a_reader_gets_from_a_handler_to_a_service(sandbox):
    """Every command succeeds, the service answers, and goes on answering after each of them."""
    home = sandbox.share / "hello"
    home.mkdir()
    (home / "hello.py").write_text(blocks("python")[0])
    (home / "hello.toml").write_text(blocks("toml")[0])
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) > 8
    for command in commands:
        if any(word in command for word in ELSEWHERE):
            continue
        sandbox.run("sh", "-e", "-c", re.sub("|".join(PLACES), lambda found: PLACES[found[0]], command))
        if "enable --now" in command:
            assert sandbox.show("hello.socket", "ActiveState") == "active"
        if sandbox.show("hello.service", "ActiveState") == "active":
            assert sandbox.ask(URL, b"world\n", timeout=20) == b"hello, world\n"
    assert sandbox.show("hello.service", "ActiveState") == "active"
    assert sandbox.show("hello.service", "StatusText").startswith("serving: ")
    assert sys.base_prefix.startswith("/usr") or "BindReadOnlyPaths" in sandbox.systemctl("cat", "hello.service")
