"""Upgrade: a new master on the same listeners. Nobody is lost by it; or nothing is changed, and the reason told."""

import os
import re
import socket
import sys
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR2

import measures
import pytest
from clients import Address, Counts, Storm, ask, connect, dial, read_line, wait_for
from sites import Broken, Site, echo_order, versions

from poolserver.remote import Server

FAILED = re.compile(r"ERROR master \[\d+\]: upgrade failed, nothing is changed: (.*)$", re.MULTILINE)


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


class TestSuccess:
    def test_new_master_has_all_that_the_old_one_had(self, site, tmp_path):
        """Code, ports, the file of a Unix socket, pid file, control socket; the old one ends with 0."""
        pidfile = tmp_path / "pid"
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{tmp_path}/socket"]', server__pidfile=f'"{pidfile}"')
        served = site.start()
        old, urls, workers = served.pid, served.urls, served.workers()
        files = [(tmp_path / "socket").stat().st_ino, served.control_path.stat().st_ino]
        site.code("2")
        done = served.cli("upgrade")
        assert (done.returncode, done.stderr) == (0, "")
        assert int(pidfile.read_text()) not in (0, old)
        assert served.status()["pid"] == int(pidfile.read_text())
        served.wait_ready(2)
        assert served.wait() == 0
        assert (served.urls, served.pid) == (urls, int(pidfile.read_text()))
        assert [versions(served, 0), versions(served, 1)] == [b"2\n", b"2\n"]
        assert files == [(tmp_path / "socket").stat().st_ino, served.control_path.stat().st_ino]
        assert len(served.workers()) == 2
        assert not set(workers) & {each.pid for each in served.processes()}
        assert served.status()["last_upgrade"]["ok"] is True
        served.stop()
        assert not pidfile.exists()
        assert not (tmp_path / "socket").exists()

    def test_open_conversation_finishes_with_the_old_master(self, site):
        """Its handler is told that it drains; newcomers are the new master's."""
        served = site.start()
        with connect(served) as client:
            client.sendall(b"version\n")
            assert read_line(client) == b"1\n"
            site.code("2")
            served.signal(SIGUSR2)
            served.wait_ready(2)
            wait_for(lambda: {versions(served) for _ in range(10)} == {b"2\n"}, 20, "the new code alone")
            wait_for(lambda: order(client, b"draining") == b"True\n", 20, "the old worker to drain")
            assert order(client, b"version") == b"1\n"
        assert served.wait() == 0

    def test_parked_connection_is_the_new_masters(self, site):
        """Whoever has not spoken yet is answered by the new code, within the limits of the new pool."""
        site.configure(parking__wait_for='"line"', limits__per_source="100")
        served = site.start()
        waiting = [connect(served) for _ in range(8)]
        wait_for(lambda: served.status()["parked"]["new"] == 8, 10, "eight parked connections")
        site.code("2")
        site.upgrade()
        wait_for(lambda: served.status()["parked"]["new"] == 8, 10, "eight that have moved")
        for client in waiting:
            client.sendall(b"version\n")
            assert read_line(client) == b"2\n"
            client.close()

    def test_counts_and_bans_follow(self, site):
        """Also what the old master's workers count after the new one serves."""
        site.configure(limits__per_source="1", limits__ban_after="1", limits__ban_for="600")
        served = site.start()
        with connect(served) as client:
            client.sendall(b"hold\n")
            assert read_line(client) == b"holding\n"
            assert is_refused(served)
            site.begin_upgrade()
            assert is_refused(served)  # for its ban: the new pool counts its own connections
            counted = served.counted(accepted=3, per_source=1, banned=1)
            assert counted["served"] == 0
            client.sendall(b"\n")
            assert read_line(client) == b"released\n"
        wait_for(lambda: served.status()["totals"]["served"] == 1, 10, "the old workers' last count")

    def test_counts_follow_along_a_chain(self, site):
        """What the first master's workers count last comes to the third, by way of the second."""
        served = site.start()
        with connect(served) as client:
            client.sendall(b"hold\n")
            assert read_line(client) == b"holding\n"
            for number in (2, 3):
                site.begin_upgrade()
                served.wait_ready(number)
            assert versions(served) == b"1\n"
            wait_for(lambda: served.status()["totals"]["served"] == 1, 10, "the new workers' first count")
            client.sendall(b"\n")
            assert read_line(client) == b"released\n"
        wait_for(lambda: served.status()["totals"]["served"] == 2, 10, "the oldest workers' last count")
        assert served.status()["totals"]["accepted"] == 2
        wait_for(lambda: len(served.processes()) == 3, 10, "the end of two masters")

    def test_listeners_come_and_go(self, site, tmp_path):
        """What the new configuration has not is served to the end of its queue, and closed; its file goes."""
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{tmp_path}/old"]')
        served = site.start()
        kept = served.port
        site.configure(server__bind=f'["tcp://127.0.0.1:{kept}", "unix:{tmp_path}/new"]')
        with Storm(served, clients=4, exchange=echo_order) as storm:
            storm.wait_for_more(20)
            site.upgrade()
            storm.wait_for_more(20)
        assert storm.counts.is_lossless, storm.counts
        assert served.urls == [f"tcp://127.0.0.1:{kept}", f"unix:{tmp_path}/new"]
        assert versions(served, 1) == b"1\n"
        assert not (tmp_path / "old").exists()

    def test_every_kind_of_listener_goes_on(self, daemon, tmp_path):
        """At the same addresses, also where the kernel chose them."""
        urls = ["tcp://127.0.0.1:0", "tcp://:0", "udp://127.0.0.1:0", f"unix:@{tmp_path}", f"unixgram:{tmp_path}/g"]
        served = daemon("handlers:EitherHandler", bind=urls)
        before = served.urls
        served.ask("upgrade")
        served.wait_ready(2)
        assert served.urls == before
        assert len(before) == 6
        for index in range(6):
            wait_for(lambda index=index: int(ask(served, b"?\n", index)) == served.pid, 10, before[index])

    def test_options_of_a_listener_that_stays_change(self, site, tmp_path):
        """Once it is the new master's alone."""
        site.configure(server__bind=f'["unix:{tmp_path}/socket"]')
        site.start()
        site.configure(socket__unix_mode='"0600"')
        site.upgrade()
        wait_for(lambda: (tmp_path / "socket").stat().st_mode & 0o777 == 0o600, 10, "the mode")

    def test_preloaded_code_changes(self, site):
        """What no reload can change."""
        site.configure(server__preload="true")
        served = site.start()
        site.code("2")
        site.upgrade()
        assert versions(served) == b"2\n"

    def test_follows_a_switched_link(self, site, tmp_path):
        """The folder is the one that the link leads to by now, from which the first master was started."""
        link = tmp_path / "current"
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            Site(tmp_path / name, None).code(name)
        link.symlink_to("one")
        served = site.start_in(link)
        assert versions(served) == b"one\n"
        link.unlink()
        link.symlink_to("two")
        site.upgrade()
        assert versions(served) == b"two\n"

    def test_files_that_were_removed_are_there_again(self, site, tmp_path):
        """Unix socket, control socket and pid file; those of the old master are not reached any more."""
        paths = [tmp_path / "socket", tmp_path / "control", tmp_path / "pid"]
        site.configure(server__bind=f'["unix:{paths[0]}"]', server__pidfile=f'"{paths[2]}"')
        site.configure(control__socket=f'"{paths[1]}"')
        served = site.start()
        for path in paths:
            path.unlink()
        served.signal(SIGUSR2)
        served.wait_ready(2)
        assert served.wait() == 0
        assert int(paths[2].read_text()) == served.pid
        assert versions(served) == b"1\n"
        with Server.at(paths[1]) as asked:
            assert asked.pid == str(served.pid)
        served.stop()
        assert [path for path in paths if path.exists()] == []

    def test_daemon_stays_one(self, site, tmp_path):
        """It has left its shell already, and does not do so again."""
        log, pidfile = tmp_path / "log", tmp_path / "pid"
        site.configure(server__daemonize="true", server__pidfile=f'"{pidfile}"', log__file=f'"{log}"')
        served = site.start(ready=False)
        assert served.process.wait(20) == 0
        first = int(pidfile.read_text())
        session = os.getsid(first)
        served.adopt(first)
        site.code("2")
        served.ask("upgrade")
        second = int(pidfile.read_text())
        assert os.getsid(second) == session != first
        wait_for(lambda: log.read_text().count("poolserver: ready on ") == 2, 10, "the second ready line")
        wait_for(lambda: versions(served) == b"2\n", 10, "the new code")
        os.kill(second, SIGTERM)
        wait_for(lambda: not pidfile.exists(), 20, "the end")

    def test_metrics_go_on(self, site):
        """The same address answers throughout, and no counter goes back."""
        site.configure(metrics__bind='"tcp://127.0.0.1:0"')
        served = site.start()
        where = Address.parse(re.search(r"metrics on (\S+)", served.log())[1])
        assert [versions(served) for _ in range(3)] == [b"1\n"] * 3
        site.upgrade()
        assert versions(served) == b"1\n"
        with dial(where, 10) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = client.makefile().read()
        assert "poolserver_connections_accepted_total 4.0" in text
        assert 'poolserver_workers{state="ready"} 2.0' in text

    def test_upgraded_master_upgrades(self, site):
        """Again and again; its descriptors, and its workers', are what they were after the first."""
        served = site.start()
        site.upgrade()
        before = measures.descriptors(served.pid), measures.descriptors(served.workers()[0])
        for _ in range(3):
            site.upgrade()
        wait_for(lambda: measures.descriptors(served.pid) <= before[0], 10, f"{before[0]} descriptors")
        wait_for(lambda: measures.descriptors(served.workers()[0]) <= before[1], 10, f"{before[1]} of a worker's")
        wait_for(lambda: len(served.processes()) == 3, 10, "a master and two workers")

    def test_dead_predecessor_leaves_it_all(self, site):
        """Killed in the midst of it: the new master is the service, and says so when its workers accept."""
        served = site.start()
        old = served.pid
        gate = site.gated("2")
        served.signal(SIGUSR2)
        wait_for(lambda: len(served.processes()) == 7, 20, "a nurse, a master and two workers that boot")
        os.kill(old, SIGKILL)
        wait_for(lambda: served.status()["pid"] not in (0, old), 20, "an answer of the new master")
        assert len(served.ready_lines()) == 1
        gate.touch()
        served.wait_ready(2)
        assert versions(served) == b"2\n"
        assert served.status()["pid"] == served.pid


def is_refused(served) -> bool:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(served, b"version\n")
    return True


class TestRefusal:
    def test_not_while_the_master_before_is_stopped(self, site):
        """What its workers count would be lost; it is named, and once it goes on, so do upgrades."""
        served = site.start()
        with connect(served) as client:
            client.sendall(b"hold\n")
            assert read_line(client) == b"holding\n"
            first = served.pid
            site.begin_upgrade()
            served.wait_ready(2)
            os.kill(first, SIGSTOP)
            wait_for(lambda: "gives no signs of life" in served.log(), 20, "its silence")
            done = served.cli("upgrade")
            assert done.returncode == 1
            assert f"cannot upgrade: the master before this one (pid {first}) has let go, and gives no" in done.stderr
            os.kill(first, SIGCONT)
            wait_for(lambda: served.cli("upgrade").returncode == 0, 20, "an upgrade")
            client.sendall(b"\n")
            assert read_line(client) == b"released\n"

    def test_one_at_a_time(self, site):
        """The second is told so, and so are a reload and a scaling; a stop ends it, and the new master with it."""
        served = site.start()
        site.gated("2")
        served.signal(SIGUSR2)
        wait_for(lambda: "starting a new master" in served.log(), 10, "its beginning")
        assert "another upgrade is under way" in site.fail_upgrade()
        assert "an upgrade is under way" in served.cli("reload").stderr
        assert "an upgrade is under way" in served.cli("scale", "3").stderr
        assert versions(served) == b"1\n"
        assert served.process.poll() is None
        served.signal(SIGTERM)
        assert served.process.wait(20) == 0
        assert served.wait_gone(10) == []
        assert "upgrade given up: the service is stopping" in served.log()

    @pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace takes root")
    def test_pid_1_is_not_upgraded(self, daemon):
        """Its end would be the container's."""
        unshare = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc")
        command = (*unshare, sys.executable, "-m", "poolserver", "run")
        served = daemon("handlers:LineHandler", program=command, ready=False)
        wait_for(lambda: "ready on" in served.log(), 20, "the ready line")
        done = served.cli("upgrade")
        assert done.returncode == 1
        assert "this is PID 1" in done.stderr
        served.process.kill()  # its death takes the namespace along, and clean_up meets nobody
        served.process.wait()

    def test_nothing_can_be_handed_over_without_workers(self, daemon):
        """-w 0: the lanes are this process's."""
        done = daemon("handlers:LineHandler", workers=0).cli("upgrade")
        assert (done.returncode, "everything runs in this one process" in done.stderr) == (1, True)

    def test_file_of_another_server_stays(self, site, tmp_path):
        """Its path is not ours any more, and nothing of ours removes it."""
        path = tmp_path / "socket"
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{path}"]')
        served = site.start()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            assert "a live server owns this socket" in site.fail_upgrade()
            assert versions(served) == b"1\n"
            assert served.stop() == 0
            assert path.exists()


class Unfit(Broken):
    """What an upgrade fails for, beside that."""

    @staticmethod
    def hard_exit_at_import(site):
        Broken.hard_exit_at_import(site)
        return "no worker could start: (pid"

    @staticmethod
    def interpreter_that_dies(site):
        (site.folder / "sitecustomize.py").write_text("import os; os._exit(7)")
        return "exited with code 7"

    @staticmethod
    def log_on_a_full_disk(site):
        site.configure(log__file='"/dev/full"')
        return "log.file: cannot write /dev/full: No space left on device"


OF_THE_CODE = (
    *("import_error", "handler_syntax_error", "exception_at_import", "exit_at_import", "hard_exit_at_import"),
    *("killed_canary", "boot_hang"),
)
OF_THE_REST = (
    *("syntax_error", "unknown_key", "file_missing", "handler_missing", "bind_in_use", "log_on_a_full_disk"),
    *("log_in_no_folder", "unreadable_key", "interpreter_that_dies"),
)


class TestFailure:
    @pytest.mark.timeout(180)
    @pytest.mark.parametrize("names", [OF_THE_CODE, OF_THE_REST], ids=["code", "rest"])
    def test_nothing_changes_and_the_reason_is_told(self, site, tmp_path, names):
        """The same master and workers serve, not one client is lost, and a good upgrade succeeds after."""
        pidfile = tmp_path / "pid"
        site.configure(server__pidfile=f'"{pidfile}"', pool__threads="2")
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{tmp_path}/socket"]')
        served = site.start(env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}:{tmp_path}"})
        before, master = served.workers(), served.pid
        descriptors = measures.descriptors(master)
        with Storm(served, clients=2, exchange=echo_order) as storm:
            for name in names:
                reason = site.broken(getattr(Unfit, name), site.fail_upgrade)
                storm.wait_for_more(10)
                wait_for(lambda: served.workers() == before, 10, f"none but {before} after {reason}")
                assert served.pid == master, reason
                wait_for(lambda: measures.descriptors(master) == descriptors, 10, f"all descriptors after {reason}")
                assert versions(served, 1) == b"1\n"
        assert storm.counts.is_lossless, storm.counts
        assert int(pidfile.read_text()) == master
        assert served.status()["last_upgrade"]["ok"] is False
        assert len(FAILED.findall(served.log())) == len(names)
        (tmp_path / "sitecustomize.py").unlink(missing_ok=True)
        site.code("2")
        site.upgrade()
        assert versions(served, 1) == b"2\n"

    def test_new_master_of_which_a_part_serves_is_ended_in_time(self, site):
        """One worker hangs at boot; those of the other's connections that are open are finished."""
        site.configure(timeouts__boot="3")
        served = site.start()
        before, marker = served.workers(), site.folder / "somebody was here"
        first = f"import os, time\ntry: os.close(os.open({str(marker)!r}, os.O_CREAT | os.O_EXCL))"
        site.code("2", before=f"{first}\nexcept FileExistsError: time.sleep(60)")
        with Storm(served, clients=4, exchange=echo_order) as storm:
            assert "the new master did not serve within timeouts.boot = 3 s" in site.fail_upgrade()
            storm.wait_for_more(20)
        assert storm.counts.is_lossless, storm.counts
        wait_for(lambda: served.workers() == before, 10, f"none but {before}")


def upgrade_under_load(site: Site, upgrades: int, clients: int) -> Counts:
    site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{site.folder}/socket"]')
    served = site.start()
    site.upgrade()
    before = measures.descriptors(served.pid)
    with (
        Storm(served, clients=clients // 2, exchange=echo_order) as storm,
        Storm(served, clients=clients // 2, index=1, exchange=echo_order) as other,
    ):
        for number in range(upgrades):
            site.code(f"{number}")
            counted = served.status()["totals"]["accepted"]
            site.upgrade()
            assert served.status()["totals"]["accepted"] >= counted
            storm.wait_for_more(10)
            other.wait_for_more(10)
            assert served.status()["totals"]["accepted"] >= counted + 20
    assert versions(served) == f"{upgrades - 1}\n".encode()
    wait_for(lambda: measures.descriptors(served.pid) <= before, 10, f"{before} descriptors")
    wait_for(lambda: len(served.processes()) == 3, 10, "a master and two workers")
    counts = storm.counts
    counts.add(other.counts)
    wait_for(lambda: served.status()["totals"]["served"] >= counts.ok + 1, 10, f"{counts.ok + 1} served")
    totals = served.status()["totals"]
    assert (totals["accepted"], totals["served"]) == (counts.ok + 1, counts.ok + 1), "nobody is counted twice"
    served.stop()
    return counts


class TestUnderLoad:
    def test_upgrades_lose_nobody(self, site):
        """R11: eight clients, over TCP and a Unix socket, a connection for each request."""
        counts = upgrade_under_load(site, upgrades=2, clients=8)
        assert counts.is_lossless, counts

    @pytest.mark.soak
    @pytest.mark.timeout(600)
    def test_twenty_upgrades_lose_nobody(self, site):
        """Sixty-four clients."""
        counts = upgrade_under_load(site, upgrades=20, clients=64)
        assert counts.is_lossless, counts
