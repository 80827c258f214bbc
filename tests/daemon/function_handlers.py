"""Plain functions that the daemon tests serve."""

MAX_LINE_BYTES = 1000


def echo_line(sock, address):
    """One line back."""
    with sock.makefile("rb") as lines:
        sock.sendall(lines.readline(MAX_LINE_BYTES))


def echo_line_of(client_address, sock):
    """The same with the Cookbook's order of arguments."""
    echo_line(sock, client_address)


def fail(sock, address):
    raise RuntimeError("ordered to fail")
