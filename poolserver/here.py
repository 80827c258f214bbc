"""Which lane the calling thread is, for a server object whose hooks are called in it."""

import threading

from poolserver.lane import Lane


class _NoLane:
    """What a thread of the user's has, that calls a server object's hooks as a lane would."""

    def extend(self, seconds: float) -> None:
        """It has no deadline."""

    def on_closing(self, request: object) -> None:
        """Nobody's connection is being closed."""


NO_LANE = _NoLane()


class Here(threading.local):
    """Its ``lane`` is the calling thread's."""

    lane: Lane | _NoLane = NO_LANE

    @property
    def is_lane(self) -> bool:
        """Whether the calling thread is a lane."""
        return self.lane is not NO_LANE

    def extend(self, seconds: float) -> None:
        """Move the handler deadline of the connection that the calling lane has."""
        self.lane.extend(seconds)
