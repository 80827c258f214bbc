"""asyncio over TLS, and of datagrams."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from signal import SIGHUP
from typing import TypeVar

import pytest
from clients import Storm, connect, read_line, wait_for
from pki import Pki
from test_aio import LINES, ORDERS, setting, spoken
from test_proxy import ON, v2
from test_tls_service import client_context, half_hello, hello, secure

DATAGRAMS = "aio_handlers:Datagrams"
Result = TypeVar("Result")


@pytest.fixture
def daemon(daemon):
    """As ever, on asyncio's own loop unless another is said."""

    def start(handler: str, *options: str, loop: str = "asyncio", **others):
        return daemon(handler, "--set", f"pool.event_loop={loop}", *options, **others)

    return start


# -- TLS


@pytest.fixture
def serve(daemon, pki: Pki):
    """A daemon with the server's certificate."""

    def start(handler: str, *options: str, **others: object):
        return daemon(handler, *pki.server_options(), *options, **{"bind": "tls://127.0.0.1:0"} | others)

    return start


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("handler", [ORDERS, LINES, "aio_handlers:Buffered"])
def test_each_kind_speaks_tls(serve, pki, handler, loop):
    """What comes right behind the handshake is not lost; the end is said."""
    served = serve(handler, workers=1, loop=loop)
    context = client_context(pki)
    for _ in range(3):
        with secure(served, context) as client:
            client.sendall(b"unknown\n")
            assert b"unknown" in read_line(client)
            client.sendall(b"peer\n")
            assert read_line(client) in (b"127.0.0.1\n", b"peer\n")
    served.counted(accepted=3, served=3)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("handler", ["starts_tls", "StartsTLS"])
@pytest.mark.parametrize("is_behind_proxy", [False, True], ids=["direct", "proxy"])
def test_handler_puts_tls_on_by_itself(daemon, pki, handler, loop, is_behind_proxy):
    """In the middle of a conversation, as SMTP has it; it knows its real client, and its end is told."""
    options = ON if is_behind_proxy else []
    served = daemon(f"aio_handlers:{handler}", *options, workers=1, loop=loop, env={"CERTIFICATE": pki.both})
    with connect(served) as plain:
        plain.sendall((v2("192.0.2.7") if is_behind_proxy else b"") + b"tls\n")
        assert read_line(plain) == b"go\n"
        with client_context(pki).wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as client:
            for text in (b"first\n", b"last\n"):
                client.sendall(text)
                assert read_line(client) == (b"192.0.2.7" if is_behind_proxy else b"127.0.0.1") + b" True\n"
            assert client.recv(1) == b""
    served.counted(accepted=1, served=1)
    assert "Traceback" not in served.log()


def test_stalled_handshakes_hold_no_seat_and_are_cut_in_time(serve, pki):
    """A hundred of them: silent, within the first message, after it; one seat serves others meanwhile."""
    served = serve(ORDERS, *setting(tls__handshake_timeout=4), workers=1, threads=1)
    beginnings = (b"", half_hello(pki), hello(pki))
    with contextlib.ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(connect(served))
            client.sendall(beginnings[number % 3])
        wait_for(lambda: served.status()["totals"]["accepted"] == 100, 10, "all of them")
        with secure(served, client_context(pki)) as good:
            good.sendall(b"peer\n")
            assert read_line(good) == b"127.0.0.1\n"
        served.counted(handshake=100, served=1)
    with connect(served) as plain, contextlib.suppress(ConnectionError):
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while plain.recv(100):
            pass
    served.counted(tls=1)
    assert served.stop() == 0


def test_handshake_follows_the_proxy_header_and_precedes_what_is_waited_for(serve, pki):
    """Limits know the real client; who says nothing after the handshake is cut by first_byte, and holds no seat."""
    options = setting(limits__per_source=1, timeouts__first_byte=3)
    served = serve(ORDERS, *ON, *options, workers=1, threads=1)
    with secure(served, client_context(pki), before=v2("192.0.2.7")) as silent:
        with secure(served, client_context(pki), before=v2("192.0.2.8")) as good:
            good.sendall(b"peer\n")
            assert read_line(good) == b"192.0.2.8\n"
        with contextlib.suppress(OSError), secure(served, client_context(pki), before=v2("192.0.2.7")) as second:
            second.sendall(b"peer\n")
            assert not second.recv(10)
        with contextlib.suppress(OSError):
            assert silent.recv(1) == b""
    found = served.counted(first_byte=1, served=1)
    assert found["per_source"] == 1


class ByHand:
    """A TLS client whose records are sent and taken one call at a time."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        self._plain = plain
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname="127.0.0.1")

    def begin(self) -> None:
        """Say hello, and no more."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._plain.sendall(self._goes.read())

    def ask(self, line: bytes) -> bytes:
        """To the end of the handshake, and an exchange."""
        self._done(self._tls.do_handshake)
        self._tls.write(line)
        return self._done(lambda: self._tls.read(100))

    def _done(self, call: Callable[[], Result]) -> Result:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self._plain.sendall(self._goes.read())
                self._came.write(self._plain.recv(65536))
            finally:
                self._plain.sendall(self._goes.read())


def test_who_has_shaken_hands_waits_for_a_seat(serve, pki):
    """Its handshake began when there was one, which another has now; its turn comes."""
    served = serve(ORDERS, workers=1, threads=1)
    context = client_context(pki)
    with connect(served) as plain, ThreadPoolExecutor() as pool:
        late = ByHand(plain, context)
        late.begin()
        wait_for(lambda: served.status()["parked"]["new"] == 1, 10, "it to be in its handshake")
        with secure(served, context) as first:
            first.sendall(b"peer\n")
            assert read_line(first) == b"127.0.0.1\n"
            answer = pool.submit(late.ask, b"peer\n")
        assert answer.result(10) == b"127.0.0.1\n"
    served.counted(served=2)


def test_reload_over_tls_loses_nobody(serve, pki):
    """Handshakes that are under way are completed."""
    served = serve("aio_handlers:line", workers=2)
    context = client_context(pki)

    def exchange(plain: socket.socket, line: bytes) -> bool:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(line)
            return read_line(client) == line

    with Storm(served, clients=6, exchange=exchange) as clients:
        for number in range(2):
            served.signal(SIGHUP)
            wait_for(lambda done=number + 1: served.status()["totals"]["reloads"] == done, 20, "the reload")
            clients.wait_for_more(20)
    assert clients.counts.is_lossless, clients.counts
    assert served.stop() == 0


# -- datagrams


def ask(served, *packets: bytes, index: int = 0, host: str = "127.0.0.1", timeout: float = 10.0) -> list[bytes]:
    """The answers to some datagrams, each of which is answered before the next is sent."""
    address = served.addresses[index]
    with socket.socket(address.family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        if address.family == socket.AF_UNIX:
            client.bind("")
            client.connect(address.where)
        else:
            client.connect((host, address.where[1]))  # so that an answer from elsewhere is not heard
        answers = []
        for packet in packets:
            client.send(packet)
            answers.append(client.recv(100_000))
        return answers


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_datagrams_are_answered_from_the_address_asked(daemon, tmp_path, loop):
    """Also on a wildcard address, and also later; on Unix datagram sockets, too."""
    served = daemon(DATAGRAMS, bind=["udp://0.0.0.0:0", f"unixgram:@{tmp_path}"], workers=2, loop=loop)
    big = b"x" * 30_000
    for host in ("127.0.0.1", "127.0.0.9"):
        assert ask(served, b"hello", b"later", big, host=host) == [b"hello", b"later", big]
    assert ask(served, b"hello", b"later", index=1) == [b"hello", b"later"]
    assert served.counted(served=8)["errors"] == 0


def test_failures_limits_and_empty_answers_of_datagrams(daemon):
    """What raises is counted and logged; who is denied, and who has nothing to say, is not answered."""
    served = daemon(DATAGRAMS, *setting(limits__deny="127.0.0.66"), bind="udp://127.0.0.1:0", workers=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as denied:
        denied.bind(("127.0.0.66", 0))
        denied.sendto(b"hello", ("127.0.0.1", served.port))
    for packet in (b"raise", b"nothing"):
        with pytest.raises(TimeoutError):
            ask(served, packet, timeout=0.2)
    assert ask(served, b"hello") == [b"hello"]
    served.counted(denied=1, errors=1, served=2)
    assert "RuntimeError: ordered to raise" in served.log()


def test_reloads_lose_no_datagram(daemon):
    """What is queued is read by whoever reads next; answers that are being made are sent."""
    served = daemon(DATAGRAMS, bind="udp://127.0.0.1:0", workers=2)
    answers: list[bytes] = []
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            answers.extend(ask(served, b"later", b"hello"))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            served.signal(SIGHUP)
            wait_for(lambda done=number + 1: served.status()["totals"]["reloads"] == done, 20, "the reload")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert len(answers) % 2 == 0
    assert len(answers) >= 8
    assert served.counted(served=len(answers))["errors"] == 0
    assert served.stop() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_last_words_to_a_connection_that_was_cut_are_no_error(daemon, loop) -> None:
    """Written after timeouts.idle has closed it: uvloop raises, asyncio does not; it is no fault of the handler."""
    served = daemon("aio_handlers:polite", *spoken(timeouts__idle=0.3), loop=loop, workers=1)
    with connect(served) as client:
        client.sendall(b"hello\n")
        assert read_line(client) == b"hello\n"
        assert client.recv(1) == b""
    assert served.stop() == 0
    assert "1 timeout_idle" in served.log()
    assert "handler failed" not in served.log()
