"""The exception tree. Each class knows the exit code that the command line ends with.

    PoolserverError        1   it failed while running, or what was asked did not happen
    ├── UsageError         2   the command line is wrong
    ├── NoServerError     69   no server answers at the control socket     (EX_UNAVAILABLE)
    ├── SystemRefusedError 71  bind, fork or permission refused            (EX_OSERR)
    └── ConfigError       78   configuration or handler cannot be used     (EX_CONFIG)

The library raises these; only ``cli.py`` turns them into an exit.
"""


class PoolserverError(Exception):
    """Anything poolserver reports to its operator as one line."""

    exit_code = 1


class UsageError(PoolserverError):
    """The command line is wrong."""

    exit_code = 2


class NoServerError(PoolserverError):
    """No server answers at the control socket."""

    exit_code = 69


class SystemRefusedError(PoolserverError):
    """The system refused: bind, fork, permission."""

    exit_code = 71


class ConfigError(PoolserverError):
    """The configuration or the handler cannot be used.

    ``details`` is a traceback or further lines to print below the message.
    """

    exit_code = 78

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
