"""TLS: the context of a service, the handshake in pieces, and what a handler has for a connection.

The context is made in the master, before the fork: the key need be readable there alone, and the workers share the keys
of session tickets, so that a client resumes its session whichever of them it meets (59 of 60; made in each worker, 0 to
5 of 60).
"""

import enum
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poolserver.errors import ConfigError

SEND_BYTES = 64 * 1024
"""Most that one send takes, so that its time-out is of so much and not of all that a handler writes at once: a client
that takes an answer slowly, but steadily, is not cut."""

_AUTHENTICATION = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Handshake(enum.Enum):
    """How far it is."""

    DONE = "done"
    WANTS_INPUT = "wants input"
    WANTS_ROOM = "wants room"  # to send


class SecureSocket(ssl.SSLSocket):
    """A connection of a ``tls://`` listener, as its handler has it."""

    def send(self, data: Any, flags: int = 0) -> int:
        """As ever, but no more than ``SEND_BYTES``; ``sendall`` sends all."""
        return super().send(memoryview(data).cast("B")[:SEND_BYTES], flags)

    def shutdown(self, how: int) -> None:
        """As ever, but tell the client first that this is the end, not a cut (close_notify). Nobody waits for its
        answer; a client that takes no more is not told."""
        if how != socket.SHUT_RD:
            patience = self.gettimeout()
            try:
                self.settimeout(0)
                self.unwrap()
            except (OSError, ValueError):
                pass  # it was sent, and only the client's is missing; or there is nobody to tell
            self.settimeout(patience)
        super().shutdown(how)


def context_for(
    urls: Iterable[str], *, certificate: str, key: str, client_ca: str, client_auth: str, min_version: str
) -> ssl.SSLContext | None:
    """The context that the section ``tls`` asks for; None where there is no certificate, and no URL wants one.

    Raises:
        ConfigError: A URL wants one; or a file cannot be read or used, or certificate and key do not match.
    """
    if not certificate:
        wanting = [url for url in urls if url.startswith("tls:")]
        if wanting or key or client_ca:
            raise ConfigError(f"tls.certificate: must be given{f' for {wanting[0]}' if wanting else ''}")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = SecureSocket
    context.minimum_version = _VERSIONS[min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, certificate, key)
    if client_ca:
        _load_client_ca(context, client_ca)
    context.verify_mode = _AUTHENTICATION[client_auth]
    return context


def secured(sock: socket.socket, context: ssl.SSLContext | None) -> SecureSocket:
    """Put TLS on a connection, which is the result's from then on. It does not wait, until it is given a time-out.

    Raises:
        OSError: It was reset; it is closed then.
    """
    assert context is not None
    sock.setblocking(False)
    secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    assert isinstance(secure, SecureSocket)
    return secure


def shake_hands(secure: SecureSocket) -> Handshake:
    """Go on with the handshake as far as it goes without waiting.

    Raises:
        OSError: It failed; an ``ssl.SSLError`` says why.
    """
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        return Handshake.WANTS_INPUT
    except ssl.SSLWantWriteError:
        return Handshake.WANTS_ROOM
    return Handshake.DONE


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _require_pem("tls.certificate", certificate, "CERTIFICATE")
    _require_pem("tls.key" if key else "tls.certificate", key or certificate, "PRIVATE KEY")
    try:
        context.load_cert_chain(certificate, key or None, _refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls.key: {key or certificate} is not the key of {certificate}") from error
        raise ConfigError(f"tls.certificate: {certificate} or its key cannot be used: {error}") from error


def _load_client_ca(context: ssl.SSLContext, path: str) -> None:
    _require_pem("tls.client_ca", path, "CERTIFICATE")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"tls.client_ca: {path} cannot be used: {error}") from error


def _require_pem(name: str, path: str, what: str) -> None:
    """What OpenSSL would say without a name, or with another's."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}") from error
    if f"{what}-----".encode() not in text:
        raise ConfigError(f"{name}: {path} holds no {what.lower()} in PEM form")


def _refuse_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ConfigError("tls.key: it is encrypted, and nobody is there to be asked: give it without a password")
