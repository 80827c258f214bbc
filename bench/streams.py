"""The coroutines that each event loop runs, unmodified: what is compared is the server around them."""

import asyncio


async def ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line in, `+PONG` out, then the server closes: `bench.handlers:Ping`."""
    if await reader.readline():
        writer.write(b"+PONG\r\n")
        await writer.drain()
    writer.close()


async def pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The keep-alive form: lines are answered until the client closes."""
    while await reader.readline():
        writer.write(b"+PONG\r\n")
        await writer.drain()
    writer.close()
