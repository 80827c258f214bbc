"""The production server for Python's socketserver: a pre-forked, pre-threaded worker-pool daemon."""

from poolserver.errors import ConfigError, NoServerError, PoolserverError, SystemRefusedError, UsageError
from poolserver.server import (
    PreForkHTTPServer,
    PreForkMixIn,
    PreForkTCPServer,
    PreForkUDPServer,
    PreForkUnixDatagramServer,
    PreForkUnixStreamServer,
    PreThreadHTTPServer,
    PreThreadMixIn,
    PreThreadTCPServer,
    PreThreadUDPServer,
    PreThreadUnixDatagramServer,
    PreThreadUnixStreamServer,
)
from poolserver.service import serve

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "NoServerError",
    "PoolserverError",
    "PreForkHTTPServer",
    "PreForkMixIn",
    "PreForkTCPServer",
    "PreForkUDPServer",
    "PreForkUnixDatagramServer",
    "PreForkUnixStreamServer",
    "PreThreadHTTPServer",
    "PreThreadMixIn",
    "PreThreadTCPServer",
    "PreThreadUDPServer",
    "PreThreadUnixDatagramServer",
    "PreThreadUnixStreamServer",
    "SystemRefusedError",
    "UsageError",
    "serve",
]
