"""What an operator asks, and how it travels: the Command enum, signal → command, the orders of the master to a worker.

Pure tables. Anyone may import this; it imports nothing of poolserver.
"""

import enum
import signal
from collections.abc import Mapping


class Command(enum.Enum):
    """What can be asked of the master, by signal or otherwise."""

    STOP = "stop"
    STOP_NOW = "stop --now"
    RELOAD = "reload"
    UPGRADE = "upgrade"
    REOPEN = "reopen"
    MORE = "one worker more"
    FEWER = "one worker less"
    SCALE = "scale"  # to a number of workers; no signal carries it
    REAP = "reap strangers"  # SIGCHLD, taken only as PID 1: orphans of handlers are ours to bury


class Order(enum.Enum):
    """What the master tells a worker. The value is the signal that carries it."""

    DRAIN = signal.SIGTERM  # the service stops: serve the accept queue too, finish, leave
    RETIRE = signal.SIGRTMIN  # others go on: leave the queue to them. A real-time signal, since no terminal
    # and no process group sends one by accident (SIGHUP, SIGWINCH and SIGUSR2 come that way)
    GO = signal.SIGRTMIN + 1  # to a canary: the reload is committed, accept
    STOP_NOW = signal.SIGQUIT
    REOPEN = signal.SIGUSR1
    KILL = signal.SIGKILL


MASTER_SIGNALS: Mapping[int, Command] = {
    signal.SIGTERM: Command.STOP,
    signal.SIGINT: Command.STOP_NOW,
    signal.SIGQUIT: Command.STOP_NOW,
    signal.SIGHUP: Command.RELOAD,
    signal.SIGUSR1: Command.REOPEN,
    signal.SIGUSR2: Command.UPGRADE,
    signal.SIGTTIN: Command.MORE,
    signal.SIGTTOU: Command.FEWER,
}

CONTROL_COMMANDS: Mapping[str, Command] = {
    command.value: command
    for command in (
        Command.STOP,
        Command.STOP_NOW,
        Command.RELOAD,
        Command.UPGRADE,
        Command.REOPEN,
        Command.SCALE,
    )
}
"""The words of the control socket."""

LIBRARY_SIGNALS: Mapping[int, Command] = {
    signum: MASTER_SIGNALS[signum] for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
}
"""A library call takes only what ends it: the rest belongs to the program that calls."""

WORKER_SIGNALS: Mapping[int, Order | None] = {
    **{order.value: order for order in Order if order is not Order.KILL},
    signal.SIGINT: Order.STOP_NOW,  # Ctrl-C reaches the whole foreground group
    # Sent to a whole group by a hang-up or a careless kill: meant for the master, so a worker takes and drops them.
    signal.SIGHUP: None,
    signal.SIGUSR2: None,
    signal.SIGTTIN: None,
    signal.SIGTTOU: None,
}
