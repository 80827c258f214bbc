"""TLS, served: who is let in, what a handler has, what waits off the lanes, what is cut (R35, A04, S12, F14)."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGTTOU

import pytest
import tls_handlers
from clients import Storm, connect, read_line, wait_for
from pki import Pki
from test_proxy import has_ended, v2

TLS = "tls://127.0.0.1:0"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture
def serve(daemon, pki: Pki):
    """A daemon with the server's certificate."""

    def start(handler: str, *options: str, **others: object):
        tls = others.pop("tls", {})
        return daemon(handler, *pki.server_options(**tls), *options, **{"bind": TLS} | others)

    return start


def client_context(pki: Pki, name: str = "", version: str = "") -> ssl.SSLContext:
    """A client that verifies the server, with a certificate of this name, and of one version."""
    context = ssl.create_default_context(cafile=pki.ca)
    if name:
        context.load_cert_chain(getattr(pki, name), getattr(pki, f"{name}_key"))
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class Disposed(ssl.SSLSocket):
    """wrap_socket forgets to close it where the server has reset the connection already. Source: CPython, ssl.py."""

    def __del__(self) -> None:
        self.close()


@contextlib.contextmanager
def secure(served, context: ssl.SSLContext, index: int = 0, before: bytes = b"", **options) -> Iterator[ssl.SSLSocket]:
    """A client with TLS, for which no end is an end but one that the server says."""
    context.sslsocket_class = Disposed
    with connect(served, index) as plain:
        plain.sendall(before)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False, **options) as client:
            yield client


def told(served, context: ssl.SSLContext, **options) -> list[str]:
    """What ``Tell`` says, in words; nothing where the server does not want us."""
    try:
        with secure(served, context, **options) as client:
            words = read_line(client).decode().split()
            client.unwrap()
            return words
    except OSError:
        return []


def s_client(served, *words: str, text: bytes = b"hello\n\n") -> subprocess.CompletedProcess[bytes]:
    """The openssl command as a client, to its end."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", *words]
    return subprocess.run(command, input=text, capture_output=True, timeout=30, check=False)


# -- who is let in, and what its handler has


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_handler_has_a_tls_socket_on_tls_listeners_alone(serve, pki, workers, version):
    """tcp:// never speaks TLS, in the same pool."""
    served = serve("tls_handlers:Tell", bind=[TLS, "tcp://127.0.0.1:0"], workers=workers)
    context = client_context(pki, version=version)
    assert served.urls[0].startswith("tls://127.0.0.1:")
    assert told(served, context)[0] == f"TLSv{version}"
    with connect(served, 1) as plain:
        assert read_line(plain).startswith(b"plain ")
    assert served.stop() == 0


def test_openssl_talks_to_the_example(serve, pki):
    """s_client, which verifies the server; an end that the server says is no error to it."""
    served = serve("poolserver.examples.secure:SecureEchoHandler")
    done = s_client(served, "-quiet", "-CAfile", pki.ca, "-verify_return_error")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b", hello stranger\nhello\n")
    assert b"unexpected eof" not in done.stderr


def test_client_certificate_is_asked_for_verified_and_told(serve, pki):
    """Required: no other client comes to the handler."""
    options = {"client_ca": pki.ca, "client_auth": "required"}
    served = serve("poolserver.examples.secure:SecureEchoHandler", tls=options)
    with_certificate = ("-cert", pki.client, "-key", pki.client_key)
    done = s_client(served, "-quiet", "-CAfile", pki.ca, *with_certificate)
    assert done.stdout.endswith(b", hello client\nhello\n")
    for version in ("1.2", "1.3"):
        assert told(served, client_context(pki, "client", version))[-1] == "client"
        assert told(served, client_context(pki, version=version)) == []
        assert told(served, client_context(pki, "stranger", version)) == []
    counted = served.counted(served=3, tls=4)
    assert (counted["accepted"], counted["errors"]) == (7, 0)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in served.log()
    assert "CERTIFICATE_VERIFY_FAILED" in served.log()


def test_optional_client_certificate_may_be_absent_but_not_wrong(serve, pki):
    """tls.client_auth = optional."""
    options = {"client_ca": pki.ca, "client_auth": "optional"}
    served = serve("poolserver.examples.secure:SecureEchoHandler", tls=options)
    assert told(served, client_context(pki))[-1] == "stranger"
    assert told(served, client_context(pki, "client"))[-1] == "client"
    assert told(served, client_context(pki, "stranger")) == []


def test_old_version_is_refused(serve, pki):
    """tls.min_version."""
    served = serve("tls_handlers:Tell", tls={"min_version": "1.3"})
    assert told(served, client_context(pki, version="1.2")) == []
    assert told(served, client_context(pki, version="1.3"))[0] == "TLSv1.3"
    served.counted(tls=1, served=1)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_sessions_are_resumed_whichever_worker_the_client_meets(serve, pki, version):
    """F14: the context is made before the fork."""
    served = serve("tls_handlers:Tell", workers=3, threads=1)
    context = client_context(pki, version=version)
    pids, reused, session = set(), [], None
    with contextlib.ExitStack() as stack:
        for number in range(30):
            client = stack.enter_context(secure(served, context, session=session))
            pids.add(read_line(client).split()[1])
            reused.append(client.session_reused)
            session = client.session
            if number % 3 == 2:  # three at once are in three workers
                stack.pop_all().close()
    assert len(pids) == 3
    assert reused == [False] + [True] * 29


def test_files_that_do_not_match_are_refused_at_the_start_and_by_check(daemon, pki):
    """With exit code 78 and the file."""
    options = pki.server_options(key=pki.client_key)
    for command in ("run", "check"):
        program = (sys.executable, "-m", "poolserver", command)
        served = daemon("tls_handlers:Tell", *options, bind=TLS, ready=False, program=program)
        assert served.wait() == 78
        assert f"tls.key: {pki.client_key} is not the key of {pki.server}" in served.log()


# -- new certificates


@pytest.fixture
def renewable(daemon, pki, tmp_path):
    """A daemon whose certificate may change, and the two files."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    renew(certificate, key, pki, "server")
    options = pki.server_options(certificate=certificate, key=key)
    return daemon("tls_handlers:Tell", *options, bind=TLS), certificate, key


def renew(certificate: Path, key: Path, pki: Pki, name: str, name_of_key: str = "") -> None:
    certificate.write_bytes(Path(getattr(pki, name)).read_bytes())
    key.write_bytes(Path(getattr(pki, f"{name_of_key or name}_key")).read_bytes())


def certificate_of(served) -> bytes:
    """What the server shows a client that takes any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with secure(served, context) as client:
        read_line(client)
        return client.getpeercert(binary_form=True) or b""


def test_reload_brings_the_new_certificate_and_leaves_open_connections(renewable, pki):
    """F14: old connections go on with what they agreed upon, in the old generation."""
    served, certificate, key = renewable
    old = certificate_of(served)
    with secure(served, client_context(pki)) as client:
        before = read_line(client)
        renew(certificate, key, pki, "stranger")
        served.signal(SIGHUP)
        new = wait_for(lambda: shown if (shown := certificate_of(served)) != old else b"", 20, "the new certificate")
        assert new == ssl.PEM_cert_to_DER_cert(Path(pki.stranger).read_text())
        client.sendall(before)
        assert read_line(client) == before
    wait_for(lambda: served.status()["generation"] == 2, 20, "the old generation to leave")


def test_reload_with_a_key_that_does_not_match_is_refused(renewable, pki):
    """With the reason; the service goes on with what it has."""
    served, certificate, key = renewable
    old = certificate_of(served)
    renew(certificate, key, pki, "server", "client")
    done = served.cli("reload")
    assert done.returncode == 1
    assert f"tls.key: {key} is not the key of {certificate}" in done.stderr
    assert certificate_of(served) == old
    renew(certificate, key, pki, "stranger")
    assert served.cli("reload").returncode == 0
    assert certificate_of(served) != old


# -- what waits


def half_hello(pki: Pki) -> bytes:
    """The first half of what a client sends first."""
    return hello(pki)[:200]


def hello(pki: Pki) -> bytes:
    """What a client sends first."""
    outgoing = ssl.MemoryBIO()
    client = client_context(pki).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_hundred_stalled_handshakes_hold_no_lane(serve, pki):
    """S12, R35: silent ones, halves, and whole hellos without a second flight, beside one lane."""
    served = serve("tls_handlers:Tell", tls={"handshake_timeout": 60}, workers=1, threads=1)
    context = client_context(pki)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connect(served)) for _ in range(100)]
        for client in stalled[::3]:
            client.sendall(half_hello(pki))
        for client in stalled[1::3]:
            client.sendall(hello(pki))
        wait_for(lambda: served.status()["parked"]["new"] == 100, 20, "all to be parked")
        for _ in range(5):
            assert told(served, context)[0] == "TLSv1.3"
        assert not any(has_ended(client) for client in stalled[::3])
    counted = wait_for(lambda: all_refused(served, 100), 20, "all to be counted")
    assert counted["accepted"] == 105
    served.counted(served=5)


def all_refused(served, count: int) -> dict | None:
    """What was counted, once so many left in their handshake: with a reset if something was unread."""
    counted = served.status()["totals"]
    return counted if counted["refused"]["tls"] + counted["refused"]["reset"] == count else None


def test_stalled_handshakes_are_cut_at_their_timeout(serve, pki):
    """Wherever they stall, and though a byte comes now and then; a handshake that is done is no longer bounded."""
    served = serve("tls_handlers:Tell", tls={"handshake_timeout": 2}, workers=1, threads=2)
    with contextlib.ExitStack() as stack:
        patient = stack.enter_context(secure(served, client_context(pki)))
        read_line(patient)
        start = time.monotonic()
        stalled = [stack.enter_context(connect(served)) for _ in range(4)]
        trickling = stalled[3]
        stalled[1].sendall(half_hello(pki))
        stalled[2].sendall(hello(pki))
        octets = iter(hello(pki))
        while not all(has_ended_or_is_reset(client) for client in stalled):
            assert time.monotonic() < start + 20
            with contextlib.suppress(OSError):
                trickling.sendall(bytes([next(octets)]))
            threading.Event().wait(0.02)  # a trickle
        assert time.monotonic() - start >= 2
        patient.sendall(b"still here\n")
        assert read_line(patient) == b"still here\n"
    counted = served.counted(handshake=4)
    assert counted["accepted"] == 5


def has_ended_or_is_reset(client: socket.socket) -> bool:
    """Whether the server has hung up, one way or the other, whatever it sent before."""
    client.settimeout(0)
    try:
        while client.recv(10_000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_handshake_byte_by_byte_is_completed(serve, pki):
    """Each byte by itself, both flights."""
    served = serve("tls_handlers:Tell", workers=1, threads=2)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with connect(served) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                line = client.read(100)
                break
            except ssl.SSLWantReadError:
                for octet in outgoing.read():
                    plain.sendall(bytes([octet]))
                incoming.write(plain.recv(10_000))
        assert line.startswith(b"TLSv1.3 ")


def test_chain_that_a_slow_client_takes_bit_by_bit_holds_no_lane(serve, pki):
    """More than the send buffer holds: the park waits for room, too."""
    served = serve(
        "tls_handlers:Tell", tls={"certificate": pki.long_chain, "handshake_timeout": 60}, workers=1, threads=1
    )
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.socket() as slow:
        slow.settimeout(10)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        slow.connect(("127.0.0.1", served.port))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        slow.sendall(outgoing.read())
        wait_for(lambda: served.status()["parked"]["new"] == 1, 10, "it to wait for room")
        assert told(served, client_context(pki))[0] == "TLSv1.3"
        line = b""
        while not line:
            incoming.write(slow.recv(2000))
            with contextlib.suppress(ssl.SSLWantReadError):
                line = client.read(100)
            if pending := outgoing.read():
                slow.sendall(pending)
        assert line.startswith(b"TLSv1.3 ")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_line_means_data_under_tls(serve, pki, version):
    """What can be seen is encrypted; what came is not lost in the TLS object, of which no epoll tells."""
    served = serve("tls_handlers:TellALine", workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        context = client_context(pki, version=version)
        silent = [stack.enter_context(secure(served, context)) for _ in range(3)]
        wait_for(lambda: served.status()["parked"]["new"] == 3, 10, "all to be parked")
        for client in silent:
            client.sendall(b"one\ntwo\n")
            reply = b""
            while reply.count(b"\n") < 3:
                reply += client.recv(100)
            assert reply.endswith(b"\none\ntwo\n")
            client.unwrap()
    served.counted(served=3)


def test_keep_alive_over_tls_holds_no_lane_between_requests(serve, pki):
    """Three browsers, one lane."""
    served = serve("tls_handlers:Web", workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(secure(served, client_context(pki))) for _ in range(3)]
        for _ in range(3):
            for browser in browsers:
                browser.sendall(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
                reply = b""
                while not reply.endswith(b"TLSv1.3 127.0.0.1\n"):
                    reply += browser.recv(10_000)
        assert served.status()["totals"]["accepted"] == 3


def test_curl_keeps_its_connection_alive_over_tls(serve, pki):
    """And speaks the PROXY protocol before TLS."""
    options = ("--set", "proxy_protocol.mode=v1", "--set", "proxy_protocol.trusted=127.0.0.1")
    for more in ((), options):
        served = serve("tls_handlers:Web", *more)
        words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", "--cacert", pki.ca]
        words += ["--haproxy-protocol"] if more else []
        done = subprocess.run(
            [*words, *[f"https://127.0.0.1:{served.port}/"] * 3],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "TLSv1.3 127.0.0.1\n" * 3
        served.counted(accepted=1)


def test_tls_follows_the_proxy_header(serve, pki):
    """And the real client is who is limited, before a handshake costs anything."""
    options = ("proxy_protocol.mode=v2", "proxy_protocol.trusted=127.0.0.1", "limits.per_source=1")
    served = serve("tls_handlers:Tell", *(word for option in options for word in ("--set", option)))
    context = client_context(pki)
    with secure(served, context, before=v2("192.0.2.7")) as first:
        assert read_line(first).split()[2] == b"192.0.2.7"
        assert told(served, context, before=v2("192.0.2.7")) == []
        assert told(served, context, before=v2("192.0.2.8"))[2] == "192.0.2.8"
        assert told(served, context) == []  # no header
    counted = served.counted(per_source=1, proxy=1)
    assert counted["tls"] == 0


def test_connections_before_their_handshake_move_when_their_worker_leaves(serve, pki):
    """One that is within it is given the time."""
    served = serve("tls_handlers:Tell", tls={"handshake_timeout": 60}, workers=2, threads=2)
    context = client_context(pki)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(served)) for _ in range(30)]
        wait_for(lambda: served.status()["parked"]["new"] == 30, 10, "all to be parked")
        served.signal(SIGTTOU)
        wait_for(lambda: len(served.workers()) == 1, 20, "one worker to leave")
        for plain in waiting:
            client = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            assert read_line(client).startswith(b"TLSv1.3 ")
            client.close()
    served.counted(served=30, accepted=30)


def test_storm_over_reloads_is_lossless(serve, pki):
    """Handshakes that are under way in a worker that leaves are completed there."""
    served = serve("handlers:LineHandler", workers=2, threads=4)
    context = client_context(pki)

    def exchange(client: socket.socket, line: bytes) -> bool:
        with context.wrap_socket(client, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secured:
            secured.sendall(line)
            return read_line(secured) == line and secured.recv(1) == b""

    with Storm(served, clients=8, exchange=exchange) as storm:
        for _ in range(3):
            storm.wait_for_more(30)
            done = served.cli("reload")
            assert done.returncode == 0, done.stderr
    assert storm.counts.is_lossless, storm.counts


# -- who is refused


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP_REQUEST"),
        (bytes(1000), "WRONG_VERSION_NUMBER"),
        (b"\x16\x03\x01\x40\x00\x01\x01\x90\x00" + bytes(100_000), ""),
    ],
    ids=["http", "zeros", "hello-of-100-kB"],
)
def test_what_is_no_handshake_is_refused_counted_and_said(serve, pki, sent, reason):
    """S12, R35: the lane lives on, and nothing is raised."""
    served = serve("tls_handlers:Tell", workers=1, threads=1)
    for _ in range(3):
        with connect(served) as client, contextlib.suppress(ConnectionError):
            client.sendall(sent)
            while client.recv(1000):
                pass
    assert told(served, client_context(pki))[0] == "TLSv1.3"
    counted = served.counted(served=1, tls=3)
    assert (counted["accepted"], counted["errors"]) == (4, 0)
    assert f"is refused: TLS handshake: {reason}" in served.log()
    assert "Traceback" not in served.log()


def test_renegotiation_is_refused(serve, pki):
    """A04, R35: a client of TLS 1.2 that asks for it, of a handler that is silent meanwhile."""
    served = serve("tls_handlers:Web")
    done = s_client(served, "-tls1_2", "-CAfile", pki.ca, text=b"R\nhello\n")
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr
    assert served.counted(errors=1)["accepted"] == 1


# -- deadlines and ends


def test_client_that_falls_silent_is_cut_after_idle(serve, pki):
    """timeouts.idle is the TLS socket's own, since OpenSSL tries again where the kernel's ends a call."""
    served = serve("tls_handlers:Tell", "--set", "timeouts.idle=0.5", workers=1, threads=1)
    for _ in range(2):
        with secure(served, client_context(pki)) as client:
            read_line(client)
            with contextlib.suppress(ssl.SSLError):
                assert client.recv(1) == b""
    counted = served.counted(idle=2)
    assert counted["accepted"] == 2
    assert "Traceback" not in served.log()


def test_long_answer_to_a_slow_client_is_not_cut(serve, pki):
    """One write of four megabytes that takes more than twice idle: there is progress."""
    served = serve("tls_handlers:Long", "--set", "timeouts.idle=2", workers=1, threads=1)
    count, start = 0, time.monotonic()
    with connect(served) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with client_context(pki).wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(b"go\n")
            while chunk := client.recv(16384):
                count += len(chunk)
                ahead = start + 5 * count / tls_handlers.ANSWER_BYTES - time.monotonic()
                threading.Event().wait(max(0.0, ahead))  # this reader is a slow one
    assert count == tls_handlers.ANSWER_BYTES


def test_cut_does_not_look_like_an_end(serve, pki):
    """timeouts.handler shuts the connection down under the handler: no close_notify."""
    served = serve("tls_handlers:Tell", "--set", "timeouts.handler=2", workers=1, threads=1)
    with secure(served, client_context(pki)) as client:
        read_line(client)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            client.recv(100)
    served.counted(handler=1)
