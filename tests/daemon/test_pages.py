"""What the pages in docs/ and the README show is run: services, programs, orders, and what is quoted of their answers.

The tutorial, the systemd page and the proxies' have tests of their own; ``tests/unit/test_docs.py`` sees to it that
nothing is left over.
"""

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest
from clients import ask, connect, own_port, read_line, wait_for
from daemons import Daemon, environment
from pages import DOCS, PAGES, blocks, commands, typed, write_files

HELLO = {b"hello world\n", b"good day, world\n"}
"""The tutorial changes it; pages that show no ``hello.py`` leave their reader with the latter."""

ANSWERS = {
    "hello": HELLO,
    "before": HELLO,
    "after": HELLO,
    "service": {b"world\n"},
    "shout": {b"WORLD\n"},
    "upper": {b"WORLD\n"},
    "bounded": {b"WORLD\n"},
    "filtered": {b"hello\n"},
}
"""What ``world`` is answered, by the module of the handler; ``service`` is an echo in the library's page."""

ELSEWHERE = {"tutorial", "deploy-systemd"}
"""Pages with a test of their own."""

ORDERS = ("status", "stacks", "scale", "reload", "reopen", "upgrade")


def lines(*words: str) -> list[tuple[Path, str]]:
    """The pages' calls of poolserver with these commands."""
    every = [(page, line) for page in PAGES if page.stem not in ELSEWHERE for line in commands(page)]
    return [(page, line) for page, line in every if re.search(rf"poolserver ({'|'.join(words)})\b", line)]


OWN = [
    (page, line)
    for page, line in lines("run")
    if "poolserver.examples." not in line and "--help" not in line and "--daemon" not in line
]
"""Services of handlers that the pages show. The examples, and ``--daemon``, have tests of their own."""


def local(text: str, folder: Path) -> str:
    """Ports of the kernel's choice, sockets in the folder."""
    text = re.sub(r"(tcp://[0-9.]+):[0-9]+", r"\1:0", text)
    return text.replace("unix:/tmp/", f"unix:{folder}/")


def serve(daemon, page: Path, line: str, folder: Path) -> Daemon:
    """Run what is shown, from a folder with what its reader has there."""
    write_files(page, folder)
    for file in folder.glob("*.toml"):
        file.write_text(local(file.read_text(), folder))
    words = shlex.split(local(line, folder), comments=True)
    env = {}
    while "=" in words[0]:
        env |= [words.pop(0).split("=", 1)]
    options = words[2:]
    if not {"-b", "-c"} & set(options):
        options += ["-b", "tcp://127.0.0.1:0"]
    return daemon(None, *options, bind=(), workers=None, threads=None, cwd=folder, env=env)


@pytest.mark.parametrize(("page", "line"), OWN, ids=[f"{page.stem}: {line}" for page, line in OWN])
def test_every_service_shown_serves(daemon, tmp_path, page, line):
    """It gets ready, answers, and stops."""
    served = serve(daemon, page, line, tmp_path)
    named = re.search(r"(\w+):\w+", line)
    assert ask(served, b"world\n") in ANSWERS[named[1] if named else "hello"]
    assert served.stop() == 0


def test_every_handler_shown_is_served():
    """A Python block with a handler is named in a line that is run, here or in its page's own test."""
    named = {match for _, line in OWN for match in re.findall(r"(\w+):\w+", line)}
    for page in PAGES:
        for block in blocks(page, "python"):
            if page.stem not in ELSEWHERE and re.search(r"^(class|async def) ", block.text, re.MULTILINE):
                assert block.file, f"{block}: it has no name, and cannot be run"
                assert Path(block.file).stem in named or "serve_forever" in block.text, f"{block}: nobody serves it"


PROGRAMS = [block for page in PAGES for block in blocks(page, "python") if "serve_forever" in block.text]


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_every_program_shown_serves(tmp_path, block):
    """As a program, in the folder of its page's files, until TERM."""
    write_files(block.page, tmp_path)
    port = own_port()
    path = tmp_path / block.file
    path.write_text(block.text.replace("20000", str(port)))
    program = subprocess.Popen([sys.executable, path.name], cwd=tmp_path, env=environment({}), start_new_session=True)
    try:
        wait_for(lambda: program.poll() is not None or is_answering(port), 20, f"{block} to listen")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"world\n")
            expected = ANSWERS["hello"] if "hello" in block.text.lower() else ANSWERS["service"]
            assert read_line(client) in expected
        program.send_signal(SIGTERM)
        assert program.wait(40) == (0 if "poolserver" in block.text else -SIGTERM)
    finally:
        program.kill()
        program.wait(20)


def is_answering(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20):
        return True
    return False


def test_every_order_shown_is_obeyed(daemon, tmp_path):
    """Each is typed once, by its reader in the same folder; clients are served all the time."""
    page = DOCS / "tutorial.md"
    control = tmp_path / "hello.sock"
    options = f"-w 2 -t 4 --set control.socket={control} --set log.file={tmp_path}/log"
    served = serve(daemon, page, f"poolserver run -c hello.toml {options}", tmp_path)
    with (tmp_path / "hello.toml").open("a") as file:
        file.write(f'\n[control]\nsocket = "{control}"\n')
    given = orders(control)
    assert {words[0] for words in given} == set(ORDERS)
    for words in given:
        code, output = run(words, tmp_path)
        assert code == 0, f"{words}: {output}"
        assert ask(served, b"world\n") in HELLO
    assert run(["stop", "-c", "hello.toml"], tmp_path)[0] == 0


def orders(control: Path) -> list[list[str]]:
    """The pages' orders, with paths of here. That of reopening the log is in a sentence.

    An upgrade comes last: the master before it may still be about to let go, and refuses another.
    """
    found = []
    for line in [*(line for _, line in lines(*ORDERS)), "poolserver reopen"]:
        words = [str(control) if "/hello.sock" in word else Path(word).name for word in shlex.split(line)[1:]]
        words += [] if {"-c", "--control"} & set(words) else ["-c", "hello.toml"]
        found += [words] if words not in found else []
    return sorted(found, key=lambda words: words[0] == "upgrade")


def test_switched_link_leads_to_the_new_release(tmp_path):
    """The deployment's first command; that of the upgrade is among the orders."""
    (line,) = [line for line in typed(DOCS / "changing.md") if line.startswith("ln ")]
    for release in ("hello-1", "hello-2"):
        (tmp_path / release).mkdir()
    (tmp_path / "hello").symlink_to("hello-1")
    subprocess.run(["sh", "-e", "-c", line.replace("/srv/", f"{tmp_path}/")], check=True, timeout=60)
    assert (tmp_path / "hello").resolve() == (tmp_path / "hello-2").resolve()


def run(words: list[str], folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "poolserver", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def shape(text: str) -> str:
    """What is the same in every run: numbers are N."""
    return re.sub(r"[0-9]+(\.[0-9]+)*", "N", text)


def test_stacks_quoted_are_what_stacks_says(daemon, tmp_path):
    """The lines of a worker, of an idle lane and of a busy one."""
    quoted = next(block.text for block in blocks(DOCS / "hung-lanes.md", "text") if block.text.startswith("worker 0"))
    served = serve(daemon, DOCS / "tutorial.md", "poolserver run hello:Hello -w 1 -t 2", tmp_path)
    with connect(served) as client:
        client.sendall(b"world\n")
        assert read_line(client) in HELLO
        code, said = run(["stacks", "--control", str(served.control_path)], tmp_path)
        assert code == 0, said
    shown = [shape(line) for line in quoted.splitlines() if re.match("worker|  lane", line)]
    assert len(shown) == 3
    assert set(shown) <= {shape(line) for line in said.splitlines()}
    assert re.search(r"^      \S*hello\.py:[0-9]+ in Hello\.handle\n          \S", said, re.MULTILINE)
    assert re.search(r"^      \S*orders\.py:[0-9]+ in Order\.handle\n          \S", quoted, re.MULTILINE)


def test_control_socket_speaks_as_quoted(daemon):
    """Each question of the page, as it stands there; the answers have its keys, and its verdict."""
    served = daemon("handlers:LineHandler", workers=1, threads=2)
    (block,) = blocks(DOCS / "control-socket.md", "text")
    exchanges = [re.split(r" {3,}", line) for line in block.text.splitlines()]
    for question, answer in exchanges[:2]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(served.control_path))
            client.sendall(question.encode() + b"\n")
            told = json.loads(read_line(client))
        quoted = json.loads(answer.replace("…", ""))
        assert (told.keys(), told["ok"]) == (quoted.keys(), quoted["ok"])
    assert len(exchanges) == 3


def test_tls_client_shown_talks(daemon, tmp_path):
    """The certificate, the service and the client of the page, one after another."""
    page = DOCS / "tls.md"
    (make,) = [line for line in typed(page) if line.startswith("openssl req ")]
    (client,) = [line for line in typed(page) if line.startswith("openssl s_client ")]
    (line,) = [each for each in commands(page) if " run " in each]
    subprocess.run(shlex.split(make), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    served = serve(daemon, page, line.replace("tls://127.0.0.1:20443", "tls://127.0.0.1:0"), tmp_path)
    command = shlex.split(client.replace("20443", str(served.port)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write(b"world\n")
        talk.stdin.flush()
        said = iter(talk.stdout.readline, b"")
        assert any(b"world" in each for each in said)
        talk.kill()
    assert served.stop() == 0
