"""Connections that a worker has sent to another: each is counted at a place of its own until that one counts it."""

import time

from poolserver.claims import Claims

TRANSIT_PATIENCE = 60.0
"""Seconds for which a connection that was sent to another worker is counted, unless that one counts it before: who
died with it in its hands says nothing."""


class Transit:
    """What one worker has sent. Hold the claims' lock for every call."""

    def __init__(self, claims: Claims, worker: int) -> None:
        self._claims = claims
        self._worker = worker
        self._sent: dict[int, float] = {}

    def begin(self, claim: int) -> int:
        """Count one that is about to be sent; its place, -1 when too many are on their way."""
        place = self._claims.send(self._worker, claim)
        if place >= 0:
            self._sent[place] = time.monotonic()
        return place

    def fail(self, place: int) -> None:
        """It was not sent."""
        self._claims.received(place)

    def settle(self, now: float) -> None:
        """Count no longer what has arrived, or must be lost."""
        for place, at in self._sent.items():
            if now - at > TRANSIT_PATIENCE:
                self._claims.received(place)
        self._sent = {place: self._sent[place] for place in self._claims.settle(self._worker, self._sent)}
