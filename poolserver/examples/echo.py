r"""Echo: whatever comes in goes back, over TCP, TLS, UDP and Unix sockets.

Serve it, and talk to it::

    poolserver run poolserver.examples.echo:EchoHandler -b tcp://127.0.0.1:20000 -b udp://127.0.0.1:20000
    printf 'hello\n' | socat - tcp:127.0.0.1:20000
    printf 'hello\n' | socat - udp:127.0.0.1:20000

Keep the datagram form off public addresses: two servers that answer every packet answer each other for ever
as soon as somebody forges one packet from one to the other.
"""

import socketserver

CHUNK_BYTES = 16 * 1024
"""Most that one read takes from a stream, so all the memory a connection can cost."""


class EchoHandler(socketserver.BaseRequestHandler):
    """Sends back what it is sent: a stream chunk by chunk until its end, a datagram as one datagram."""

    def handle(self) -> None:
        """Serve one connection or one datagram; socketserver gives the latter as ``(data, socket)``."""
        if isinstance(self.request, tuple):
            self.answer_datagram()
        else:
            self.echo_stream()

    def echo_stream(self) -> None:
        """Echo until the client closes its side. The client ends the conversation, or ``[timeouts]`` does."""
        while chunk := self.request.recv(CHUNK_BYTES):
            self.request.sendall(chunk)

    def answer_datagram(self) -> None:
        """Answer a datagram, unless it is empty or its sender has no address.

        A Unix datagram socket that was never bound is reported as None or '' (unix(7)): nobody to answer.
        """
        data, sock = self.request
        if not data or not self.client_address:
            return
        try:
            sock.sendto(data, self.client_address)
        except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
            pass  # the peer's queue is full, or a Unix peer has gone: datagrams may be lost
