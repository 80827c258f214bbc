r"""A plain function: the simplest service there is. It greets whoever says a name, and says where from they come.

Serve it, and talk to it::

    poolserver run poolserver.examples.function:greet -b tcp://127.0.0.1:20000
    printf 'world\n' | socat - tcp:127.0.0.1:20000

The function has the connection for itself until it returns; then it is closed. With ``address`` (or ``addr``, or
``client_address``) as the first parameter it would be called with the address first.
"""

import socket

MAX_NAME_BYTES = 100
"""Longest line that is read, with its end; a longer one is cut."""

MAX_NAMES = 1000
"""Lines that one connection is answered."""


def greet(sock: socket.socket, address: tuple[str, int]) -> None:
    """Answer each line until the client's end. How long a client may take, ``[timeouts]`` says."""
    with sock.makefile("rb") as names:
        for _ in range(MAX_NAMES):
            name = names.readline(MAX_NAME_BYTES).strip()
            if not name:
                break
            sock.sendall(b"hello %s from %s\n" % (name, address[0].encode()))
