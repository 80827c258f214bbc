"""What the daemon tests have asyncio serve."""

import asyncio
import os
import signal
import ssl
import sys
import time

MAX_SECONDS = 60.0


async def line(reader, writer):
    """Sends one line back, and ends. What storms ask."""
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def polite(reader, writer):
    """Says goodbye at the end of its input, whether or not anybody is there still."""
    writer.write(await reader.readline())
    await reader.read()
    await asyncio.sleep(0)
    writer.write(b"goodbye\n")


async def orders(reader, writer):
    """Does what each line orders, until the client's end, and answers each with a line."""
    while text := (await reader.readline()).decode().strip():
        order, _, argument = text.partition(" ")
        writer.write(f"{await obey(order, argument, reader, writer)}\n".encode())
        await writer.drain()


async def obey(order, argument, reader, writer):  # noqa: PLR0911, PLR0912 - a line for each order
    match order:
        case "pid":
            return os.getpid()
        case "loop":
            return type(asyncio.get_running_loop()).__module__.partition(".")[0]
        case "draining":
            return writer.server.draining
        case "peer":
            return writer.get_extra_info("peername")[0]
        case "extend":
            writer.server.extend(float(argument))
            return "extended"
        case "sleep":
            await asyncio.sleep(min(float(argument), MAX_SECONDS))
            return "slept"
        case "block":
            time.sleep(min(float(argument), MAX_SECONDS))
            return "unblocked"
        case "goodbye":
            try:
                await reader.readline()
            except asyncio.CancelledError:
                writer.write(b"goodbye\n")
                raise
            return "unharmed"
        case "deaf":
            return await deaf()
        case "raise":
            raise RuntimeError("ordered to raise")
        case "exit":
            sys.exit("ordered to exit")
        case "exactly":
            return await reader.readexactly(int(argument))
        case "flood":
            writer.write(b"x" * int(argument))
            return ""
        case "ticks":
            return await ticks(int(argument), reader, writer)
        case "stop":
            writer.server.shutdown()
            return "stopping"
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return f"unknown order {order!r}"


async def ticks(count, reader, writer):
    """Writes so often while it waits for the client, who has nothing to say."""

    async def tick():
        for _ in range(count):
            await asyncio.sleep(0.25)
            writer.write(b"tick\n")

    ticking = asyncio.create_task(tick())
    await reader.readline()
    await ticking
    return "ticked"


async def deaf():
    """Does not hear that it is cancelled."""
    while True:
        try:
            await asyncio.sleep(MAX_SECONDS)
        except asyncio.CancelledError:
            continue


async def curt(reader, writer):
    """Answers the first line, whatever else its client has to say."""
    writer.write(await reader.readline())


async def steady(reader, writer):
    """Says its pid, then answers each line; the last one, once its worker is to leave, with "bye " before it."""
    writer.write(f"{os.getpid()}\n".encode())
    while text := await reader.readline():
        is_last = writer.server.draining
        writer.write(b"bye " + text if is_last else text)
        await writer.drain()
        if is_last:
            return


def own_context():
    """With the certificate and key that $CERTIFICATE names."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(os.environ["CERTIFICATE"])
    return made


async def starts_tls(reader, writer):
    """Puts TLS on after the first line, and then says who asks, a line for each, until the last."""
    await reader.readline()
    writer.write(b"go\n")
    await writer.drain()
    await writer.start_tls(own_context())
    text = b""
    while text != b"last\n":
        text = await reader.readline()
        is_tls = writer.get_extra_info("ssl_object") is not None
        writer.write(f"{writer.get_extra_info('peername')[0]} {is_tls}\n".encode())


class StartsTLS(asyncio.Protocol):
    """The same in callbacks."""

    def connection_made(self, transport):
        self.transport = transport
        self.is_tls = False

    def data_received(self, data):
        if self.is_tls:
            is_tls = self.transport.get_extra_info("ssl_object") is not None
            self.transport.write(f"{self.transport.get_extra_info('peername')[0]} {is_tls}\n".encode())
            if data == b"last\n":
                self.transport.close()
        else:
            self.is_tls = True
            self.transport.write(b"go\n")
            self.task = asyncio.get_running_loop().create_task(self.start())

    async def start(self):
        loop = asyncio.get_running_loop()
        self.transport = await loop.start_tls(self.transport, self, own_context(), server_side=True)


class Lines(asyncio.Protocol):
    """The same in callbacks, for a few orders; what it does not know it sends back."""

    def connection_made(self, transport):
        self.transport = transport
        self.rest = b""

    def data_received(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        for text in lines:
            self.obey(text.decode())

    def obey(self, text):
        match text:
            case "raise":
                raise RuntimeError("ordered to raise")
            case "exit":
                sys.exit("ordered to exit")
            case "draining":
                text = str(self.server.draining)
            case "peer":
                text = self.transport.get_extra_info("peername")[0]
            case "pid":
                text = str(os.getpid())
            case "bye":
                self.transport.close()
                return
        self.transport.write(f"{text}\n".encode())


class Refusing(Lines):
    """Raises as soon as it can."""

    def connection_made(self, transport):
        raise RuntimeError("not with me")


class Buffered(asyncio.BufferedProtocol):
    """An echo that reads into a buffer of its own."""

    def __init__(self):
        self.buffer = bytearray(16)

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.transport.write(bytes(self.buffer[:nbytes]))


class Datagrams(asyncio.DatagramProtocol):
    """An echo; "later" is answered later, in a task."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        match data:
            case b"raise":
                raise RuntimeError("ordered to raise")
            case b"later":
                asyncio.get_running_loop().create_task(self.answer_later(addr))
            case b"nothing":
                self.transport.sendto(b"", addr)
            case _:
                self.transport.sendto(data, addr)

    async def answer_later(self, addr):
        await asyncio.sleep(0.05)  # the work that was ordered
        self.transport.sendto(b"later", addr)
