"""gevent's `StreamServer`, one process, with the same handler class on its sockets: `python -m … MODULE:HANDLER`."""

import os
import pkgutil
import socketserver
import sys

from gevent.server import StreamServer

BACKLOG = 1024  # as everyone's: its default is 256


def main() -> None:
    """Serve until killed. A greenlet for each connection; the server closes it when the handler returns."""
    handler = pkgutil.resolve_name(sys.argv[1])
    nobody: socketserver.BaseServer = None  # type: ignore[assignment] # no server object: no handler here asks
    server = StreamServer(
        ("127.0.0.1", 0), lambda connection, address: handler(connection, address, nobody), backlog=BACKLOG
    )
    server.start()
    url = f"tcp://127.0.0.1:{server.server_port}"
    print(f"gevent: ready on {url} (pid {os.getpid()})", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
