r"""A key-value store that speaks enough of the Redis protocol for ``redis-benchmark`` and ``redis-cli``.

Serve it, and talk to it::

    poolserver run poolserver.examples.keyvalue:KeyValueHandler -b tcp://127.0.0.1:20000 -w 1
    printf 'SET colour blue\r\nGET colour\r\nQUIT\r\n' | socat - tcp:127.0.0.1:20000
    redis-benchmark -p 20000 -t ping_inline

The store lives in the memory of one worker process, behind a lock for its lanes: with ``-w 1`` (or ``-w 0``)
every client sees the same keys, with more workers each has keys of its own, and a reload forgets them all. A
real service keeps such state outside.

Commands are PING, SET, GET, DEL, CONFIG GET and QUIT, as a line of words or as a RESP array of bulk strings.

Source: redis.io, "Redis serialization protocol specification".
"""

import socketserver
import threading

from poolserver import ParkingMixIn

MAX_LINE_BYTES = 64 * 1024
"""Longest line and longest single word, as Redis limits inline requests."""

MAX_WORDS = 16
"""Most words in a RESP array; with the limit above, one command costs a lane at most 1 MiB."""

MAX_COMMANDS = 1_000_000
"""Commands answered on one connection before it is closed: a benchmark's worth, but not for ever."""

MAX_ENTRIES = 4096
"""Keys in the store; each has at most 128 KiB with its value, so a worker holds at most 512 MiB."""

SETTINGS = {b"save": b"", b"appendonly": b"no"}
"""What CONFIG GET answers. redis-benchmark asks for both when it starts, and warns when it is not told."""


class ProtocolError(Exception):
    """The client sent what no command looks like; where the next one begins cannot be known."""


class Store:
    """A dictionary with a lock and a bound, shared by the lanes of one worker process."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self.max_entries = max_entries
        self.entries: dict[bytes, bytes] = {}
        self.lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        with self.lock:
            return self.entries.get(key)

    def set(self, key: bytes, value: bytes) -> bool:
        """Keep ``value`` under ``key``; False when the store is full and ``key`` is new."""
        with self.lock:
            if key not in self.entries and len(self.entries) >= self.max_entries:
                return False
            self.entries[key] = value
            return True

    def delete(self, keys: list[bytes]) -> int:
        """Forget ``keys``; how many of them there were."""
        with self.lock:
            return sum(self.entries.pop(key, None) is not None for key in keys)


class KeyValueHandler(ParkingMixIn, socketserver.StreamRequestHandler):
    """One conversation: commands in, replies out, until QUIT, the client's end or a malformed command.

    Between two commands the connection holds no lane: thousands of clients that are mostly silent need but a few.
    """

    wait_for = "line"
    store = Store()
    commands = 0

    def handle_one_request(self) -> None:
        """Answer one command. Pipelined ones wait in ``rfile``'s buffer, and have their turn."""
        self.commands += 1
        self.close_connection = self.commands >= MAX_COMMANDS
        try:
            words = self.read_command()
        except EOFError:
            self.close_connection = True
            return
        except ProtocolError as problem:
            self.close_connection = True
            self.wfile.write(b"-ERR Protocol error: %s\r\n" % str(problem).encode())
            return
        if words:  # an empty line or array is no command and gets no reply
            self.wfile.write(self.answer(words))
            self.close_connection |= words[0].upper() == b"QUIT"

    def answer(self, words: list[bytes]) -> bytes:
        """The reply to one command."""
        match [words[0].upper(), *words[1:]]:
            case [b"PING"]:
                reply = b"+PONG\r\n"
            case [b"PING", text]:
                reply = bulk(text)
            case [b"SET", key, value]:
                reply = b"+OK\r\n" if self.store.set(key, value) else b"-OOM the store is full\r\n"
            case [b"GET", key]:
                reply = bulk(self.store.get(key))
            case [b"DEL", *keys] if keys:
                reply = b":%d\r\n" % self.store.delete(keys)
            case [b"CONFIG", verb, name] if verb.upper() == b"GET":
                reply = setting(name.lower())
            case [b"QUIT"]:
                reply = b"+OK\r\n"
            case [b"PING" | b"SET" | b"GET" | b"DEL" | b"CONFIG" | b"QUIT", *_]:
                reply = b"-ERR wrong arguments for this command\r\n"
            case _:
                reply = b"-ERR unknown command\r\n"
        return reply

    def read_command(self) -> list[bytes]:
        """The next command's words.

        Raises:
            EOFError: the client has closed its side, between commands or within one.
            ProtocolError: what came is no command, or longer than the limits.
        """
        line = self.read_line()
        if not line.startswith(b"*"):
            return line.split()
        return [self.read_bulk() for _ in range(length(line, b"*", MAX_WORDS))]

    def read_bulk(self) -> bytes:
        """One bulk string of a RESP array: ``$LENGTH``, then that many bytes and CR LF."""
        size = length(self.read_line(), b"$", MAX_LINE_BYTES)
        data = self.rfile.read(size + 2)
        if len(data) < size + 2:
            raise EOFError
        if not data.endswith(b"\r\n"):
            raise ProtocolError("bulk string does not end where it said")
        return data[:-2]

    def read_line(self) -> bytes:
        """One line without its end, never reading past the limit for it."""
        line = self.rfile.readline(MAX_LINE_BYTES + 1)
        if line.endswith(b"\n"):
            return line.rstrip(b"\r\n")
        if len(line) > MAX_LINE_BYTES:
            raise ProtocolError("too big inline request")
        raise EOFError


def length(line: bytes, kind: bytes, most: int) -> int:
    """The number in ``*3`` or ``$5``; looked at before it is converted, since a client chose its digits."""
    digits = line[1:]
    if line[:1] != kind or not digits.isdigit() or len(digits) > 8 or int(digits) > most:
        raise ProtocolError(f"expected '{kind.decode()}' and a length of at most {most}")
    return int(digits)


def bulk(value: bytes | None) -> bytes:
    """A RESP bulk string; None is the null one."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def setting(name: bytes) -> bytes:
    """The reply to CONFIG GET: an array of the name and its value, empty for a name that is not known."""
    if name not in SETTINGS:
        return b"*0\r\n"
    return b"*2\r\n" + bulk(name) + bulk(SETTINGS[name])
