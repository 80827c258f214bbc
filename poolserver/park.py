"""Connections that wait off the lanes: for their first data, line or HTTP head, or for their next request.

A lane that accepts a connection whose client has nothing to say yet parks it and goes back to accepting; whichever
lane the epoll wakes takes it up. Runs in a worker, shared by its lanes and its watcher. Who is cut when, and what goes
to other workers, is ``attendant.py``'s affair.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from poolserver import access
from poolserver.adapter import close_for_good, shut
from poolserver.claims import Claims
from poolserver.parked import READY, Limits, Parked
from poolserver.rows import BETWEEN, EXCESS, NEW, Outcome, Quarters
from poolserver.stages import Stages
from poolserver.station import Terms
from poolserver.transit import Transit
from poolserver.wakeups import Wakeups

SHARES = 64
"""``max_parked`` is shared out among workers by so many parts: how exact it is, and how often each looks."""


class Park(Stages):
    """The parked connections of one worker, in their stages.

    A plain conversation between two exchanges stays entered while a lane has the next one, which nearly always ends in
    the same place (``regulars`` and ``put_back``); everything else is taken out.
    """

    def __init__(self, wakeups: Wakeups[Any], quarters: Quarters, claims: Claims, terms: Terms) -> None:
        super().__init__()
        self.quota = terms.max_parked
        """How many may be parked here: the pool's ``max_parked`` less what the other workers have."""
        self._max_parked, self._share = terms.max_parked, max(1, terms.max_parked // SHARES)
        self._max_head = terms.max_head
        self._has_access_log = terms.has_access_log
        self.row, self.crowd, self._ordinal = quarters.crew, quarters.crowd, quarters.ordinal
        self._lanes = len(quarters.lanes)
        self._wakeups, self._claims, self._lock = wakeups, claims, claims.lock
        self._new = self._between = 0
        self.has_too_many = False  # as of its row, when it last looked
        self._tells_once, self._has_parted = wakeups.tells_once, False
        self._transit = Transit(claims, quarters.ordinal)

    def add(self, parked: Parked, lane: int) -> list[Parked]:
        """Park what ``lane`` has. The claim of the lane becomes the park's.

        Returns whom it cannot or may not keep, for the caller to end: of a full park the ``victim``, or ``parked``.
        """
        with self._lock:
            self._count(parked, lane)
            if not len(self) % self._share:
                self._share_out()
            if len(self) > EXCESS and not len(self) % EXCESS:
                self.has_too_many = self.row.has_too_many(self._claims.rows, self._lanes)
            gone = [self._evict(parked)] if len(self) >= self.quota else []
            if parked.ending is None and not self._watch(parked):
                gone.append(parked)
        return gone

    def lend(self, parked: Parked, lane: int) -> None:
        """Count what ``lane`` has as parked, though another looks after it, who ends it with ``give`` or ``drop``."""
        with self._lock:
            self._count(parked, lane)
            parked.is_lent = True
            self._publish(parked, 1)

    def pass_on(self, parked: Parked, lane: int) -> None:
        """Leave what ``lane`` has to the next lane that has time, behind what is ready now."""
        with self._lock:
            self._count(parked, lane)
        self._wakeups.pass_on(parked)

    def take(self, fd: int) -> Parked | None:
        """What the epoll tells of ``fd``: the connection, if it is ready or over; it is the caller's then.

        An event that meets it in another lane's hands is not lost: that lane looks once more.
        """
        with self._lock:
            self.hold(self.regulars.get(fd))
            parked = self.by_fd.get(fd)
            if parked is None:
                return None
            if parked.is_in_hand:
                parked.has_news = True
                return None
            parked.is_in_hand = True
        while True:
            verdict = parked.look(self._max_head)
            with self._lock:
                if verdict in READY or parked.ending is not None:
                    self._remove(parked, self._wakeups.heed)
                    parked.is_in_hand = parked.has_news = False  # it may come back for its next step
                    return parked
                if not parked.has_news:
                    parked.is_in_hand = False
                    self.restage(parked)
                    self._wakeups.watch_on(fd)
                    return None
                parked.has_news = False

    def put_back(self, parked: Parked) -> bool:
        """What a lane took out of the regulars waits for its next request, on the same plain socket as ever, since
        ``since``. It keeps its place, and is counted, all the time. False: it stays the lane's, to ``release``.

        Written for few steps, and without the lock: they are what keep-alive costs.
        """
        fd, regulars = parked.fd, self.regulars
        if regulars.setdefault(fd, parked) is not parked:  # before anybody is told of it; then it may be another's
            return False  # closed by a thread of its handler: the number is
        if self._tells_once:
            try:
                self._wakeups.tell_again(fd)
            except OSError:
                return not self._retake(parked)
        return not self._has_parted or not self._retake(parked)

    def demote(self, parked: Parked) -> None:
        """What a lane took out of the regulars is parked as any other."""
        with self._lock:
            parked.is_regular = False
            self.by_fd.setdefault(parked.fd, parked)

    def release(self, parked: Parked, lane: int) -> None:
        """What ``lane`` took out of the regulars leaves its place: it is the lane's as after ``give``."""
        with self._lock:
            parked.is_regular = False
            # Of one that is detached, whoever took it has the number, and would go on telling.
            self._wakeups.heed(parked.fd) if parked.request.fileno() == parked.fd else self._forget(parked)
            del self.between[parked]
            self._publish(parked, -1)
            self._give(parked, lane)

    def give(self, parked: Parked, lane: int) -> None:
        """``lane`` goes on with it: the claim becomes the lane's."""
        with self._lock:
            self._give(parked, lane)

    def pass_to_lane(self, parked: Parked) -> None:
        """Have the next free lane finish it."""
        self._wakeups.pass_on(parked)

    def arrived(self, place: int, *, is_lost: bool) -> None:
        """One that another worker sent, and counts at ``place`` until now, is a lane's here, or was lost."""
        self._claims.received(place)
        if is_lost:
            with self._lock:
                self.row.count(Outcome.CUT)

    def send(self, parked: Parked, send: Callable[[Parked, int], bool]) -> bool:
        """Let another worker have it, by ``send``, which is told at which place it is counted meanwhile, and close our
        copy. False: it stays the caller's."""
        self.settle(time.monotonic())
        with self._lock:
            self._forget(parked)
            is_counted = parked.is_counted
            self._uncount(parked)
            place = self._transit.begin(parked.claim) if is_counted else -1
            is_sent = (place >= 0 or not is_counted) and send(parked, place)
            if not is_sent:
                self._transit.fail(place)
                parked.is_counted = is_counted and self._claims.park(self._ordinal, parked.claim)
                return False
        close_for_good(parked.request)
        return True

    def settle(self, now: float) -> None:
        """Count no longer what has arrived elsewhere, or must be lost."""
        with self._lock:
            self._transit.settle(now)

    def drop(self, parked: Parked) -> None:
        """Close one that no handler needs to see, and count its ending, in no lane's name."""
        outcome = parked.ending or Outcome.CUT
        with self._lock:
            self._forget(parked)
            self._uncount(parked)
            self.row.count(outcome)
        if self._has_access_log and not (outcome.is_refusal and parked.conversation is None):
            access.tell(parked.station, parked.address, None, parked.born, access.moved(parked.request), outcome)
        shut(parked.request)  # a child that a handler forked may have a copy
        close_for_good(parked.request)

    def due(self, now: float, limits: Limits) -> list[Parked]:
        """Take out what has waited too long for its client, each with its ending. It is the caller's to finish."""
        with self._lock:
            late = filter(self.is_held, self.late(now, limits))
            due = [each for each in late if self._waits_for_client(each, now)]
            for parked in due:
                parked.ending = parked.ending or limits.ending(parked)
                self._remove(parked)
        return due

    def nearest(self, limits: Limits) -> float:
        """When the first that waits now is due."""
        with self._lock:
            return super().nearest(limits)

    def overdue(self, most: int) -> list[Parked]:
        """Take out up to ``most`` that are ready, or over, while every lane is busy."""
        found = [self.take(fd) for fd in self._wakeups.overdue(most)]
        return [parked for parked in found if parked is not None]

    def take_out(self, may_go: Callable[[Parked], bool] = lambda _parked: True) -> list[Parked]:
        """Take out all that ``may_go``. They are the caller's."""
        with self._lock:
            found = [each for each in self.standing() if self.is_free(each) and may_go(each) and self.is_held(each)]
            for parked in found:
                self._remove(parked)
        return found

    def take_back(self) -> list[Parked]:
        """What was passed to lanes and no lane has taken. It is the caller's."""
        return [post for post in self._wakeups.take_back() if isinstance(post, Parked)]

    def oldest(self) -> float:
        """Since when the oldest waits; infinite when none does."""
        with self._lock:
            return super().oldest()

    def part(self) -> None:
        """The lanes are to leave: let the parked, and nothing else, wake those that stay for them."""
        with self._lock:
            self._has_parted = True  # first: a lane that puts one back later sees it
            self._wakeups.part(self.hold_all())

    def shake_off(self) -> None:
        """The only lane is told again and again of one that is not here."""
        with self._lock:
            if not self._has_parted:
                with contextlib.suppress(OSError):  # out of descriptors: the lane tries again
                    self._wakeups.renew(self.hold_all())

    def share_out(self) -> None:
        """See what the other workers have parked, and what is left for this one."""
        with self._lock:
            self._share_out()
            self.crowd.settle()

    def _share_out(self) -> None:
        self.quota = max(self._share, self._max_parked - self.row.parked_by_others(self._claims.rows))

    def _waits_for_client(self, parked: Parked, now: float) -> bool:
        """One that has sent all that was waited for waits for a lane instead: its time begins anew."""
        if parked.look(self._max_head) in READY:
            parked.since = now
            self.stage(parked).move_to_end(parked)
            return False
        return not self.restage(parked)

    def make_room(self) -> bool:
        """Close one for its descriptor, as when the park is full, but no conversation. False: there is none."""
        with self._lock:
            victim = next((each for each in self.unproven() if not each.is_in_hand), None)
            if victim is not None:
                self._remove(victim)
                victim.ending = Outcome.REFUSED_DESCRIPTORS
        if victim is not None:
            self.drop(victim)
        return victim is not None

    def _evict(self, newcomer: Parked) -> Parked:
        victim = next(filter(self.is_held, iter(self.victim, None)), newcomer)
        victim.ending = Outcome.REFUSED_MAX_PARKED
        if victim is not newcomer:
            self._remove(victim)
        return victim

    def _retake(self, parked: Parked) -> bool:
        """What was just put back is the lane's again, unless somebody was quicker, and be it to leave it there."""
        with self._lock:
            if self.by_fd.get(parked.fd) is parked:
                self._wakeups.watch_on(parked.fd)  # where lanes look now
            return self.regulars.get(parked.fd) is parked and self.regulars.pop(parked.fd, None) is not None

    def _watch(self, parked: Parked) -> bool:
        """Whoever had its number before was closed by a thread of its handler, and, a stray, is found at its limit."""
        parked.fd = parked.request.fileno()
        try:
            # Under the lock: whoever it wakes finds the entry.
            parked.settle()
            if parked.is_between:
                self._wakeups.watch_kept(parked.fd, is_regular=parked.is_regular)
            else:
                self._wakeups.watch(parked.fd, has_room=parked.wants_room)
        except OSError:
            parked.ending = Outcome.REFUSED_MAX_PARKED
            return False
        except ValueError:  # its handler has closed it, and says nothing of an end
            parked.ending = Outcome.SERVED
            return False
        self.hold(self.regulars.get(parked.fd))
        self.by_fd.pop(parked.fd, None)
        self.enter(parked)
        (self.regulars if parked.is_regular else self.by_fd)[parked.fd] = parked
        self._publish(parked, 1)
        return True

    def _remove(self, parked: Parked, unwatch: Callable[[int], None] | None = None) -> None:
        del self.stage(parked)[parked]
        if self.by_fd.get(parked.fd) is parked:  # else it was closed, and the number is another's
            del self.by_fd[parked.fd]
            (unwatch or self._wakeups.unwatch)(parked.fd)
        self._publish(parked, -1)

    def _forget(self, parked: Parked) -> None:
        if parked.fd not in self.by_fd and parked.fd not in self.regulars:
            self._wakeups.forget(parked.fd)

    def _publish(self, parked: Parked, change: int) -> None:
        if parked.is_between:
            self._between += change
            self.row.parked(BETWEEN, self._between)
        else:
            self._new += change
            self.row.parked(NEW, self._new)
        (self.crowd.come if change > 0 else self.crowd.leave)(parked.address)

    def _count(self, parked: Parked, lane: int) -> None:
        if parked.claim:
            self._claims.give_back(lane)
            parked.is_counted = self._claims.park(self._ordinal, parked.claim)

    def _give(self, parked: Parked, lane: int) -> None:
        self._uncount(parked)
        if parked.claim:
            self._claims.hold(lane, parked.claim)

    def _uncount(self, parked: Parked) -> None:
        if parked.is_lent:
            parked.is_lent = False
            self._publish(parked, -1)
        if parked.is_counted:
            parked.is_counted = False
            self._claims.unpark(self._ordinal, parked.claim)
