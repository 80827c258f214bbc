"""Datagram handlers and server classes that the daemon tests serve. They know nothing of poolserver."""

import socketserver
import threading
import time


class Upper(socketserver.DatagramRequestHandler):
    """Answers through the stock ``finish()``."""

    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class Mute(socketserver.DatagramRequestHandler):
    """Has nothing to say, and leaves it to the stock ``finish()`` to say it."""

    def handle(self):
        self.rfile.read()


class MuteInItsOwnWay(Mute):
    """As ``Mute``, with a ``finish()`` of its own."""

    def finish(self):
        super().finish()


class MeansEmpty(socketserver.BaseRequestHandler):
    """Answers with an empty datagram, and means it."""

    def handle(self):
        _, sock = self.request
        sock.sendto(b"", self.client_address)


class Nap(socketserver.BaseRequestHandler):
    """Takes its time over each."""

    def handle(self):
        time.sleep(0.05)  # the work


class Relay(socketserver.BaseRequestHandler):
    """Sends what it is told to another port of the asker's host, and says so to the asker, from a thread of its own."""

    def handle(self):
        data, sock = self.request
        port, _, text = data.partition(b" ")
        sock.sendto(text, (self.client_address[0], int(port)))
        thread = threading.Thread(target=sock.sendto, args=(b"relayed", self.client_address))
        thread.start()
        thread.join()


class SmallServer(socketserver.UDPServer):
    """Reads up to 100 bytes."""

    RequestHandlerClass = Upper
    max_packet_size = 100


class CountingServer(SmallServer):
    """Looks at what the stock ``get_request`` gives it."""

    def get_request(self):
        (data, sock), address = super().get_request()
        return (data + b" %d" % len(data), sock), address


class CuttingServer(socketserver.UDPServer):
    """Reads by itself, ten bytes, and wants no more."""

    RequestHandlerClass = Upper

    def get_request(self):
        data, address = self.socket.recvfrom(10)
        return (data, self.socket), address
