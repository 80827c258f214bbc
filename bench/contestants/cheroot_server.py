"""cheroot, one process: `python -m bench.contestants.cheroot_server MODULE:APPLICATION THREADS`."""

import pkgutil
import sys

from cheroot import wsgi

from bench.contestants import say_ready

CONNECTIONS = 5000


def main() -> None:
    """Serve until killed. Stock but for the backlog of five, and for the ten kept connections."""
    application, threads = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    server = wsgi.Server(("127.0.0.1", 0), application, numthreads=threads, request_queue_size=1024)
    server.keep_alive_conn_limit = CONNECTIONS
    server.prepare()
    say_ready("cheroot", server.bind_addr[1])
    server.serve()


if __name__ == "__main__":
    main()
