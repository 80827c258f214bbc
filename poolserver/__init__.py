"""The production server for Python's socketserver: a pre-forked, pre-threaded worker-pool daemon.

Names are imported when they are first used, so that the command line can take signals before it loads anything.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolserver.conversation import ParkingMixIn as ParkingMixIn
    from poolserver.errors import ConfigError as ConfigError
    from poolserver.errors import NoServerError as NoServerError
    from poolserver.errors import PoolserverError as PoolserverError
    from poolserver.errors import SystemRefusedError as SystemRefusedError
    from poolserver.errors import UsageError as UsageError
    from poolserver.server import PreForkHTTPServer as PreForkHTTPServer
    from poolserver.server import PreForkMixIn as PreForkMixIn
    from poolserver.server import PreForkTCPServer as PreForkTCPServer
    from poolserver.server import PreForkUDPServer as PreForkUDPServer
    from poolserver.server import PreForkUnixDatagramServer as PreForkUnixDatagramServer
    from poolserver.server import PreForkUnixStreamServer as PreForkUnixStreamServer
    from poolserver.server import PreThreadHTTPServer as PreThreadHTTPServer
    from poolserver.server import PreThreadMixIn as PreThreadMixIn
    from poolserver.server import PreThreadTCPServer as PreThreadTCPServer
    from poolserver.server import PreThreadUDPServer as PreThreadUDPServer
    from poolserver.server import PreThreadUnixDatagramServer as PreThreadUnixDatagramServer
    from poolserver.server import PreThreadUnixStreamServer as PreThreadUnixStreamServer
    from poolserver.service import serve as serve

__version__ = "0.1.0"

_KINDS = ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer", "HTTPServer", "MixIn")
_ERRORS = ("PoolserverError", "ConfigError", "NoServerError", "SystemRefusedError", "UsageError")
_HOMES = (
    {f"{pool}{kind}": "poolserver.server" for pool in ("PreFork", "PreThread") for kind in _KINDS}
    | dict.fromkeys(_ERRORS, "poolserver.errors")
    | {"serve": "poolserver.service", "ParkingMixIn": "poolserver.conversation"}
)

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list of names, made from where they live


def __getattr__(name: str) -> object:
    """Import ``name`` from its module. Source: PEP 562."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
