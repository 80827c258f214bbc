"""Workers that are forked from another thread than the main one: what CPython does with signals there."""

import subprocess
import sys

SCRIPT = """
import os, select, signal, threading
from poolserver import process, signals

def child(_report_fd):
    signals.reset_in_child()
    signals.unblock_all()
    inbox, got = signals.Inbox.open(), []
    poller = select.poll()
    poller.register(inbox.fileno(), select.POLLIN)
    with signals.taken(inbox, {signal.SIGTERM: "leave"}):
        sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
        sender.start()
        while sender.is_alive():
            pass  # in no system call, since one that the signal interrupts runs its handler
        while not got and signals.wait_readable(poller, 20.0):
            got += inbox.take()
    return 0 if got == ["leave"] else 1

def fork():
    worker = process.fork(child)
    print("exited with", os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1]))

thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""


def test_order_is_taken_in_a_worker_forked_from_a_thread() -> None:
    """A signal that interrupts no system call is taken too, where CPython 3.13.0 forgets to run its handler."""
    outcome = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert outcome.stdout == "exited with 0\n", outcome.stdout + outcome.stderr
