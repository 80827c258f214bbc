"""The event loops that serve: asyncio's own over a selector of ours, or uvloop's.

On a listener that several workers share, asyncio's own loop would wake all of them for each connection (measured, 8
workers: 7.9 wake-ups for each). Ours watches it with ``EPOLLEXCLUSIVE``: 1.0. uvloop's cannot be told to: there each
connection wakes every worker that is idle, and all but one of them in vain.
"""

import asyncio
import importlib
import importlib.util
import math
import select
import selectors
from collections.abc import Mapping
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

_READ_BYTES = 256 * 1024
"""What asyncio's transports ask for at each read. Source: asyncio/selector_events.py, max_size."""

_Ready = list[tuple[selectors.SelectorKey, int]]


class LoopSelector(selectors.BaseSelector):
    """Over one epoll of its own. ``exclusive``: descriptors that are watched for input so that of all the processes
    that wait for one only one is woken.

    Source: epoll_ctl(2) EPOLLEXCLUSIVE, which no MOD may touch.
    """

    def __init__(self) -> None:
        self.exclusive: set[int] = set()
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As ever."""
        fd = _number(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (descriptor {fd}) is registered already")
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._epoll.register(fd, self._mask(fd, events))
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As ever; of what was closed meanwhile, too."""
        key = self._keys.pop(_number(fileobj))
        try:
            self._epoll.unregister(key.fd)
        except OSError:
            pass  # closed: the kernel has forgotten it
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As ever."""
        fd = _number(fileobj)
        before = self._keys[fd]
        if events != before.events:
            if fd in self.exclusive:
                self._epoll.unregister(fd)
                self._epoll.register(fd, self._mask(fd, events))
            else:
                self._epoll.modify(fd, self._mask(fd, events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def select(self, timeout: float | None = None) -> _Ready:
        """As ever. A time-out is rounded up to epoll's milliseconds, or a timer would be met a little early, again and
        again."""
        patience = -1.0 if timeout is None else max(0.0, math.ceil(timeout * 1e3) * 1e-3)
        keys = self._keys
        ready = []
        for fd, event in self._epoll.poll(patience, len(keys) or 1):
            if (key := keys.get(fd)) is None:
                continue
            if event == select.EPOLLIN:  # nearly always, and this is where a loop is
                ready.append((key, READ))
            else:
                events = (READ if event & ~select.EPOLLOUT else 0) | (WRITE if event & ~select.EPOLLIN else 0)
                ready.append((key, events & key.events))
        return ready

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """As ever."""
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """By descriptors: asyncio knows nothing else."""
        return self._keys

    def close(self) -> None:
        """As ever."""
        self._keys.clear()
        self._epoll.close()

    def _mask(self, fd: int, events: int) -> int:
        mask = (select.EPOLLIN if events & READ else 0) | (select.EPOLLOUT if events & WRITE else 0)
        return mask | select.EPOLLEXCLUSIVE if fd in self.exclusive and not events & WRITE else mask


def new_loop(name: str) -> tuple[asyncio.AbstractEventLoop, LoopSelector | None]:
    """A loop: ``name`` is asyncio, uvloop, or auto for uvloop where it is installed. With our selector, if it has it.

    Raises:
        ImportError: uvloop is asked for and not installed.
    """
    if name == "uvloop" or (name == "auto" and importlib.util.find_spec("uvloop") is not None):
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
        return loop, None
    _keep_read_buffers()
    selector = LoopSelector()
    return asyncio.SelectorEventLoop(selector), selector


def _keep_read_buffers() -> None:
    """Have malloc keep the memory of a read for the next one.

    glibc maps and unmaps what is larger than a threshold, at first 128 KiB, and asyncio's reads are: measured, 17 us
    for a read of 44 bytes instead of 2.5. Once something larger was freed the threshold is that. Source: mallopt(3),
    M_MMAP_THRESHOLD.
    """
    bytes(2 * _READ_BYTES)


def _number(fileobj: Any) -> int:
    """Raises ValueError where there is none."""
    number = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
    if number < 0:
        raise ValueError(f"invalid descriptor {number}")
    return number
