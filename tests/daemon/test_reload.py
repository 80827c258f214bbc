"""Reload: a transaction. New code and configuration without a lost client; or nothing changed, and the reason told."""

import os
import re
import socket
import time
from signal import SIGHUP, SIGKILL, SIGTTIN

import measures
import proc
import pytest
from clients import Address, Counts, Storm, connect, dial, own_port, read_line, wait_for
from sites import DONE, Broken, Site, echo_order, versions


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


def refused(served) -> bool:
    """Whether a newcomer is reset."""
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        versions(served)
    return True


class TestSuccess:
    def test_serves_the_code_on_disk(self, site):
        """With new workers, in the same slots, under the same master; the old ones have left."""
        served = site.start()
        master, old = served.pid, served.workers()
        assert versions(served) == b"1\n"
        site.code("2")
        site.reload()
        assert versions(served) == b"2\n"
        assert served.pid == master
        assert len(served.workers()) == 2
        assert not set(old) & set(served.workers())
        assert sorted(proc.title(pid) for pid in served.workers()) == [
            "poolserver: worker 0 [app]",
            "poolserver: worker 1 [app]",
        ]
        assert served.log().count("poolserver: ready on") == 1
        assert served.stop() == 0

    def test_applies_the_configuration(self, site):
        """The number of workers and lanes, limits and time-outs."""
        served = site.start()
        site.configure(pool__workers="3", pool__threads="1", limits__per_source="1")
        site.reload()
        assert len(served.workers()) == 3
        assert {measures.threads(pid) for pid in served.workers()} == {2}
        with connect(served) as first:
            first.sendall(b"echo kept\n")
            assert read_line(first) == b"kept\n"
            assert refused(served)
        assert "changed: pool.workers, pool.threads, limits.per_source" in served.log()
        site.configure(pool__workers="1", limits__per_source="")
        site.reload()
        assert len(served.workers()) == 1
        assert served.stop() == 0

    def test_scaling_lasts_until_the_next_reload(self, site):
        """The configuration's number is what counts."""
        served = site.start()
        served.signal(SIGTTIN)
        wait_for(lambda: len(served.workers()) == 3, 10, "a third worker")
        site.reload()
        assert len(served.workers()) == 2

    def test_open_conversation_finishes_with_its_worker(self, site):
        """Old code for old conversations, new code for new ones, side by side; the handler is told that it drains."""
        served = site.start()
        with connect(served) as old:
            old.sendall(b"version\n")
            assert read_line(old) == b"1\n"
            site.code("2")
            served.signal(SIGHUP)
            wait_for(lambda: versions(served) == b"2\n", 10, "the new code")
            wait_for(lambda: order(old, b"draining") == b"True\n", 20, "the old worker to drain")
            wait_for(lambda: {versions(served) for _ in range(8)} == {b"2\n"}, 20, "the new code alone")
            wait_for(lambda: len(served.workers()) == 3, 20, "all that can leave have left")
            assert order(old, b"version") == b"1\n"
            assert site.reloads() == 0
        wait_for(lambda: site.reloads() == 1, 20, "its end")
        assert len(served.workers()) == 2

    def test_conversation_beyond_graceful_is_cut(self, site):
        """The old generation leaves, at the latest then."""
        site.configure(timeouts__graceful="0.5")
        served = site.start()
        with connect(served) as client:
            client.sendall(b"hold\n")
            assert read_line(client) == b"holding\n"
            site.reload()
            assert read_line(client) == b""
        assert "cut 1 open: 127.0.0.1:" in served.log()

    def test_listeners_come_stay_and_go(self, site, tmp_path):
        """What stays is not touched; what is new is bound before the commit; what went is closed, its file removed."""
        gone = own_port()
        site.configure(server__bind=f'["tcp://127.0.0.1:0", "unix:{tmp_path}/old", "tcp://127.0.0.1:{gone}"]')
        served = site.start()
        kept = served.port_of(0)
        inode = measures.listening_inode(kept)
        site.configure(server__bind=f'["unix:{tmp_path}/new", "tcp://127.0.0.1:0"]')
        with Storm(served, clients=4, exchange=echo_order) as storm:
            site.reload()
            storm.wait_for_more(1)
        assert storm.counts.is_lossless, storm.counts
        assert measures.listening_inode(kept) == inode
        fresh = Address.parse(f"unix:{tmp_path}/new")
        with dial(fresh, 10) as client:
            client.sendall(b"version\n")
            assert read_line(client) == b"1\n"
        assert not (tmp_path / "old").exists()
        with pytest.raises(ConnectionRefusedError):
            dial(Address("", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", gone)), 10)
        assert f"no longer listening on tcp://127.0.0.1:{gone}" in served.log()
        assert served.stop() == 0
        assert not (tmp_path / "new").exists()

    def test_options_of_a_listener_that_stays_change(self, site, tmp_path):
        """Its backlog and its file's mode, on the same socket."""
        site.configure(server__bind=f'["unix:{tmp_path}/socket"]')
        served = site.start()
        site.configure(socket__unix_mode='"0600"', socket__backlog="77")
        site.reload()
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
        assert versions(served) == b"1\n"

    def test_log_moves_to_another_file(self, site, tmp_path):
        """The master and the new workers write there."""
        served = site.start()
        site.configure(log__file=f'"{tmp_path}/new.log"')
        served.signal(SIGHUP)
        new = tmp_path / "new.log"
        wait_for(lambda: new.exists() and DONE.search(new.read_text()), 10, "the end of the reload in the new file")
        with connect(served) as client:
            client.sendall(b"raise\n")
            assert read_line(client) == b""
        wait_for(lambda: "ordered to raise" in new.read_text(), 10, "a worker's line in the new file")
        assert "ordered to raise" not in served.log()

    def test_descriptors_and_memory_of_the_master_are_flat(self, site):
        """Ten reloads leave nothing behind."""
        served = site.start()
        site.reload()
        before = measures.descriptors(served.pid)
        for version in range(10):
            site.code(f"{version} again")
            site.reload()
        wait_for(lambda: measures.descriptors(served.pid) == before, 10, f"{before} descriptors")
        assert measures.descriptors(served.workers()[0]) <= before + 20

    def test_requests_during_a_reload_are_one(self, site):
        """A thousand HUPs: at most three generations, and the code on disk is what is served at the end."""
        served = site.start()
        gate = site.gated("2")
        for _ in range(1000):
            served.signal(SIGHUP)
        gate.touch()
        wait_for(lambda: versions(served) == b"2\n", 20, "the new code")
        wait_for(lambda: not proc.zombies(served.pid) and len(served.workers()) == 2, 20, "two workers")
        site.reload()  # one more, asked for when it was quiet: nothing was left over
        generations = re.findall(r"reload: generation (\d+)", served.log())
        assert len(generations) <= 4, generations
        assert served.stop() == 0


class TestWithoutWorkers:
    def test_reads_limits_again(self, site):
        """-w 0: the same process goes on under the new limits."""
        served = site.start("-w", "0")
        assert versions(served) == b"1\n"
        site.configure(limits__deny='["127.0.0.0/8"]')
        site.reload()
        assert refused(served)
        site.configure(limits__deny="")
        site.reload()
        assert versions(served) == b"1\n"
        assert served.stop() == 0

    def test_refuses_what_it_cannot_change(self, site):
        """By name."""
        served = site.start("-w", "0")
        site.configure(pool__threads="2")
        assert "pool.threads: without worker processes a reload changes limits and log only" in site.fail()
        assert versions(served) == b"1\n"


class TestPreload:
    def test_reload_applies_configuration_and_no_code(self, site):
        """And says so."""
        site.configure(server__preload="true")
        served = site.start()
        site.code("2")
        site.configure(pool__workers="3")
        site.reload()
        assert versions(served) == b"1\n"
        assert len(served.workers()) == 3
        assert "the code is the one that was imported at the start" in served.log()
        site.configure(server__handler='"app:Other"')
        assert "server.handler: imported once at the start (server.preload)" in site.fail()

    def test_handler_that_does_not_import_ends_the_start(self, site):
        """Before anything is bound."""
        site.configure(server__preload="true")
        site.code("1", before="1 / 0")
        served = site.start(ready=False)
        assert served.wait() == 78
        assert "ZeroDivisionError" in served.log()


MATRIX = [name for name in vars(Broken) if not name.startswith("_")]


class TestFailure:
    @pytest.mark.parametrize("name", MATRIX)
    def test_nothing_changes_and_the_reason_is_told(self, site, name):
        """The same workers serve, not one client is lost, and a good reload succeeds after."""
        served = site.start()
        before = served.workers()
        descriptors = measures.descriptors(served.pid)
        sections = {section: dict(keys) for section, keys in site.sections.items()}
        with Storm(served, clients=4, exchange=echo_order) as storm:
            storm.wait_for_more(20)
            reason = getattr(Broken, name)(site)
            assert reason in f"{site.fail()}\n{served.log()}"
            storm.wait_for_more(20)
            wait_for(lambda: served.workers() == before, 10, f"none but {before}")
        assert storm.counts.is_lossless, storm.counts
        wait_for(lambda: measures.descriptors(served.pid) == descriptors, 10, f"{descriptors} descriptors")
        if site.taken is not None:
            site.taken.close()
        site.sections = sections
        site.configure()
        site.code("good again")
        site.reload()
        assert versions(served) == b"good again\n"
        assert served.stop() == 0

    def test_all_that_cannot_change_is_told_at_once(self, site):
        """Each by its name, with where it stands."""
        site.start()
        site.configure(socket__reuse_address="false", server__chdir='"/"')
        site.fail()
        assert re.search(r"site.toml:\d+: server.chdir: a reload cannot change it; restart", site.served.log())
        assert re.search(r"site.toml:\d+: socket.reuse_address: a reload cannot change it", site.served.log())

    def test_worker_that_dies_after_a_failed_reload_is_replaced_from_the_disk(self, site):
        """By the same configuration and whatever code is there by then."""
        served = site.start()
        site.code("2", before="1 / 0")
        site.fail()
        site.code("3")
        victim = served.workers()[0]
        os.kill(victim, SIGKILL)
        wait_for(lambda: len(set(served.workers()) - {victim}) == 2, 10, "the replacement")
        wait_for(lambda: versions(served) in (b"1\n", b"3\n"), 10, "an answer")

    def test_newcomer_that_fails_after_the_commit_is_tried_again(self, site):
        """Its predecessor serves meanwhile, and the reload succeeds when it can."""
        marker = site.folder / "canary was here"
        served = site.start()
        breaks = f"import os\nif os.path.exists({str(marker)!r}): os._exit(3)\nopen({str(marker)!r}, 'w').close()"
        site.code("2", before=breaks)
        with Storm(served, clients=4, exchange=echo_order) as storm:
            served.signal(SIGHUP)
            wait_for(lambda: served.log().count("exited with code 3; next try") >= 2, 20, "two tries in vain")
            assert len(served.workers()) >= 2
            marker.unlink()
            site.code("3")
            wait_for(lambda: site.reloads() == 1, 20, "the end of the reload")
        assert storm.counts.is_lossless, storm.counts
        assert served.stop() == 0

    def test_reload_that_stays_incomplete_is_told_and_goes_on(self, site):
        """After timeouts.boot for each worker, with how many were replaced."""
        marker = site.folder / "canary was here"
        served = site.start()
        site.configure(timeouts__boot="2")
        breaks = f"import os\nif os.path.exists({str(marker)!r}): os._exit(3)\nopen({str(marker)!r}, 'w').close()"
        site.code("2", before=breaks)
        served.signal(SIGHUP)
        wait_for(
            lambda: "reload incomplete: 1 of 2 workers replaced; trying goes on" in served.log(), 30, "the verdict"
        )
        marker.unlink()
        site.code("3")
        wait_for(lambda: len(served.workers()) == 2 and versions(served) in (b"2\n", b"3\n"), 20, "the new code")
        site.reload()
        wait_for(lambda: versions(served) == b"3\n", 20, "the last code")


def reload_under_load(site: Site, reloads: int, clients: int) -> Counts:
    served = site.start("-w", "4")
    with Storm(served, clients=clients, exchange=echo_order) as storm:
        for number in range(reloads):
            site.code(f"{number}")
            site.reload()
            storm.wait_for_more(10)
    assert versions(served) == f"{reloads - 1}\n".encode()
    assert len(served.workers()) == 4
    assert served.stop() == 0
    return storm.counts


class TestUnderLoad:
    def test_ten_reloads_lose_nobody(self, site):
        """R10: sixteen clients, a connection for each request."""
        counts = reload_under_load(site, reloads=10, clients=16)
        assert counts.is_lossless, counts

    @pytest.mark.soak
    @pytest.mark.timeout(600)
    def test_a_hundred_reloads_lose_nobody(self, site):
        """Sixty-four clients."""
        counts = reload_under_load(site, reloads=100, clients=64)
        assert counts.is_lossless, counts

    def test_stop_during_a_reload_is_clean(self, site):
        """At each of its stages."""
        for pause in (0.0, 0.02, 0.1):
            served = site.start()
            with Storm(served, clients=4, exchange=echo_order) as storm:
                storm.wait_for_more(10)
                storm.is_over.set()
            served.signal(SIGHUP)
            time.sleep(pause)  # the stage itself, of which there is no fact to wait for
            assert served.stop() == 0
            assert "Traceback" not in served.log()
