"""The context of a service, and what a handler has for a connection; against the standard library's client."""

import select
import socket
import ssl
import threading

import pytest
from pki import Pki

from poolserver.config import from_sections
from poolserver.errors import ConfigError
from poolserver.portions import terms_of
from poolserver.tls import Handshake, SecureSocket, context_for, secured, shake_hands

NOTHING = {"certificate": "", "key": "", "client_ca": "", "client_auth": "none", "min_version": "1.2"}


def context(pki: Pki, **changes: str) -> ssl.SSLContext:
    made = context_for([], **{**NOTHING, "certificate": pki.server, "key": pki.server_key, **changes})
    assert made is not None
    return made


# -- the context


def test_no_certificate_is_no_tls() -> None:
    """Nothing is opened for services without it."""
    assert context_for(["tcp://127.0.0.1:0", "unix:/tmp/s"], **NOTHING) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"certificate": ""}, "tls.certificate: must be given for tls://127.0.0.1:0"),
        ({"certificate": "/nowhere"}, "tls.certificate: /nowhere cannot be read: No such file or directory"),
        ({"key": "/nowhere"}, "tls.key: /nowhere cannot be read"),
        ({"certificate": "garbage"}, "garbage.pem or its key cannot be used: "),
        ({"certificate": "server_key"}, "server-key.pem holds no certificate in PEM form"),
        ({"key": "server"}, "tls.key: .*server.pem holds no private key in PEM form"),
        ({"key": ""}, "tls.certificate: .*server.pem holds no private key in PEM form"),
        ({"key": "client_key"}, "tls.key: .*client-key.pem is not the key of .*server.pem"),
        ({"key": "encrypted_key"}, "tls.key: it is encrypted"),
        ({"client_ca": "/nowhere"}, "tls.client_ca: /nowhere cannot be read"),
        ({"client_ca": "garbage"}, "tls.client_ca: .*garbage.pem cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused_by_key_and_file(pki: Pki, changes: dict[str, str], words: str) -> None:
    """One clause for the operator; nobody is asked for a password."""
    files = {name: getattr(pki, value) if value.isidentifier() else value for name, value in changes.items()}
    given = {**NOTHING, "certificate": pki.server, "key": pki.server_key, **files}
    with pytest.raises(ConfigError, match=words):
        context_for(["tls://127.0.0.1:0"], **given)


def test_key_may_be_in_the_certificates_file(pki: Pki) -> None:
    """As HAProxy has it."""
    assert context(pki, certificate=pki.both, key="")


def test_old_versions_and_renegotiation_are_off(pki: Pki) -> None:
    """A04: Python's own options do not have the latter."""
    assert context(pki).minimum_version is ssl.TLSVersion.TLSv1_2
    assert context(pki, min_version="1.3").minimum_version is ssl.TLSVersion.TLSv1_3
    assert context(pki).options & ssl.OP_NO_RENEGOTIATION


def test_terms_have_the_context_of_the_section(pki: Pki) -> None:
    """From the configuration, where paths are anchored."""
    tls = {"certificate": pki.server, "key": pki.server_key, "client_ca": pki.ca, "client_auth": "required"}
    terms = terms_of(from_sections({"tls": tls | {"handshake_timeout": 3}}).config, 5)
    assert terms.tls is not None
    assert terms.tls.verify_mode is ssl.CERT_REQUIRED
    assert terms.handshake_timeout == 3


def test_asking_for_certificates_needs_somebody_to_verify_them() -> None:
    """tls.client_auth without tls.client_ca."""
    with pytest.raises(ConfigError, match=r"tls\.client_auth: must be none without tls\.client_ca"):
        from_sections({"tls": {"client_auth": "optional"}})


# -- a connection


class Client(threading.Thread):
    """A client of the standard library's over one end of a socket pair, in a thread of its own."""

    def __init__(self, sock: socket.socket, pki: Pki, maximum: ssl.TLSVersion) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.context = ssl.create_default_context(cafile=pki.ca)
        self.context.maximum_version = maximum
        self.got: bytes | Exception = b""

    def run(self) -> None:
        """Shake hands, say hello, read to the end that the server says is one."""
        try:
            with self.context.wrap_socket(self.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secure:
                secure.sendall(b"hello")
                while chunk := secure.recv(100_000):
                    assert isinstance(self.got, bytes)
                    self.got += chunk
        except OSError as error:
            self.got = error


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, pki: Pki):
    """A connection whose handshake is complete, and its client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), timeout=10)
        ours, _ = listener.accept()
    client = Client(theirs, pki, request.param)
    client.start()
    secure = secured(ours, context(pki))
    while (progress := shake_hands(secure)) is not Handshake.DONE:
        assert progress is Handshake.WANTS_INPUT
        assert socket.socket.recv(wait_readable(secure), 1, socket.MSG_PEEK)
    secure.settimeout(10)
    with secure:
        yield secure, client
    client.join(10)


def wait_readable(secure: SecureSocket) -> SecureSocket:
    """As the park does: until something is there to read."""
    secure.settimeout(10)
    socket.socket.recv(secure, 1, socket.MSG_PEEK)
    secure.settimeout(0)
    return secure


def test_end_is_told_to_the_client(pair) -> None:
    """close_notify: a client that insists on it sees a plain end, where the stock socket's is an error to it."""
    secure, client = pair
    assert secure.recv(100) == b"hello"
    secure.sendall(b"bye")
    secure.shutdown(socket.SHUT_WR)
    client.join(10)
    assert client.got == b"bye"


def test_cut_is_no_end_to_the_client(pair) -> None:
    """Shut down from outside, the answer does not look complete."""
    secure, client = pair
    assert secure.recv(100) == b"hello"
    secure.sendall(b"by")
    socket.socket.shutdown(secure, socket.SHUT_RDWR)
    client.join(10)
    assert isinstance(client.got, ssl.SSLError)


def test_large_answer_is_sent_in_pieces_and_arrives_whole(pair) -> None:
    """Whatever a handler writes at once, and in whatever form."""
    secure, client = pair
    text = memoryview(bytes(range(256)) * 20_000)
    assert secure.send(text) == 65536
    secure.sendall(text[65536:])
    secure.shutdown(socket.SHUT_WR)
    client.join(10)
    assert client.got == bytes(text)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"])
def test_garbage_fails_with_a_reason(pki: Pki, garbage: bytes) -> None:
    """And does not wait for more."""
    ours, theirs = socket.socketpair()
    with theirs, secured(ours, context(pki)) as secure:
        theirs.sendall(garbage)
        with pytest.raises(ssl.SSLError):
            shake_hands(secure)


def test_partial_hello_is_waited_for(pki: Pki) -> None:
    """Whether nothing came or a part of it."""
    ours, theirs = socket.socketpair()
    with theirs, secured(ours, context(pki)) as secure:
        assert shake_hands(secure) is Handshake.WANTS_INPUT
        theirs.sendall(b"\x16\x03\x01")
        assert shake_hands(secure) is Handshake.WANTS_INPUT


def test_reset_within_the_handshake_is_an_oserror(pki: Pki) -> None:
    """Whoever it is that leaves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with secured(ours, context(pki)) as secure:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        select.select([secure], [], [], 10)
        with pytest.raises(ConnectionResetError):
            shake_hands(secure)
