"""Giving up root: what /proc says of every process, who owns what was made, and that there is no way back."""

import os
import pwd
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGTERM, SIGUSR1

import pytest
from clients import ask, connect, wait_for
from proc import files

from poolserver.remote import Server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")

AFTER = "os.execv(sys.executable, [sys.executable, '-m', 'poolserver', 'run', *sys.argv[1:]])"
"""How a program goes on as the service."""

NOBODY = pwd.getpwnam("nobody")
ECHO = "poolserver.examples.echo:EchoHandler"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of nobody's, which nobody can reach: pytest's own folders are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="pool-"))
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    shutil.rmtree(folder)


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_process_is_the_user_and_nothing_else(daemon, place, workers):
    """Real, effective, saved and file-system ids, groups, capabilities; the master's too (R50, C05)."""
    options = ["--set", "server.user=nobody", "--set", "server.preload=true"]
    served = daemon(ECHO, *options, workers=workers, cwd=place)
    pids = [served.pid, *served.workers()]
    assert len(pids) == 1 + workers
    for pid in pids:
        facts = status(pid)
        assert set(facts["Uid"].split()) == {str(NOBODY.pw_uid)}
        assert set(facts["Gid"].split()) == {str(NOBODY.pw_gid)}
        assert facts["Groups"] == ""
        assert facts["NoNewPrivs"] == "1"
        assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


def test_supplementary_groups_are_the_users_own(daemon, place):
    """Those of whoever started it are gone; those that the user is a member of, if any, are there."""
    crowd = f"import os, sys; os.setgroups([0, 4, 27]); {AFTER}"
    own = {
        entry.pw_name: set(os.getgrouplist(entry.pw_name, entry.pw_gid)) - {entry.pw_gid} for entry in pwd.getpwall()
    }
    member = next((name for name, groups in own.items() if groups and name != "root"), "nobody")
    served = daemon(ECHO, "--set", f"server.user={member}", cwd=place, program=(sys.executable, "-c", crowd))
    for pid in (served.pid, *served.workers()):
        assert {int(each) for each in status(pid)["Groups"].split()} == own[member]


@pytest.mark.parametrize("workers", [0, 1])
def test_handler_cannot_get_root_back(daemon, place, workers):
    """By no system call, and by no set-user-ID program."""
    served = daemon("privilege_handlers:EscapeHandler", "--set", "server.user=nobody", workers=workers, cwd=place)
    with connect(served) as client:
        client.sendall(b"try\n")
        said = client.makefile().read()
    assert said.splitlines() == [
        "setuid: PermissionError",
        "setresuid: PermissionError",
        "setgid: PermissionError",
        "setgroups: PermissionError",
        "shadow: PermissionError",
        "setuid program: True",
        "ptrace of PID 1: True",
    ]


def test_descriptors_of_whoever_started_it_are_closed(daemon, place):
    """An inherited file that only root can open would be an open door (C05)."""
    open_shadow = f"import os, sys; os.dup2(os.open('/etc/shadow', 0), 9); {AFTER}"
    served = daemon(ECHO, "--set", "server.user=nobody", cwd=place, program=(sys.executable, "-c", open_shadow))
    for pid in (served.pid, *served.workers()):
        assert "/etc/shadow" not in files(pid).values()
        kinds = {name.partition(":")[0] for fd, name in files(pid).items() if fd > 2 and not name.startswith("/")}
        assert kinds <= {"socket", "pipe", "anon_inode"}


def test_low_port_is_bound_before(daemon, place):
    """As root; then it serves as nobody."""
    served = daemon(ECHO, "--set", "server.user=nobody", bind="tcp://127.0.0.1:943", cwd=place)
    assert ask(served, b"hello\n") == b"hello\n"
    assert status(served.pid)["Uid"].split()[0] == str(NOBODY.pw_uid)


def test_what_was_made_is_the_users(daemon, place):
    """Unix sockets, the log, the control socket, the pid file: reopened, answered and removed as nobody."""
    path, log, control, pid = made = [place / name for name in ("socket", "log", "control", "pid")]
    options = [f"log.file={log}", f"control.socket={control}", f"server.pidfile={pid}", "server.user=nobody"]
    served = daemon(ECHO, *(word for each in options for word in ("--set", each)), bind=f"unix:{path}", cwd=place)
    assert {each.stat().st_uid for each in made} == {NOBODY.pw_uid}
    assert {each.stat().st_gid for each in made} == {NOBODY.pw_gid}
    log.rename(place / "log.1")
    served.signal(SIGUSR1)
    wait_for(log.exists, 10, "the new log")
    with Server.at(control) as server:
        assert server.ask("status", patience=10)["status"]["state"] == "serving"
    assert served.stop(SIGTERM) == 0
    assert sorted(each.name for each in place.iterdir()) == ["log", "log.1"]


def test_what_only_root_can_make_is_made_and_given(daemon, place):
    """In a folder of root's: it serves, and what it cannot remove in the end, the next start replaces."""
    place.chmod(0o755)
    os.chown(place, 0, 0)
    path, log, pid = place / "socket", place / "log", place / "pid"
    options = ["--set", f"log.file={log}", "--set", "server.user=nobody", "--set", f"server.pidfile={pid}"]
    for _ in range(2):
        served = daemon(ECHO, *options, bind=f"unix:{path}", cwd=place)
        assert {each.stat().st_uid for each in (path, log, pid)} == {NOBODY.pw_uid}
        assert pid.read_text() == f"{served.pid}\n"
        assert ask(served, b"hello\n") == b"hello\n"
        assert served.stop(SIGTERM) == 0
        assert pid.read_text() == ""


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_planted_link_opens_no_door_to_roots_files(daemon, place, kind):
    """What the user prepared is opened with the user's rights, and what is root's stays as it was (C01)."""
    precious = place.parent / f"{place.name}-precious"
    precious.write_text("precious\n")
    precious.chmod(0o600)
    log = place / "log"
    if kind == "symlink":
        log.symlink_to(precious)
    else:
        log.hardlink_to(precious)
    try:
        served = daemon(ECHO, "--set", f"log.file={log}", "--set", "server.user=nobody", cwd=place, ready=False)
        assert served.wait() == 78
        assert f"log.file: cannot open '{log}': Permission denied" in served.log()
        assert precious.read_text() == "precious\n"
        assert precious.stat().st_uid == 0
    finally:
        precious.unlink()


def test_orphaned_workers_still_leave(daemon, place):
    """PDEATHSIG is cleared by a change of uid, so it is set after (F08)."""
    served = daemon(ECHO, "--set", "server.user=nobody", cwd=place)
    workers = served.workers()
    os.kill(served.pid, 9)
    assert served.wait_gone(10) == []
    assert len(workers) == 2


def before_a_low_port(daemon, place):
    """A service of nobody's, whose configuration has changed since to what root alone could bind."""
    config = place / "pool.toml"
    config.write_text(f'[server]\nhandler = "{ECHO}"\nuser = "nobody"\nbind = ["tcp://127.0.0.1:0"]\n')
    config.chmod(0o644)
    served = daemon(None, "-c", str(config), bind=(), cwd=place)
    config.write_text(config.read_text().replace(":0", ":944"))
    return served


def test_reload_that_would_need_root_fails_and_changes_nothing(daemon, place):
    """With that reason; the service goes on."""
    served = before_a_low_port(daemon, place)
    served.signal(SIGHUP)
    wait_for(lambda: "cannot bind tcp://127.0.0.1:944: Permission denied" in served.log(), 10, "the reason")
    assert ask(served, b"hello\n") == b"hello\n"


def test_upgrade_that_would_need_root_fails_and_changes_nothing(daemon, place):
    """Likewise; here already where the user may not run this Python, as where it is root's alone."""
    served = before_a_low_port(daemon, place)
    done = served.cli("upgrade")
    assert done.returncode == 1
    assert "upgrade failed, nothing is changed: " in done.stderr
    assert "Permission denied" in done.stderr
    assert ask(served, b"hello\n") == b"hello\n"
    assert served.status()["pid"] == served.pid


def test_key_that_only_root_may_read_is_read_before_root_is_given_up(daemon, place, pki):
    """F14; a reload, which cannot read it again, changes nothing and says so, and check has said it before."""
    options = (*pki.server_options(), "--set", "server.user=nobody")
    served = daemon(ECHO, *options, bind="tls://127.0.0.1:0", cwd=place)
    context = ssl.create_default_context(cafile=pki.ca)

    def is_served() -> bool:
        with connect(served) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(b"hello")
            return client.recv(100) == b"hello"

    assert is_served()
    served.signal(SIGHUP)
    wait_for(lambda: "cannot be read: Permission denied" in served.log(), 10, "the reason")
    assert is_served()
    program = (sys.executable, "-m", "poolserver", "check")
    checked = daemon(ECHO, *options, bind="tls://127.0.0.1:0", cwd=place, ready=False, program=program)
    assert checked.wait() == 0, checked.log()
    assert f"hazard: tls.key: nobody may not read {pki.server_key}" in checked.out_path.read_text()


class TestRefusals:
    def test_unknown_user_or_group_is_78(self, daemon):
        """By check and by run."""
        for option, text in (("server.user=nobdy", "no user 'nobdy'"), ("server.group=nogrp", "no group 'nogrp'")):
            served = daemon(ECHO, "--set", option, ready=False)
            assert served.wait() == 78
            assert text in served.log()

    def test_number_without_an_account_needs_a_group(self, daemon, place):
        """Then there is nobody whose groups could be looked up."""
        assert daemon(ECHO, "--set", "server.user=54321", ready=False, cwd=place).wait() == 78
        served = daemon(ECHO, "--set", "server.user=54321", "--set", "server.group=54322", cwd=place)
        assert set(status(served.pid)["Uid"].split()) == {"54321"}

    def test_user_that_we_are_is_no_error_and_another_is_71(self, daemon, place):
        """Without root there is nothing to give up."""
        # Imported first: the Python under test may be in a folder of root's.
        demote = "import difflib, os, sys; from poolserver.__main__ import main; from poolserver import service;"
        demote += "import poolserver.examples.echo;"
        demote += "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.argv.insert(1, 'run'); main()"
        as_nobody = {"program": (sys.executable, "-c", demote), "env": {"XDG_RUNTIME_DIR": str(place)}, "cwd": place}
        served = daemon(ECHO, "--set", "server.user=nobody", **as_nobody)
        assert ask(served, b"hello\n") == b"hello\n"
        other = daemon(ECHO, "--set", "server.user=daemon", ready=False, **as_nobody)
        assert other.wait() == 71
        assert "only root can become daemon" in other.log()


class TestCheck:
    def check(self, *options: str, cwd: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "poolserver", "check", ECHO, *options],
            capture_output=True, text=True, check=False, cwd=cwd, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_it_says_what_will_be_impossible_without_root(self, place):
        """Low ports, files in root's folders."""
        said = self.check(
            *("--set", "server.user=nobody", "-b", "tcp://127.0.0.1:80", "-b", "unix:/run/pool.sock"), cwd=place
        )
        assert "hazard: tcp://127.0.0.1:80: only root can bind it" in said
        assert "hazard: unix:/run/pool.sock: nobody may not write in /run, and so cannot remove it" in said

    def test_it_says_what_no_reload_could_read_again(self, place):
        """The configuration itself."""
        config = place / "pool.toml"
        config.write_text('[server]\nuser = "nobody"\n')
        config.chmod(0o600)
        assert f"hazard: {config}: nobody may not read it: reloads" in self.check("-c", str(config), cwd=place)
        os.chown(config, NOBODY.pw_uid, NOBODY.pw_gid)
        assert "reloads and upgrades will fail" not in self.check("-c", str(config), cwd=place)

    def test_handler_is_tried_as_the_user(self, place):
        """One that only root can read is none."""
        (place / "secret.py").write_text("from poolserver.examples.echo import EchoHandler\n")
        (place / "secret.py").chmod(0o600)
        done = subprocess.run(
            [sys.executable, "-m", "poolserver", "check", "secret:EchoHandler", "--set", "server.user=nobody"],
            capture_output=True, text=True, check=False, cwd=place, timeout=60,
        )  # fmt: skip
        assert done.returncode == 78
        assert "Permission denied" in done.stderr or "PermissionError" in done.stderr
