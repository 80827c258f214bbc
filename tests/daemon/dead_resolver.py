"""A handler on a machine whose resolver is dead: looking up a name is what must not happen, so it fails loudly."""

import socket

from trap_handlers import NamedHTTPHandler


def getfqdn(name=""):
    """In the place of the one that would wait for seconds."""
    raise AssertionError(f"looked up {name!r}")


socket.getfqdn = getfqdn


class NamedWithoutResolver(NamedHTTPHandler):
    """The same handler; what counts is that its server could be made."""
