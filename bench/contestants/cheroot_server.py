"""cheroot, one process: `python -m bench.contestants.cheroot_server MODULE:APPLICATION THREADS`."""

import os
import pkgutil
import sys

from cheroot import wsgi

CONNECTIONS = 5000


def main() -> None:
    """Serve until killed. Stock but for the backlog of five, and for the ten kept connections."""
    application, threads = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    server = wsgi.Server(("127.0.0.1", 0), application, numthreads=threads, request_queue_size=1024)
    server.keep_alive_conn_limit = CONNECTIONS
    server.prepare()
    url = f"tcp://127.0.0.1:{server.bind_addr[1]}"
    print(f"cheroot: ready on {url} (pid {os.getpid()})", file=sys.stderr, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
