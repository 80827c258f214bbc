"""The stdlib's `ForkingTCPServer`: `python -m bench.contestants.forking_tcp MODULE:HANDLER`."""

import socketserver

from bench.contestants.threading_tcp import run

if __name__ == "__main__":
    run(socketserver.ForkingTCPServer)
