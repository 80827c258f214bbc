"""The coroutines that each event loop runs, unmodified: what is compared is the server around them."""

import asyncio


async def one_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One line in, the same line out, then the server closes."""
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def every_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The keep-alive form: lines are answered until the client closes."""
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()
