"""The bare loop that parks: `python -m bench.contestants.bare_park MODULE:HANDLER PROCESSES`.

One thread in each process, an epoll, and kept connections in it between two requests, told of once each: the least
that parking in processes can cost. Nobody is cut, moved, counted or drained.
"""

import contextlib
import select
import socket
from http.server import BaseHTTPRequestHandler
from typing import Any, NoReturn

from bench.contestants.bare import run

ONCE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET | select.EPOLLONESHOT


def serve(listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> NoReturn:
    """Serve for ever; runs in a child."""
    make = type(handler.__name__, (handler,), {"handle": lambda _: None, "finish": lambda _: None})
    epoll = select.epoll()
    listener.setblocking(False)
    epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    kept: dict[int, tuple[socket.socket, Any]] = {}
    while True:
        [(fd, _)] = epoll.poll(-1, 1)
        if fd == listener.fileno():
            try:
                connection, address = listener.accept()
            except BlockingIOError:  # a sibling was quicker
                continue
            connection.setblocking(True)
            kept[connection.fileno()] = connection, make(connection, address, None)  # type: ignore[arg-type]
            epoll.register(connection, ONCE)
            continue
        connection, conversation = kept[fd]
        if goes_on(connection, conversation):
            epoll.modify(fd, ONCE)
        else:
            del kept[fd]
            epoll.unregister(fd)
            with contextlib.suppress(OSError):  # the client has left
                handler.finish(conversation)
            connection.close()


def goes_on(connection: socket.socket, conversation: BaseHTTPRequestHandler) -> bool:
    """Handle a request. False: it was the last, or there is none."""
    try:
        if not connection.recv(2048, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return False
        conversation.handle_one_request()
    except OSError:  # the client has left
        return False
    return not conversation.close_connection


if __name__ == "__main__":
    run("bare_park", serve)
