"""Handlers and servers for the tests of fork, death and stop; found through PYTHONPATH like those of handlers.py."""

import builtins
import ctypes
import gc
import os
import select
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

from handlers import MAX_LINE_BYTES, MAX_SECONDS, OrderHandler

WORK_SECONDS = 0.2
"""What ``SlowHandler`` takes for one client: its work."""

HIT_SECONDS = 0.005
"""What ``HitHandler`` takes for one client: its work."""


class SlowHandler(socketserver.StreamRequestHandler):
    """Sends one line back after ``WORK_SECONDS``: with few lanes, clients queue."""

    def handle(self):
        line = self.rfile.readline(MAX_LINE_BYTES)
        time.sleep(WORK_SECONDS)  # the work
        self.wfile.write(line)


class HitHandler(socketserver.StreamRequestHandler):
    """Says at once whose hands the client is in, then sends its line back: a client that is lost knows by whom."""

    def handle(self):
        self.wfile.write(b"%d\n" % os.getpid())
        line = self.rfile.readline(MAX_LINE_BYTES)
        time.sleep(HIT_SECONDS)  # the work
        self.wfile.write(line)


class FatalHandler(OrderHandler):
    """Further orders, of which the first group ends the worker, and the second may hang or upset it::

    segfault        reads address 0
    abort           calls abort(3)
    _exit CODE      calls os._exit
    hang            "hanging", then sleeps, whatever is sent to it
    spin            "spinning", then loops in Python
    read PATH       "reading", then reads from it: from a FIFO, as long as nobody writes
    steal           "stealing", then "stolen" when a wake-up meant for a lane has come here and nobody accepted
    orphan          "orphaned": a grandchild is left behind, which ends at once
    kill lanes      "killed": every other lane thread gets a SystemExit from outside
    shutdown COUNT  "asked", after so many calls of server.shutdown()
    print TEXT      "printed": TEXT went to standard output, and was not flushed
    signals         the masks of a program that the handler starts, as "SigBlk:… SigIgn:…"
    dirty           kilobytes that a garbage collection made private to this process
    """

    def obey(self, order, argument):
        name = order.lstrip("_").lower() + "_"
        act = getattr(self, name, None)
        if act is None:
            super().obey(order, argument)
        else:
            act(argument)

    def segfault_(self, _):
        ctypes.string_at(0)

    def abort_(self, _):
        os.abort()

    def exit_(self, code):
        if code:
            os._exit(int(code))
        sys.exit("ordered to exit")

    def hang_(self, _):
        self.answer("hanging")
        while True:
            time.sleep(3600)  # the hang

    def spin_(self, _):
        self.answer("spinning")
        while True:
            pass

    def read_(self, path):
        self.answer("reading")
        Path(path).read_bytes()

    def steal_(self, _):
        with select.epoll() as thief:
            thief.register(self.server.socket, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self.answer("stealing")
            thief.poll(MAX_SECONDS)
        self.answer("stolen")

    def orphan_(self, _):
        if (child := os.fork()) == 0:
            parent = os.getpid()
            if os.fork() == 0:
                while os.getppid() == parent:
                    time.sleep(0.01)  # an orphan only when its parent has ended
            os._exit(0)
        os.waitpid(child, 0)
        self.answer("orphaned")

    def kill_(self, _):
        for thread in threading.enumerate():
            if thread.name.startswith("lane-") and thread is not threading.current_thread():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        self.answer("killed")

    def shutdown_(self, count):
        for _ in range(int(count)):
            self.server.shutdown()
        self.answer("asked")

    def print_(self, text):
        print(text)
        self.answer("printed")

    def signals_(self, _):
        words = ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        self.answer("".join(done.stdout.split()).replace("SigIgn", " SigIgn"))

    def dirty_(self, _):
        before = private_dirty_kilobytes()
        gc.collect()
        self.answer(private_dirty_kilobytes() - before)


def private_dirty_kilobytes():
    """What this process shares with nobody. Source: proc(5) smaps_rollup."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def raise_by_name(name):
    """Raise the built-in exception of that name; RecursionError in earnest."""
    if name == "RecursionError":
        raise_by_name(name)
    raise getattr(builtins, name)("ordered to raise")


class RaisingHandler(socketserver.StreamRequestHandler):
    """``WHERE NAME``: raises NAME in ``handle``, or in a hook of ``RaisingServer``; any other line is sent back."""

    def handle(self):
        line = self.rfile.readline(MAX_LINE_BYTES)
        where, _, name = line.decode().strip().partition(" ")
        if where in ("handle", "handle_error"):
            self.server.raises = name if where == "handle_error" else ""
            raise_by_name(name)
        self.wfile.write(line)


class RaisingServer(socketserver.TCPServer):
    """Its hooks raise when the client's line names them; ``get_request`` does the first time in each worker."""

    RequestHandlerClass = RaisingHandler
    raises = ""
    has_raised = False

    def get_request(self):
        if not self.has_raised:
            self.has_raised = True
            raise KeyboardInterrupt("get_request")
        return super().get_request()

    def verify_request(self, request, client_address):
        where, _, name = request.recv(100, 2).decode().strip().partition(" ")  # 2: MSG_PEEK
        if where == "verify_request":
            raise_by_name(name)
        return True

    def handle_error(self, request, client_address):
        if self.raises:
            raise_by_name(self.raises)
        super().handle_error(request, client_address)


class DeafServer(socketserver.TCPServer):
    """Its ``get_request`` always raises, before it accepts."""

    RequestHandlerClass = RaisingHandler

    def get_request(self):
        raise RuntimeError("no request for anybody")
