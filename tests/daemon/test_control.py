"""The control socket and the commands that use it, through the real command line."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from signal import SIGKILL

import jsonschema
import measures
import proc
import pytest
from clients import Storm, ask, connect, read_line, wait_for
from test_lifecycle import hold, release

from poolserver.remote import Server

NUMBER = {"type": "number", "minimum": 0}
COUNT = {"type": "integer", "minimum": 0}


def wait_idle(served, lanes: int) -> None:
    """Wait until so many lanes are there: a worker is ready as soon as it may have them."""
    wait_for(lambda: served.status()["pool"]["idle"] == lanes, 10, f"{lanes} idle lanes")


def stacks(served, text: str) -> str:
    """What the command prints, if this is in it, and nobody has not answered but where that is the text; else ""."""
    done = served.cli("stacks")
    assert done.returncode == 0, done.stderr
    has_all = "did not answer" not in done.stdout or "did not answer" in text
    return done.stdout if text in done.stdout and has_all else ""


def maybe(rule: dict) -> dict:
    return {"anyOf": [rule, {"type": "null"}]}


def strict(**keys: dict) -> dict:
    return {"type": "object", "properties": keys, "required": list(keys)}


STATUS = strict(
    name={"type": "string"},
    version={"type": "string"},
    pid=COUNT,
    generation={"type": "integer", "minimum": 1},
    state={"enum": ["starting", "serving", "reloading", "draining", "stopping", "degraded"]},
    uptime=NUMBER,
    listeners={"items": strict(url={"type": "string"}, backlog=maybe(COUNT), queued=maybe(COUNT))},
    pool=strict(workers=COUNT, threads=COUNT, lanes=COUNT, busy=COUNT, idle=COUNT, parked=COUNT),
    parked=strict(new=COUNT, between=COUNT, oldest=maybe(NUMBER)),
    stress={"type": "boolean"},
    workers={
        "items": strict(
            slot=COUNT,
            pid=maybe(COUNT),
            generation=maybe(COUNT),
            state={"enum": ["starting", "ready", "retiring", "hung", "stopped"]},
            age=maybe(NUMBER),
            rss=maybe(COUNT),
            cpu=maybe(NUMBER),
            accepted=COUNT,
            served=COUNT,
            errors=COUNT,
            refused=COUNT,
            lanes={
                "items": strict(
                    state={"enum": ["idle", "busy", "hung"]},
                    since=NUMBER,
                    peer=maybe({"type": "string"}),
                    deadline_left=maybe(NUMBER),
                )
            },
        )
    },
    totals=strict(
        accepted=COUNT,
        served=COUNT,
        errors=COUNT,
        refused=strict(per_source=COUNT, rate=COUNT, denied=COUNT, banned=COUNT, proxy=COUNT),
        timeouts=strict(first_byte=COUNT, head=COUNT, idle=COUNT, handler=COUNT, handshake=COUNT, keep_alive=COUNT),
        respawns=COUNT,
        reloads=COUNT,
        reloads_failed=COUNT,
    ),
    sources={"items": strict(source={"type": "string"}, active=COUNT, refused=COUNT)},
    last_reload=maybe(strict(ok={"type": "boolean"}, reason={"type": "string"}, at=NUMBER)),
)


class TestStatus:
    def test_json_has_the_promised_shape_and_tells_what_goes_on(self, daemon):
        """Who is in which lane, and what was counted."""
        served = daemon("handlers:OrderHandler", workers=2, threads=2)
        with hold(served) as client:
            wait_idle(served, 3)
            done = served.cli("status", "--json")
            assert (done.returncode, done.stderr) == (0, "")
            status = json.loads(done.stdout)
            jsonschema.validate(status, STATUS)
            busy = [lane for worker in status["workers"] for lane in worker["lanes"] if lane["state"] == "busy"]
            assert [lane["peer"] for lane in busy] == ["{}:{}".format(*client.getsockname())]
            assert status["pool"] == {"workers": 2, "threads": 2, "lanes": 4, "busy": 1, "idle": 3, "parked": 0}
            assert (status["name"], status["pid"], status["state"]) == ("handlers", served.pid, "serving")
            assert sorted(worker["pid"] for worker in status["workers"]) == served.workers()
            assert [listener["url"] for listener in status["listeners"]] == served.urls
            assert status["sources"] == [{"source": "127.0.0.1", "active": 1, "refused": 0}]
            release(client)
        wait_for(lambda: served.status()["totals"]["served"] == 1, 10, "the connection to be counted")

    def test_table_is_for_people(self, daemon):
        """State first, then what there is."""
        served = daemon("handlers:LineHandler", workers=2, threads=4)
        done = served.cli("status")
        assert done.returncode == 0
        assert done.stdout.startswith("handlers: SERVING for ")
        assert served.urls[0] in done.stdout
        assert "0 of 8 busy" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100

    def test_thousand_lanes_are_told_in_no_time(self, daemon):
        """128 workers of 8: 50 ms, here of the master's processor; seen: 15 (`make bench-operations`)."""
        served = daemon("handlers:LineHandler", workers=128, threads=8)
        costs = []
        with Server.at(served.control_path) as server:
            for _ in range(5):
                before = measures.cpu_seconds([served.pid])
                status = server.ask("status", patience=30)["status"]
                costs.append(measures.cpu_seconds([served.pid]) - before)
        assert (status["pool"]["lanes"], len(status["workers"])) == (1024, 128)
        assert min(costs) < 0.05, costs

    def test_totals_survive_the_death_of_every_worker(self, daemon):
        """They never go back."""
        served = daemon("handlers:LineHandler", workers=2)
        for _ in range(5):
            ask(served, b"hello\n")
        wait_for(lambda: served.status()["totals"]["served"] == 5, 10, "five to be counted")
        before = served.workers()
        for pid in before:
            os.kill(pid, SIGKILL)
        wait_for(lambda: served.status()["totals"]["respawns"] == 2, 10, "two replacements")
        status = served.status()
        assert (status["totals"]["accepted"], status["totals"]["served"]) == (5, 5)
        assert not {worker["pid"] for worker in status["workers"]} & set(before)

    def test_stopped_worker_is_shown_as_stopped(self, daemon):
        """And the service as degraded."""
        served = daemon("handlers:LineHandler", workers=2)
        pid = served.workers()[0]
        proc.suspend(pid)
        status = served.status()
        assert {worker["pid"]: worker["state"] for worker in status["workers"]}[pid] == "stopped"
        assert status["state"] == "degraded"

    def test_without_workers_shows_one_that_is_the_master(self, daemon):
        """-w 0: slot 0, its own pid."""
        served = daemon("handlers:LineHandler", workers=0)
        (worker,) = served.status()["workers"]
        assert (worker["slot"], worker["pid"], worker["state"]) == (0, served.pid, "ready")
        assert served.cli("scale", "2").returncode == 1

    def test_draining_is_told(self, daemon):
        """The socket answers up to the end."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.graceful=60")
        with hold(served) as client:
            asker = threading.Thread(target=served.cli, args=("stop",))
            asker.start()
            wait_for(lambda: served.status()["state"] == "draining", 10, "the drain")
            assert any(worker["state"] == "retiring" for worker in served.status()["workers"])
            release(client)
        asker.join()
        assert served.wait() == 0


class TestCommands:
    def test_stop_returns_when_the_service_is_gone(self, daemon):
        """0, and neither processes nor socket are left. Whom it stops is told, lest it be another's."""
        served = daemon("handlers:LineHandler")
        path = served.control_path
        done = served.cli("stop")
        assert (done.returncode, done.stderr) == (0, "")
        told = f"handlers (pid {served.pid})"
        assert done.stdout == f"stopping {told}: handlers:LineHandler on {served.urls[0]}\n{told} has stopped\n"
        assert served.wait(timeout=10) == 0
        assert not path.exists()

    def test_stop_now_cuts(self, daemon):
        """It does not wait for open connections."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.graceful=60")
        with hold(served):
            assert served.cli("stop", "--now").returncode == 0
        assert served.wait() == 0

    def test_scale_returns_when_so_many_accept(self, daemon):
        """Up and down."""
        served = daemon("handlers:LineHandler", workers=1)
        for count in (4, 2):
            assert served.cli("scale", str(count)).returncode == 0
            ready = [worker for worker in served.status()["workers"] if worker["state"] == "ready"]
            assert len(ready) == count

    def test_scale_to_no_number_of_workers_is_a_wrong_command_line(self, daemon):
        """2, as for any."""
        served = daemon("handlers:LineHandler", workers=1)
        for count in ("0", "-1", "x", ""):
            assert served.cli("scale", "--", count).returncode == 2

    def test_reopen_reopens(self, daemon, tmp_path):
        """The log goes on in the new file."""
        log = tmp_path / "log"
        served = daemon("handlers:LineHandler", "--set", f"log.file={log}")
        log.rename(tmp_path / "old")
        assert served.cli("reopen").returncode == 0
        assert served.cli("scale", "3").returncode == 0
        assert "scaling" in log.read_text()

    def test_refusal_comes_with_its_reason(self, daemon):
        """1, and one line."""
        served = daemon("handlers:LineHandler", workers=0)
        done = served.cli("upgrade")
        assert done.returncode == 1
        assert done.stderr.startswith("poolserver: upgrade: ")

    def test_schema_knows_the_sample(self):
        """Editors check the annotated sample with it."""
        done = subprocess.run(
            [sys.executable, "-m", "poolserver", "schema"], capture_output=True, timeout=30, check=True
        )
        sample = Path(__file__).parents[2] / "config" / "poolserver.toml"
        schema = json.loads(done.stdout)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(tomllib.loads(sample.read_text()), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"pool": {"wrokers": 1}}, schema)


class TestStacks:
    def test_every_lane_tells_where_it_is_and_whom_it_serves(self, daemon):
        """The handler's line for one that is in it, the accept loop for the others."""
        served = daemon("handlers:OrderHandler", workers=2, threads=2)
        with hold(served) as client:
            wait_idle(served, 3)
            # it may have answered, and not yet come to its next line
            stdout = wait_for(lambda: stacks(served, "self.rfile.readline(MAX_LINE_BYTES)"), 30, "it to wait")
            peer = "{}:{}".format(*client.getsockname())
            assert len(re.findall(r"^  lane-[01]: idle for ", stdout, re.MULTILINE)) == 3
            _, found, rest = stdout.partition(f": busy with {peer} for ")
            assert found
            assert "in OrderHandler.obey\n          self.rfile.readline(MAX_LINE_BYTES)" in rest.partition("lane-")[0]

    def test_worker_whose_lock_is_held_tells_all_the_same(self, daemon):
        """A C call that does not give up the interpreter: the case that stacks are asked for."""
        served = daemon("handlers:OrderHandler", workers=1, threads=2)
        with connect(served) as client:
            client.sendall(b"freeze 6\n")
            wait_for(lambda: served.status()["pool"]["busy"] == 1, 10, "the freeze")
            wait_for(lambda: "ctypes.PyDLL(None).usleep" in stacks(served, "did not answer by itself"), 10, "its stack")
            assert read_line(client) == b"thawed\n"
        wait_for(lambda: stacks(served, "lane-1: idle"), 20, "an answer of its own")

    def test_stopped_worker_is_named_and_the_others_answer(self, daemon):
        """Nobody waits for it for long."""
        served = daemon("handlers:LineHandler", workers=2, threads=1)
        pid = served.workers()[0]
        wait_idle(served, 2)
        proc.suspend(pid)
        stdout = stacks(served, "did not answer by itself")
        assert f"(pid {pid}) stopped\n  did not answer by itself" in stdout
        assert stdout.count("lane-0: idle") == 2
        # the other may be late on a busy machine
        wait_for(lambda: served.cli("stacks").stdout.count("MainThread") == 1, 20, "the other's answer")

    def test_without_workers_the_process_tells_of_itself(self, daemon):
        """-w 0."""
        served = daemon("handlers:LineHandler", workers=0, threads=2)
        wait_idle(served, 2)
        done = served.cli("stacks")
        assert f"worker 0 (pid {served.pid}) ready\n  lane-0: idle" in done.stdout

    def test_asking_again_and_again_loses_no_client(self, daemon):
        """Handlers are interrupted by a signal, and go on."""
        served = daemon("handlers:LineHandler", workers=2, threads=4)
        with Storm(served, clients=16) as storm:
            for _ in range(20):
                served.ask("stacks")
            storm.wait_for_more(200)
        assert storm.counts.is_lossless, storm.counts

    def test_pipes_of_dead_workers_are_closed(self, daemon):
        """The master holds as much after ten deaths as before."""
        served = daemon("handlers:LineHandler", workers=2)
        served.ask("stacks")
        before = measures.descriptors(served.pid)
        for count in range(1, 6):
            for pid in served.workers():
                os.kill(pid, SIGKILL)
            wait_for(lambda count=count: served.status()["totals"]["respawns"] == 2 * count, 20, "replacements")
            wait_idle(served, 8)
        wait_for(lambda: measures.descriptors(served.pid) <= before, 10, "as few descriptors as before")


class TestWhere:
    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poolserver", *words],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def test_nobody_there_is_69(self, tmp_path):
        """No file, and a file that nobody listens at."""
        assert self.run("status", "--control", f"{tmp_path}/none").returncode == 69
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{tmp_path}/dead")
        done = self.run("reload", "--control", f"{tmp_path}/dead")
        assert done.returncode == 69
        assert done.stderr == f"poolserver: no server answers at {tmp_path}/dead: Connection refused\n"

    def test_only_server_is_found_without_a_word(self, daemon):
        """By the environment alone."""
        served = daemon("handlers:LineHandler")
        done = self.run("status", XDG_RUNTIME_DIR=str(served.runtime))
        assert done.stdout.startswith("handlers: SERVING"), done.stderr

    def test_configuration_tells_the_name(self, daemon, tmp_path):
        """-c, as run has it, among several servers."""
        config = tmp_path / "my.toml"
        config.write_text('[server]\nhandler = "handlers:LineHandler"\nname = "mine"\n')
        served = daemon(None, "-c", str(config))
        where = {"XDG_RUNTIME_DIR": str(served.runtime)}
        other = daemon("handlers:LineHandler", env=where)
        done = self.run("status", "--json", "-c", str(config), **where)
        assert json.loads(done.stdout)["pid"] == served.pid
        done = self.run("status", **where)
        assert done.returncode == 2
        assert str(served.pid) in done.stderr
        assert str(other.pid) in done.stderr

    def test_second_server_of_the_name_is_refused_and_the_first_serves_on(self, daemon, tmp_path):
        """71, and it says who."""
        path = tmp_path / "c"
        first = daemon("handlers:LineHandler", "--set", f"control.socket={path}")
        second = daemon("handlers:LineHandler", "--set", f"control.socket={path}", ready=False)
        assert second.wait() == 71
        assert f"handlers (pid {first.pid}) answers at {path} already" in second.log()
        assert ask(first, b"hello\n") == b"hello\n"
        assert path.is_socket()

    def test_file_is_ours_alone_and_stale_ones_are_replaced(self, daemon, tmp_path):
        """0600; a killed master's workers remove it, and if nobody did, the next server does (C02)."""
        path = tmp_path / "c"
        for _ in range(2):
            served = daemon("handlers:LineHandler", "--set", f"control.socket={path}")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            served.signal(SIGKILL)
            assert served.wait() == -SIGKILL
            assert served.wait_gone(10) == []
            assert not path.exists()
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(os.fspath(path))

    def test_workers_hold_nothing_of_it(self, daemon):
        """Neither the listener nor a client's connection, also when forked while one is open."""
        served = daemon("handlers:LineHandler", workers=1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(served.control_path))
            wait_for(lambda: served.ask("who")["ok"], 10, "an answer")
            assert served.cli("scale", "3").returncode == 0
            table = Path("/proc/net/unix").read_text().splitlines()
            inodes = {line.split()[6] for line in table if line.endswith(str(served.control_path))}
            assert inodes
            held = {name for pid in served.workers() for name in proc.files(pid).values()}
            assert not held & {f"socket:[{inode}]" for inode in inodes}

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
    def test_other_users_are_refused(self, daemon, tmp_path):
        """By the kernel; and by us where the file's mode lets them connect (C03)."""
        served = daemon("handlers:LineHandler", "--set", "control.mode=0666")
        Path(served.runtime).chmod(0o755)
        served.control_path.parent.chmod(0o755)
        # perl, since others may have no right to run our interpreter
        request = "print IO::Socket::UNIX->new(Peer => shift)->getline"
        words = ["perl", "-MIO::Socket::UNIX", "-e", request, str(served.control_path)]
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        told = subprocess.run(words, **nobody, capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(told.stdout) == {"ok": False, "reason": "only root and the server's own user may ask"}
