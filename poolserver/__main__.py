"""Entry of the command line: ``poolserver`` and ``python -m poolserver``.

Ctrl-C and TERM simply end the process until the service takes signals: a second of imports, click and pydantic among
them, is no place for a traceback.
"""

from signal import SIGINT

from poolserver import signals

signals.default(SIGINT)

from poolserver.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
