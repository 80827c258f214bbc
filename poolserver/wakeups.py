"""How the idle lanes of one process are woken: the epoll that they share, and what makes it ready.

Made after the fork, since an epoll made before it is shared by both sides. Owned by the crew.
"""

import collections
import os
import select
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Wakeups(Generic[T]):
    """One epoll for all lanes, each calling ``wait``: listeners (``EPOLLEXCLUSIVE``), "look again", and the stop.

    Shared by several lanes, listeners are edge-triggered. Level-triggered, each wake-up wakes the next lane until one
    of them has accepted, and they all fight for the interpreter's lock (measured, 2 × 8 lanes: 49 µs a connection
    against 39). The price: one edge may stand for several connections, so whoever takes one looks whether there is
    more and passes it on.
    """

    def __init__(self, posts: dict[int, T], *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._posts = posts
        self._again: collections.deque[T] = collections.deque()

    def open(self) -> None:
        """Make the descriptors and watch the listeners. Source: epoll_ctl(2)."""
        self._epoll = select.epoll()
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._again_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for fd in self._posts:
            edge = select.EPOLLET if self.is_shared else 0
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE | edge)
        self._epoll.register(self._again_fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(self.stop_fd, select.EPOLLIN)  # level-triggered and never read: it wakes every lane
        self._wait = self._epoll.poll

    def wait(self, seconds: float) -> tuple[bool, T | None]:
        """Whether anything woke this lane within ``seconds``, and the post to look at, if it was for one."""
        ready = self._wait(seconds, 1)
        if not ready:
            return False, None
        return True, self._posts.get(ready[0][0]) or self._passed_on()

    def look_again(self, post: T) -> None:
        """Wake one more idle lane for ``post``: the edge that told of what is still queued there is used up."""
        if post not in self._again:  # one entry will do: whoever takes it looks for more
            self._again.append(post)
        os.eventfd_write(self._again_fd, 1)

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
        os.close(self.stop_fd)
        os.close(self._again_fd)

    def _passed_on(self) -> T | None:
        try:
            post = self._again.popleft()
        except IndexError:
            return None  # a sibling was quicker, or this is the stop
        if self._again:
            os.eventfd_write(self._again_fd, 1)  # two calls while no lane waited made one edge
        return post
