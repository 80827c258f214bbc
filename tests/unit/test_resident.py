"""The worker that is this very process: what its pipe carries is told, whenever it comes."""

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


def test_end_that_comes_with_the_other_reports_is_told() -> None:
    """After the master has asked whether it is over, and before it has read what else there is."""
    resident, crew = Resident(), CrewToOrder()
    resident.start(crew)  # type: ignore[arg-type]
    assert not resident.has_exited()
    crew.is_over.set()
    resident._watcher.join(20)
    assert resident.reports() == [Report.READY]
    assert resident.has_exited()
    assert resident.status == 0
    resident.close()
