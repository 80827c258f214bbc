"""`attack.py` as a process of its own: an attack while the block runs, or a client that is waited for."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from running import BenchError, Running

ATTACK = Path(__file__).resolve().parent / "attack.py"
# Every kind has a bound of its own far below.
ATTACK_TIMEOUT = 120.0

GOOD = "127.0.0.3"
EVIL = "127.0.0.2"
MANY = "127.0.1.1"  # the first of many


class Attack:
    """One call of `attack.py`. `seen` is what it saw, once it has ended."""

    def __init__(self, kind: str, server: Running, source: str, *numbers: float) -> None:
        words = [kind, str(server.port), source, *map(str, numbers)]
        self._command = [sys.executable, "-I", "-S", str(ATTACK), *words]
        self._name = f"{kind} on {server.label}"
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell it to end by the end of its input, and take what it saw."""
        try:
            said, _ = self._process.communicate(timeout=ATTACK_TIMEOUT if kind is None else 0)
        except subprocess.TimeoutExpired:
            said = ""
        finally:
            self._process.kill()
            self._process.wait()
        if kind is None:
            self.seen = self._read(said)

    def wait(self) -> dict[str, Any]:
        """Run it to its own end; what it saw."""
        try:
            done = subprocess.run(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                timeout=ATTACK_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self._name}: not over within {ATTACK_TIMEOUT:g} s") from None
        return self._read(done.stdout)

    def _read(self, said: str) -> dict[str, Any]:
        try:
            seen: dict[str, Any] = json.loads(said)
        except ValueError:
            raise BenchError(f"{self._name}: it failed, saying {said!r}") from None
        return seen
