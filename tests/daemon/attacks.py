"""Attackers, each a process of its own: ``bench/attack.py``, which says what kinds there are and what they see."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

ATTACK = Path(__file__).parents[2] / "bench" / "attack.py"

ATTACK_SECONDS = 60
"""An attack ends by itself after so long, whatever became of the test."""

ATTACK_TIMEOUT = 75.0

GOOD, EVIL, MANY = "127.0.0.3", "127.0.0.2", "127.0.1.1"
"""Sources: the last is the first of many."""


class Attack:
    """Goes on while the block runs; then ``seen`` is what it saw::

    with Attack("flood", served, EVIL, 5000, ATTACK_SECONDS) as attack: ...
    """

    def __init__(self, kind: str, served: Any, source: str, *numbers: float) -> None:
        words = [kind, str(served.port), source, *map(str, numbers)]
        self.command = [sys.executable, "-I", "-S", str(ATTACK), *words]
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            said, _ = self.process.communicate(timeout=ATTACK_TIMEOUT)  # which first ends its input, and so the attack
        finally:
            self.process.kill()
            self.process.wait()
        if kind is None:
            self.seen = json.loads(said)

    def wait(self) -> dict[str, Any]:
        """Run it to its own end; what it saw."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "timeout": ATTACK_TIMEOUT}
        return json.loads(subprocess.run(self.command, check=True, **options).stdout)


def asked(served: Any, requests: int, pause: float = 0.003, patience: float = 10.0) -> dict[str, Any]:
    """A good client's requests: in how many ``ms`` each was answered, and the ``failures`` of the others."""
    return Attack("ask", served, GOOD, requests, pause, patience, ATTACK_SECONDS).wait()
