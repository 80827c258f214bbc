"""One set of behaviours × {PreFork, PreThread, daemon}: ``serve`` starts each kind with the same words."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

PROGRAMS = {
    "prefork": [sys.executable, str(HERE / "library.py"), "prefork"],
    "prethread": [sys.executable, str(HERE / "library.py"), "prethread"],
    "daemon": [sys.executable, "-m", "poolserver", "run"],
}


@pytest.fixture(params=PROGRAMS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def serve(kind, daemon) -> Callable:
    """The ``daemon`` fixture for each kind in turn; ``redirect`` is the shell's, for its standard error."""

    def start(handler: str, *options: str, redirect: str = "", **more):
        program = PROGRAMS[kind]
        if redirect:
            program = ["bash", "-c", f'exec "$@" {redirect}', "bash", *program]
        return daemon(handler, *options, program=program, **more)

    return start
