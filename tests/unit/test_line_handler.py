"""The log's own handler: what is written while the file changes under it."""

import logging
import threading
from pathlib import Path

from poolserver.log import LineHandler, formatter


def test_lines_written_while_the_file_is_reopened_are_all_there(tmp_path: Path) -> None:
    """Each once, in one file or the next; no writer meets a descriptor that was closed under it."""
    path = tmp_path / "log"
    handler = LineHandler(str(path))
    handler.setFormatter(logging.Formatter("%(message)s"))
    lines = 2_000

    def write(writer: int) -> None:
        for number in range(lines):
            handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d.%d", (writer, number), None))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in writers:
        each.start()
    turns = 0
    while not turns or any(each.is_alive() for each in writers):
        path.rename(tmp_path / f"log.{turns}")
        handler.reopen()
        turns += 1
    for each in writers:
        each.join()
    handler.give_back()
    told = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(told) == len(set(told)) == 4 * lines


def test_json_says_what_could_not_be_written_before(tmp_path: Path) -> None:
    """As a field: the line stays an object."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", (), None)
    record.lost, record.role = 3, "master"
    assert '"lost": 3' in formatter("json").format(record)
    assert formatter("text").format(record).endswith(": text (3 earlier lines lost)")
