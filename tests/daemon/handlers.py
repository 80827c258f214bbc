"""Handlers that the daemon tests serve; found through PYTHONPATH, which the ``daemon`` fixture sets."""

import ctypes
import os
import signal
import socketserver
import sys
import time
from pathlib import Path

MAX_LINE_BYTES = 64 * 1024
MAX_SECONDS = 60.0


class LineHandler(socketserver.StreamRequestHandler):
    """Sends one line back, and ends. What storms ask."""

    def handle(self):
        self.wfile.write(self.rfile.readline(MAX_LINE_BYTES))


class EitherHandler(socketserver.BaseRequestHandler):
    """Tells the worker's parent, to whoever sends a datagram or a line."""

    def handle(self):
        if isinstance(self.request, tuple):
            self.request[1].sendto(b"%d\n" % os.getppid(), self.client_address)
        else:
            self.request.recv(MAX_LINE_BYTES)
            self.request.sendall(b"%d\n" % os.getppid())


class OrderHandler(socketserver.StreamRequestHandler):
    """Does what each line orders, until the client's end, and answers each with a line::

    pid             the worker's pid
    draining        whether the worker is to leave
    echo TEXT       TEXT
    hold            "holding"; then the next line, whatever it is, is answered "released"
    sleep SECONDS   "slept", after that time, in which other lanes run
    freeze SECONDS  "thawed", after that time, in which the worker's GIL is held
    extend SECONDS  "extended": its handler deadline is that much later
    raise           no answer: the handler raises
    exit            no answer: the handler calls sys.exit
    die             no answer: the worker kills itself with SIGKILL
    stop            "stopped", sent before the worker stops itself with SIGSTOP
    """

    def handle(self):
        while line := self.rfile.readline(MAX_LINE_BYTES):
            order, _, argument = line.decode().strip().partition(" ")
            self.obey(order, argument)

    def obey(self, order, argument):
        match order:
            case "pid":
                self.answer(os.getpid())
            case "draining":
                self.answer(self.server.draining)
            case "echo":
                self.answer(argument)
            case "hold":
                self.answer("holding")
                self.rfile.readline(MAX_LINE_BYTES)
                self.answer("released")
            case "sleep":
                time.sleep(min(float(argument), MAX_SECONDS))  # the work that was ordered
                self.answer("slept")
            case "freeze":
                # PyDLL calls keep the GIL, as a C extension gone wrong does.
                ctypes.PyDLL(None).usleep(int(min(float(argument), MAX_SECONDS) * 1_000_000))
                self.answer("thawed")
            case "extend":
                self.server.extend(float(argument))
                self.answer("extended")
            case "raise":
                raise RuntimeError("ordered to raise")
            case "exit":
                sys.exit("ordered to exit")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                self.answer("stopped")
                os.kill(os.getpid(), signal.SIGSTOP)
            case _:
                self.answer(f"unknown order {order!r}")

    def answer(self, reply):
        self.wfile.write(f"{reply}\n".encode())


def note_start():
    """A ``server.worker_start``: leaves a line in the file that the environment names, or does what it says there."""
    order = os.environ.get("WORKER_START", "")
    if order == "raise":
        raise RuntimeError("no database")
    if order == "hang":
        time.sleep(MAX_SECONDS)
    note("start")


def note_stop():
    """A ``server.worker_stop``."""
    note("stop")
    if os.environ.get("WORKER_STOP") == "raise":
        raise RuntimeError("cannot say goodbye")


def note(word):
    with Path(os.environ["WORKER_NOTES"]).open("a") as notes:
        notes.write(f"{word} {os.getpid()}\n")
