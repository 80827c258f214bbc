"""A site under test: a folder with a configuration and a handler, which change under the daemon that serves it."""

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP

import pytest
from clients import ask, read_line, wait_for

from poolserver.errors import PoolserverError

HANDLER = """
import os, time
from handlers import OrderHandler

class Handler(OrderHandler):
    def obey(self, order, argument):
        if order == "version":
            self.answer(VERSION)
        else:
            super().obey(order, argument)
"""

DONE = re.compile(r"INFO master \[\d+\]: reload done$", re.MULTILINE)
FAILED = re.compile(r"ERROR master \[\d+\]: reload failed, nothing is changed: (.*)$", re.MULTILINE)


class Site:
    """A folder with a configuration and a handler, and the daemon that serves it."""

    def __init__(self, folder: Path, daemon) -> None:
        self.folder = folder
        self.path = folder / "site.toml"
        self.sections: dict[str, dict[str, str]] = {
            "server": {"handler": '"app:Handler"', "bind": '["tcp://127.0.0.1:0"]'},
            "pool": {"workers": "2", "threads": "4"},
        }
        self.taken: socket.socket | None = None
        self.code("1")
        self.configure()
        self._daemon = daemon

    def code(self, version: str, before: str = "") -> None:
        """Put another version of the handler there; ``before`` runs at its import."""
        # Python takes compiled code for the source's if its second and size are the same: the size never is.
        self.length = getattr(self, "length", 0) + 1
        (self.folder / "app.py").write_text(f"{before}\nVERSION = {version!r}\n{HANDLER}{'#' * self.length}\n")

    def gated(self, version: str) -> Path:
        """Code whose import takes until this file is there."""
        gate = self.folder / f"gate of {version}"
        wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
        self.code(version, before=wait)
        return gate

    def broken(self, how: Callable[["Site"], str], fail: Callable[[], str]) -> str:
        """Break it, and have that ``fail`` for the reason that is to be told; then mend it."""
        sections = {section: dict(keys) for section, keys in self.sections.items()}
        code = (self.folder / "app.py").read_text()
        reason = how(self)
        told = fail()
        assert reason in f"{told}\n{self.served.log()}"
        if self.taken is not None:
            self.taken.close()
        self.sections = sections
        self.configure()
        (self.folder / "app.py").write_text(code)
        return told

    def configure(self, **keys: str) -> None:
        """Set ``section__key`` to TOML text, or take it out with ""."""
        for name, text in keys.items():
            section, _, key = name.partition("__")
            self.sections.setdefault(section, {})[key] = text
        lines = []
        for section, pairs in self.sections.items():
            lines += [f"[{section}]", *(f"{key} = {text}" for key, text in pairs.items() if text)]
        self.path.write_text("\n".join(lines) + "\n")

    def start(self, *options: str, **others):
        self.served = self._daemon(
            None, "-c", str(self.path), *options, bind=(), workers=None, threads=None, cwd=self.folder, **others
        )
        return self.served

    def start_in(self, folder: Path):
        """Started by a shell that came there by this name."""
        shell = ("sh", "-c", 'cd "$0" && exec "$@"', str(folder), sys.executable, "-m", "poolserver", "run")
        self.served = self._daemon(
            None, "-c", "site.toml", program=shell, bind=(), workers=None, threads=None, cwd=self.folder
        )
        return self.served

    def reloads(self) -> int:
        return len(DONE.findall(self.served.log()))

    def failures(self) -> list[str]:
        return FAILED.findall(self.served.log())

    def reload(self) -> None:
        """HUP, and wait until it has succeeded."""
        count = self.reloads()
        self.served.signal(SIGHUP)
        wait_for(lambda: self.reloads() > count, 20, f"the reload:\n{self.served.log()}")

    def fail(self) -> str:
        """HUP, and wait until it has failed; why."""
        count = len(self.failures())
        self.served.signal(SIGHUP)
        wait_for(lambda: len(self.failures()) > count, 20, f"the failure:\n{self.served.log()}")
        return self.failures()[-1]

    def upgrade(self) -> None:
        """Ask for it, and wait until the new master serves, and the old one has left."""
        served, old = self.served, self.served.pid
        self.begin_upgrade()
        wait_for(lambda: all(each.pid != old for each in served.processes()), 20, f"the end of {old}:\n{served.log()}")

    def begin_upgrade(self) -> None:
        """Ask for it, and wait until the new master serves."""
        ready = len(self.served.ready_lines())
        self.served.ask("upgrade")
        self.served.wait_ready(ready + 1)

    def fail_upgrade(self) -> str:
        """Ask for it, and wait until it has failed; why."""
        with pytest.raises(PoolserverError) as failure:
            self.served.ask("upgrade")
        return str(failure.value)


def versions(served, index: int = 0) -> bytes:
    return ask(served, b"version\n", index)


def echo_order(client: socket.socket, line: bytes) -> bool:
    """A storm's exchange with ``OrderHandler``."""
    client.sendall(b"echo " + line)
    return read_line(client) == line


class Broken:
    """How a site is broken, and what the log then says."""

    @staticmethod
    def syntax_error(site):
        site.path.write_text("[server\n")
        return "site.toml:1: not valid TOML"

    @staticmethod
    def unknown_key(site):
        site.configure(pool__wrokers="3")
        return 'pool.wrokers: unknown key (did you mean "workers"?)'

    @staticmethod
    def file_missing(site):
        site.path.unlink()
        return "site.toml: cannot be read: No such file"

    @staticmethod
    def import_error(site):
        site.code("2", before="import there_is_no_such_module")
        return "server.handler: cannot import app: ModuleNotFoundError"

    @staticmethod
    def handler_syntax_error(site):
        site.code("2", before="def (")
        return "server.handler: cannot import app: SyntaxError"

    @staticmethod
    def exception_at_import(site):
        site.code("2", before="raise RuntimeError('no database')")
        return "server.handler: cannot import app: RuntimeError: no database"

    @staticmethod
    def exit_at_import(site):
        site.code("2", before="import sys; sys.exit('no')")
        return "server.handler: cannot import app: SystemExit: no"

    @staticmethod
    def hard_exit_at_import(site):
        site.code("2", before="import os; os._exit(0)")
        return "the first new worker (pid"

    @staticmethod
    def boot_hang(site):
        site.configure(timeouts__boot="1")
        site.code("2", before="import time; time.sleep(60)")
        return "was not accepting within timeouts.boot = 1 s"

    @staticmethod
    def killed_canary(site):
        site.code("2", before="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        return "was killed by SIGKILL"

    @staticmethod
    def handler_missing(site):
        site.configure(server__handler='"app:NoSuchHandler"')
        return "server.handler: module app has no 'NoSuchHandler'"

    @staticmethod
    def bind_in_use(site):
        site.taken = socket.create_server(("127.0.0.1", 0))
        port = site.taken.getsockname()[1]
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "tcp://127.0.0.1:{port}"]')
        return f"cannot bind tcp://127.0.0.1:{port}: Address already in use"

    @staticmethod
    def unreadable_key(site):
        site.configure(tls__certificate='"no.pem"', tls__key='"no.key"', server__bind='["tls://127.0.0.1:0"]')
        return "no.pem cannot be read"

    @staticmethod
    def log_on_a_full_disk(site):
        site.configure(log__file='"/dev/full"')
        return "log.file: cannot write /dev/full: No space left on device"

    @staticmethod
    def log_in_no_folder(site):
        site.configure(log__file='"/no/such/folder/log"')
        return "log.file: cannot open '/no/such/folder/log': No such file or directory"

    @staticmethod
    def what_cannot_change(site):
        site.configure(socket__reuse_address="false", server__chdir='"/"')
        return "socket.reuse_address: a reload cannot change it; restart"
