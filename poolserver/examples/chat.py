r"""A chat room on asyncio: what one says, all others read.

Serve it, and talk to it from two terminals; an empty line, or the end of the input, leaves::

    poolserver run poolserver.examples.chat:chat -b tcp://127.0.0.1:20000 -w 1 -t 500
    ncat 127.0.0.1 20000

The room is in the memory of one worker process: with ``-w 1`` everybody meets; with more workers each has a room of its
own. ``timeouts.idle`` sends away who neither says nor hears anything; at a stop everybody is told, and leaves.
"""

import asyncio
from typing import Any

MAX_NAME_BYTES = 20
"""Longest name; the rest is left out."""

MAX_LINE_BYTES = 1000
"""Longest line that is passed on; the rest is left out. asyncio's reader itself takes no line above 64 KiB."""

MAX_UNREAD_BYTES = 64 * 1024
"""What may wait for a member that does not read: it is left out of the conversation until it does."""

DRAIN_LOOK = 0.5
"""Seconds between looks whether this worker is to leave, while anybody is here."""


class Room:
    """Who is here, by the streams to write to; and who closes when it is time."""

    def __init__(self) -> None:
        self.members: dict[asyncio.StreamWriter, str] = {}
        self.keeper: asyncio.Task[None] | None = None

    def enter(self, writer: asyncio.StreamWriter, name: str) -> None:
        """One more; with the first comes the keeper."""
        self.members[writer] = name
        self.tell(f"* {name} is here; we are {len(self.members)}")
        server = getattr(writer, "server", None)  # not there under a plain asyncio.start_server
        if self.keeper is None and server is not None:
            self.keeper = asyncio.get_running_loop().create_task(self.keep(server))

    def leave(self, writer: asyncio.StreamWriter) -> None:
        """One less."""
        self.tell(f"* {self.members.pop(writer)} has left")

    def tell(self, line: str, besides: asyncio.StreamWriter | None = None) -> None:
        """Have all members read it, but those that are behind."""
        for member in self.members:
            if member is not besides and member.transport.get_write_buffer_size() < MAX_UNREAD_BYTES:
                member.write(f"{line}\n".encode())

    async def keep(self, server: Any) -> None:
        """Close the room once its worker is to leave: each member's conversation then ends by itself."""
        while self.members and not server.draining:
            await asyncio.sleep(DRAIN_LOOK)
        self.tell("* this server is about to leave; goodbye")
        for member in self.members:
            member.close()
        self.keeper = None


ROOM = Room()


async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One member, from the name to the goodbye."""
    writer.write(b"your name? ")
    try:
        if name := await next_line(reader, writer, MAX_NAME_BYTES):
            await converse(reader, writer, name)
    finally:
        writer.close()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """All that this member says."""
    ROOM.enter(writer, name)
    try:
        while line := await next_line(reader, writer, MAX_LINE_BYTES):
            ROOM.tell(f"{name}: {line}", besides=writer)
            await writer.drain()
    finally:
        ROOM.leave(writer)


async def next_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> str:
    """What this member says next; nothing when it is over."""
    try:
        line = await reader.readline()
    except ValueError:
        writer.write(b"* that is too long\n")
        return ""
    text = line[:most].decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in text)
