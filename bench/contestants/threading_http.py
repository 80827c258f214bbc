"""The stdlib's `ThreadingHTTPServer`: `python -m bench.contestants.threading_http MODULE:HANDLER`."""

from http.server import ThreadingHTTPServer

from bench.contestants.threading_tcp import run

if __name__ == "__main__":
    run(ThreadingHTTPServer)
