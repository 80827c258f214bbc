"""How the idle lanes of one process are woken: the epoll that they share, and what makes it ready.

Listeners and parked connections are in it, and an eventfd for what one lane leaves to another.

Made after the fork, since an epoll made before it is shared by both sides. Owned by the crew.
"""

import collections
import contextlib
import os
import select
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

BATCH = 8
"""Of so many that are ready a lane that is alone in its process is told at once; the watcher may take them from it."""

NOTHING = -2
WOKEN = -1
"""What ``wait`` gives a lane that was woken for nothing: a sibling was quicker, or it is to leave."""

_PARKED = select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP
"""Each arrival tells once, so that a trickle wakes a lane once a packet and unread input never spins."""

_ONCE = _PARKED | select.EPOLLONESHOT
"""What arrives while a lane has the connection wakes no other, until it is asked for again."""

_LEVEL = select.EPOLLIN | select.EPOLLRDHUP


class Wakeups(Generic[T]):
    """One epoll for all lanes, each calling ``wait``: listeners (``EPOLLEXCLUSIVE``), "look again", and the stop.

    Shared by several lanes, listeners are edge-triggered. Level-triggered, each wake-up wakes the next lane until one
    of them has accepted, and they all fight for the interpreter's lock (measured, 2 × 8 lanes: 49 µs a connection
    against 39). The price: one edge may stand for several connections, so whoever takes one looks whether there is
    more and passes it on.
    """

    def __init__(self, posts: dict[int, T], *, lanes: int) -> None:
        """``lanes`` wait here; where it is an event loop that does, none."""
        self.is_shared = lanes > 1
        self.tells_once = lanes != 1
        self.batch: collections.deque[int] = collections.deque()
        """What a lane that is alone in its process was told of and has not come to."""
        self._most = 1 if self.tells_once else BATCH
        self._posts = posts
        self._again: collections.deque[T] = collections.deque()
        self._kept: dict[int, int] = {}
        self._turned_from: set[int] = set()

    def open(self) -> None:
        """Make the descriptors and watch the listeners. Source: epoll_ctl(2)."""
        self._epoll = self._parking = select.epoll()
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._again_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.listen_to(self._posts)
        self._watch_own()
        self._parted = select.epoll()  # made now, since parked connections may have used up the descriptors by then

    def wait(self, seconds: float) -> T | int | None:
        """What woke this lane within ``seconds``: a post to look at, the descriptor of a parked connection, or
        ``WOKEN``. None: nothing did."""
        return self.told(self.ready(seconds))

    def ready(self, seconds: float) -> int:
        """The descriptor that woke this lane within ``seconds``, for ``told`` to say what it is; ``NOTHING``."""
        try:
            if self.batch:
                return self.batch.popleft()
        except IndexError:
            pass  # the watcher was quicker
        told = self._epoll.poll(seconds, self._most)
        if not told:
            return NOTHING
        if len(told) > 1:
            self.batch.extend([fd for fd, _ in told[1:]])
        return told[0][0]

    def told(self, fd: int) -> T | int | None:
        """As ``wait``, of what ``ready`` gave."""
        if fd == NOTHING:
            return None
        return self._posts.get(fd) or (self._passed_on() if fd == self._again_fd else fd)

    def listen_to(self, posts: Iterable[int]) -> None:
        """Wake lanes for these posts. What is there already tells at once."""
        edge = select.EPOLLET if self.is_shared else 0
        self._turned_from.difference_update(posts)
        for fd in posts:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE | edge)

    def _watch_own(self) -> None:
        self._epoll.register(self._again_fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(self.stop_fd, select.EPOLLIN)  # level-triggered and never read: it wakes every lane

    def renew(self, parked: Mapping[int, bool]) -> None:
        """Begin with another epoll, as the only lane: nothing else ends a watch whose descriptor was closed by a thread
        of its handler while the file lives on in another process. ``parked`` as in ``part``.

        Raises:
            OSError: there is no descriptor for another.
        """
        self._epoll = self._parking = select.epoll()  # the old one ends with the watcher's call, if it is in one
        self._kept.clear()
        self._watch_own()
        self.listen_again(self._posts.keys() - self._turned_from)
        self._watch_all(parked)

    def listen_again(self, posts: Iterable[int]) -> None:
        """Wake lanes for what they had turned from."""
        for fd in posts:
            with contextlib.suppress(OSError):  # closed meanwhile, by a handler or since the lanes are to leave
                self.listen_to([fd])

    def turn_from(self, posts: Iterable[int]) -> None:
        """Wake no lane for these posts: what comes there wakes other workers."""
        self._turned_from.update(posts)
        for fd in posts:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # turned from already, or closed by a handler

    def fileno(self) -> int:
        """For an event loop to wait on: readable when ``wait``, or after ``part`` ``wait_parked``, has something. Never
        with posts that are listeners: within another epoll nothing is exclusive."""
        return self._parking.fileno()

    def watch(self, fd: int, *, has_room: bool = False) -> None:
        """Tell of what arrives on a parked connection, and if asked of room for what is to be sent. What is there
        already tells at once.

        Raises:
            OSError: the system's memory for watches is used up.
        """
        self._kept.pop(fd, None)
        self._enter(fd, _PARKED | (select.EPOLLOUT if has_room else 0))

    def watch_kept(self, fd: int, *, is_regular: bool = False) -> None:
        """Tell of what arrives, or is there already, between two requests. It is known on while a lane has it: a call
        each time that it is parked, and none when a lane takes it up. ``is_regular``: not even the first, where a lane
        is alone in its process: nobody looks while it has it, and what is unread when it looks again tells anew.

        Raises:
            OSError: as ``watch`` does.
        """
        events = _ONCE if self.tells_once or not is_regular else _LEVEL
        if fd in self._kept:
            try:
                self._parking.modify(fd, events)
            except FileNotFoundError:
                pass  # the lanes have parted since, or another file has the number
            else:
                self._kept[fd] = events
                return
        self._enter(fd, events)
        self._kept[fd] = events

    def tell_again(self, fd: int) -> None:
        """Of what is there, or arrives from now on, on one that lanes have not parted from.

        Raises:
            OSError: It is none of those.
        """
        self._epoll.modify(fd, _ONCE)

    def watch_on(self, fd: int) -> None:
        """What was told of one that is kept was not all: from now on it is told of as any other. What is there already
        tells anew."""
        if self._kept.pop(fd, None) is None:
            return
        try:
            self._parking.modify(fd, _PARKED)
        except FileNotFoundError:
            self._watch_parted(fd)
        except OSError:
            pass  # closed already, by a thread of its handler

    def heed(self, fd: int) -> None:
        """A lane has what was told of. If that was once, it tells of nothing more, and may be known on."""
        if self._kept.get(fd) != _ONCE:
            self.unwatch(fd)

    def forget(self, fd: int) -> None:
        """As ``unwatch``, for what a lane had; its number nobody else has."""
        if fd in self._kept:
            self.unwatch(fd)

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed: one whose file lives on in another process would go on telling."""
        self._kept.pop(fd, None)
        try:
            self._parking.unregister(fd)
        except OSError:
            pass  # closed already, by a thread of its handler

    def _enter(self, fd: int, events: int) -> None:
        try:
            self._parking.register(fd, events)
        except FileExistsError:  # taken for another, which had its number and was closed by a thread of its handler
            self._parking.modify(fd, events)

    def part(self, parked: Mapping[int, bool]) -> None:
        """For lanes that are to leave: from now on parked connections, and what is passed on, alone wake them, in
        ``wait_parked``. ``parked`` says which are watched for room, too."""
        self.turn_from(self._posts)
        self._parted.register(self._again_fd, select.EPOLLIN | select.EPOLLET)
        for fd in parked:
            self.unwatch(fd)
        self._parking = self._parted
        self._watch_all(parked)

    def _watch_all(self, parked: Mapping[int, bool]) -> None:
        for fd, has_room in parked.items():
            try:
                self.watch(fd, has_room=has_room)
            except OSError:
                pass  # closed already, by a thread of its handler: it is found at its limit

    def _watch_parted(self, fd: int) -> None:
        """What a lane had while the others parted, if that is why it is not known; else its number is another's."""
        if self._parking is self._parted:
            with contextlib.suppress(OSError):  # closed already, likewise
                self._parking.register(fd, _PARKED)

    def wait_parked(self, seconds: float) -> T | int | None:
        """As ``wait``, after ``part``."""
        ready = self._parking.poll(seconds, 1)
        if not ready:
            return None
        return self._passed_on() if ready[0][0] == self._again_fd else ready[0][0]

    def overdue(self, most: int) -> list[int]:
        """For the watcher while every lane is busy: take up to ``most`` of what is ready. Connections that wait on a
        listener are left to the lanes."""
        fds = []
        told = self._from_batch(most)
        for fd in (*told, *(fd for fd, _ in self._epoll.poll(0, most - len(told) or 1))):
            if fd in self._posts:
                self.look_again(self._posts[fd])
            elif fd == self._again_fd:
                os.eventfd_write(fd, 1)
            elif fd != self.stop_fd:
                fds.append(fd)
        return fds

    def _from_batch(self, most: int) -> list[int]:
        taken: list[int] = []
        try:
            while len(taken) < most:
                taken.append(self.batch.popleft())
        except IndexError:
            pass  # that was all
        return taken

    def look_again(self, post: T) -> None:
        """Wake one more idle lane for ``post``: the edge that told of what is still queued there is used up."""
        if post not in self._again:  # one entry will do: whoever takes it looks for more
            self._again.append(post)
        os.eventfd_write(self._again_fd, 1)

    def pass_on(self, post: T) -> None:
        """Leave ``post`` to the next lane that has time."""
        self._again.append(post)
        os.eventfd_write(self._again_fd, 1)

    def take_back(self) -> list[T]:
        """All that was passed on and that no lane has taken."""
        taken = []
        try:
            while True:
                taken.append(self._again.popleft())
        except IndexError:
            return taken

    @property
    def has_passed_on(self) -> bool:
        """Whether something waits for a lane that has time."""
        return bool(self._again)

    def look_at_all(self) -> None:
        """Wake a lane for each listener that is ready though all may be waiting.

        A sibling worker that was killed, or ran out of descriptors, between its wake-up and its accept took the
        wake-up with it.
        """
        poller = self.poller(self._posts)
        for fd, _ in poller.poll(0):
            self.look_again(self._posts[fd])

    @staticmethod
    def poller(fds: Iterable[int]) -> select.poll:
        """A poll object over ``fds``. It is one thread's: two cannot use it at once."""
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        return poller

    def stop(self) -> None:
        """Wake every lane, and every later ``wait`` at once."""
        os.eventfd_write(self.stop_fd, 1)

    def close(self) -> None:
        """Give the descriptors back, once no lane is left to use them."""
        self._epoll.close()
        self._parted.close()
        os.close(self.stop_fd)
        os.close(self._again_fd)

    def _passed_on(self) -> T | int:
        try:
            post = self._again.popleft()
        except IndexError:
            return WOKEN
        if self._again:
            os.eventfd_write(self._again_fd, 1)  # two calls while no lane waited made one edge
        return post
