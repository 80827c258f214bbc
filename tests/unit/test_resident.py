"""The worker that is this very process: what its pipe carries is told, whenever it comes."""

import select
import threading

from poolserver.process import Report
from poolserver.resident import Resident


class CrewToOrder:
    """Stands for a crew: it is ready at once, and over when told."""

    lost_listener = ""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def start(self) -> None:
        pass

    def watch_beside(self, on_over) -> threading.Thread:
        def run() -> None:
            self.is_over.wait(20)
            on_over()

        watcher = threading.Thread(target=run)
        watcher.start()
        return watcher

    def close(self) -> None:
        pass


def is_waking(resident: Resident) -> bool:
    poller = select.poll()
    poller.register(resident.descriptors()[0], select.POLLIN)
    return bool(poller.poll(0))


def test_end_that_comes_between_the_masters_questions_is_told() -> None:
    """After it has asked whether the crew is over, and before it has asked what else there is: it wakes up again."""
    resident, crew = Resident(), CrewToOrder()
    resident.start(crew)  # type: ignore[arg-type]
    assert not resident.has_exited()
    crew.is_over.set()
    resident._watcher.join(20)
    assert resident.reports() == [Report.READY]
    assert is_waking(resident)
    assert resident.has_exited()
    assert resident.status == 0
    resident.close()
