"""The WSGI application that answers what `bench.web:Page` answers."""

from collections.abc import Callable, Iterable
from typing import Any

BODY = b"ok\n"


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Three bytes for every request."""
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]
