"""The environment, for the configuration and the command line: what is ours in it, and copies of all of it."""

import os
from collections.abc import Mapping

PREFIX = "POOLSERVER_"


def environment() -> Mapping[str, str]:
    """Return a copy of the process's environment. The only place where the configuration looks at it."""
    return dict(os.environ)


def is_setting(variable: str) -> bool:
    """Whether it is a setting, ``POOLSERVER_SECTION__KEY``; others, such as ``POOLSERVER_FD``, are none."""
    return variable.startswith(PREFIX) and "__" in variable


def taken_out(variable: str) -> str:
    """The value of an environment variable that is for this process alone, no child; "" = it is not set."""
    return os.environ.pop(variable, "")
