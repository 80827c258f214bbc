"""The chat example, under plain asyncio: it needs nothing of poolserver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from poolserver.examples.chat import MAX_NAME_BYTES, ROOM, chat

PATIENCE = 10


class Member:
    """A client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: str) -> None:
        self.writer.write(f"{line}\n".encode())

    async def hear(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), PATIENCE)).decode().rstrip("\n")


@asynccontextmanager
async def room() -> AsyncIterator[tuple[str, int]]:
    """The address of a room that is open until the block ends."""
    server = await asyncio.start_server(chat, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def entered(address: tuple[str, int], name: str, heard: str) -> Member:
    member = Member(*await asyncio.open_connection(*address))
    assert await member.reader.readexactly(len(b"your name? ")) == b"your name? "
    member.say(name)
    assert await member.hear() == heard
    return member


async def conversation() -> None:
    async with room() as address:
        ann = await entered(address, "ann", "* ann is here; we are 1")
        long = "bob" * MAX_NAME_BYTES
        bob = await entered(address, long, f"* {long[:MAX_NAME_BYTES]} is here; we are 2")
        await ann.hear()
        ann.say("hello \x1b[2J")
        assert await bob.hear() == "ann: hello ?[2J"
        bob.say("x" * 100_000)
        assert await bob.hear() == "* that is too long"
        assert (await ann.hear()).endswith(" has left")
        ann.say("")
        for member in (ann, bob):
            await member.reader.read()
            member.writer.close()
            await member.writer.wait_closed()
        assert not ROOM.members


def test_what_one_says_all_others_read() -> None:
    """Bounded, and with nothing that moves a cursor; who is too long must leave."""
    asyncio.run(asyncio.wait_for(conversation(), 3 * PATIENCE))
