"""Addresses: what a bind URL means. Pure but for the look-up of a host's name; binds nothing."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from poolserver.errors import ConfigError

_SCHEMES = {
    "tcp": socket.SOCK_STREAM,
    "tls": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
    "unix": socket.SOCK_STREAM,
    "unixgram": socket.SOCK_DGRAM,
}


@dataclass(frozen=True)
class Address:
    """Where to bind: one parsed URL. ``sockaddr`` is what ``socket.bind`` takes; for ``systemd:NAME``, the name."""

    scheme: str
    family: socket.AddressFamily
    sockaddr: tuple[str, int] | str
    fd: int = -1
    """For ``fd://N``: the descriptor to adopt."""

    @property
    def is_passed(self) -> bool:
        """Whether the socket is somebody else's, who alone knows what it is bound to."""
        return self.scheme in ("fd", "systemd")

    @property
    def has_file(self) -> bool:
        """Whether it is the path of a Unix socket, which appears in the file system."""
        return self.family == socket.AF_UNIX and not str(self.sockaddr).startswith("\0")

    @property
    def is_stream(self) -> bool:
        return _SCHEMES.get(self.scheme) is socket.SOCK_STREAM

    @property
    def is_tcp(self) -> bool:
        """Whether it is a TCP listener, whatever is spoken there."""
        return self.scheme in ("tcp", "tls")

    @property
    def url(self) -> str:
        if self.fd >= 0:
            return f"fd://{self.fd}"
        if isinstance(self.sockaddr, str):
            return f"{self.scheme}:{self.sockaddr.replace(chr(0), '@', 1)}"
        host, port = self.sockaddr[:2]
        return (
            f"{self.scheme}://[{host}]:{port}" if self.family == socket.AF_INET6 else f"{self.scheme}://{host}:{port}"
        )


def parse(url: str) -> list[Address]:
    """The addresses of one bind URL: two for ``tcp://:PORT`` (0.0.0.0 and [::]) or a name with several, else one.

    Raises:
        ConfigError: it is not a bind URL, with the reason and the form that would be.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "fd" and rest.startswith("//"):
        return [_parse_fd(url, rest[2:])]
    if scheme == "systemd" and colon:
        return [Address("systemd", socket.AF_UNSPEC, rest)]
    if scheme not in _SCHEMES or not colon:
        raise ConfigError(f"server.bind: {url!r} is not an address ({_remedy(url)})")
    if scheme.startswith("unix"):
        return [_parse_unix(url, scheme, rest)]
    return _parse_inet(url, scheme, rest)


def _remedy(url: str) -> str:
    """A hint for who gave a path or a port, or spelt the scheme otherwise; else what there is."""
    rest = url.partition("://")[2] or url
    host, colon, port = rest.rstrip("/").rpartition(":")
    if url.startswith(("/", ".")):
        return f'did you mean "unix:{url}"?'
    if port.isdecimal() and not set(host) & set("/@"):
        return f'did you mean "tcp://{host}:{port}"?' if colon else f'did you mean "tcp://127.0.0.1:{port}"?'
    known = (
        "tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:/PATH, unix:@NAME, unixgram:/PATH, fd://N, systemd:"
    )
    return f"known: {known}"


def _parse_fd(url: str, number: str) -> Address:
    if not number.isdecimal():
        raise ConfigError(f"server.bind: {url!r}: want a descriptor's number, as in fd://3")
    return Address("fd", socket.AF_UNSPEC, "", int(number))


def _parse_unix(url: str, scheme: str, rest: str) -> Address:
    path = rest.removeprefix("//")
    if path.startswith("@"):
        path = "\0" + path[1:]
    length = len(os.fsencode(path))
    if length < 1 or path == "\0" or length > 107 or (path[0] != "\0" and "\0" in path):
        raise ConfigError(f"server.bind: {url!r}: a Unix socket's path has 1 to 107 bytes, as in unix:/run/name.sock")
    return Address(scheme, socket.AF_UNIX, path)


def _parse_inet(url: str, scheme: str, rest: str) -> list[Address]:
    host, _, port = rest.removeprefix("//").rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_plain = not set(host) & set("[]:")
    if not rest.startswith("//") or not port.isdecimal() or int(port) > 65535 or not (is_bracketed or is_plain):
        raise ConfigError(
            f"server.bind: {url!r}: want {scheme}://HOST:PORT with a port of 0 to 65535, [::1] in brackets"
        )
    if not host:
        return [
            Address(scheme, socket.AF_INET, ("0.0.0.0", int(port))),  # noqa: S104 - the URL asks for every address
            Address(scheme, socket.AF_INET6, ("::", int(port))),
        ]
    return [
        Address(scheme, family, (text, int(port)))
        for family, text in _resolve(url, host.removeprefix("[").removesuffix("]"))
    ]


def _resolve(url: str, host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass  # a name
    else:
        return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, host)]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"server.bind: {url!r}: the name {host!r} has no address ({error})") from error
    return list(dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found))
