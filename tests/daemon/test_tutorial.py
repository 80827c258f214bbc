"""docs/tutorial.md does what it says: followed from an empty folder, command by command."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from clients import own_port
from daemons import environment

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

BLOCK = re.compile(r"(?:`(?P<file>\w+\.\w+)`[^`]*)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

NEEDS_AN_INDEX = ("python3 -m venv", ". env/", "pip install")

PATIENCE = ("timeout=2)", "timeout=20)")
"""What the page's client has where it is to be answered: two seconds are little on a busy machine."""


def steps(page: str) -> Iterator[tuple[str, str, str]]:
    """("file", name, text), or ("command", what is typed, what is to be seen), in the order of the page."""
    for found in BLOCK.finditer(page):
        if found["kind"] != "console":
            yield "file", found["file"], found["text"]
            continue
        for typed, _, seen in (each.partition("\n") for each in re.split(r"^\$ ", found["text"], flags=re.M)[1:]):
            if not typed.startswith(NEEDS_AN_INDEX):
                yield "command", typed, seen


def expected(seen: str) -> str:
    """What is to be seen, as an expression: a number stands for any number, space for any, … for all, also lines."""
    text = re.escape(seen.strip()).replace("…", ".*")
    return re.sub(r"(\\ )+", " +", re.sub(r"[0-9]+(\\\.[0-9]+)*", "[0-9.]+", text))


def test_a_reader_gets_from_an_empty_folder_to_a_service_that_survives(daemon, tmp_path):
    """What is shown is what is seen. ``poolserver run`` is the terminal that stays occupied."""
    folder = tmp_path / "empty"
    folder.mkdir()
    env, commands = {}, 0
    for kind, what, text in steps(TUTORIAL.read_text().replace("20000", str(own_port()))):
        if kind == "file":
            (folder / what).write_text(text)
            continue
        commands += 1
        program, *words = what.split()
        if words[0] == "run":
            served = daemon(None, *words[1:], bind=(), workers=None, threads=None, cwd=folder)
            env = environment({"XDG_RUNTIME_DIR": str(served.runtime)})
            assert re.fullmatch(expected(text), served.log().strip())
            continue
        module = ["-m", "poolserver"] if program == "poolserver" else []
        done = subprocess.run(
            [sys.executable, *module, *words],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = (done.stdout + done.stderr).strip()
        assert re.fullmatch(expected(text), output, re.DOTALL), f"$ {what}\n{output}"
        assert (done.returncode != 0) is text.startswith("poolserver: "), f"$ {what}: {done.returncode}"
        if what == "python silence.py":
            silence = folder / "silence.py"
            silence.write_text(silence.read_text().replace(*PATIENCE))
    assert commands > 12
