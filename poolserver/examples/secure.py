r"""Echo over TLS, with a word about what was agreed upon and who the client is.

Make a certificate, serve it, and talk to it; an empty line ends the conversation::

    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
        -keyout key.pem -out certificate.pem
    poolserver run poolserver.examples.secure:SecureEchoHandler -b tls://127.0.0.1:20443 \
        --set tls.certificate=certificate.pem --set tls.key=key.pem
    openssl s_client -quiet -connect 127.0.0.1:20443

With ``tls.client_ca`` and ``tls.client_auth`` clients show certificates of their own. The handshake is over before the
handler is called, and held no lane; whoever stalls in it is cut after ``tls.handshake_timeout``.
"""

import socketserver

MAX_LINE_BYTES = 8 * 1024
"""Longest line that is read, with its end; the rest of a longer one counts as the next."""

MAX_LINES = 10_000
"""Lines that one connection is answered."""


class SecureEchoHandler(socketserver.StreamRequestHandler):
    """``self.request`` is an ``ssl.SSLSocket``."""

    def handle(self) -> None:
        """Say who is who, then send each line back until an empty one, or until this worker is to leave."""
        cipher, version, _bits = self.request.cipher()
        self.wfile.write(f"{version} {cipher}, hello {self.name_of_client()}\n".encode())
        for _ in range(MAX_LINES):
            line = self.rfile.readline(MAX_LINE_BYTES)
            if not line.strip() or getattr(self.server, "draining", False):
                break
            self.wfile.write(line)

    def name_of_client(self) -> str:
        """The common name in its certificate, which was verified if there is one."""
        certificate = self.request.getpeercert() or {}
        names = dict(pair for part in certificate.get("subject", ()) for pair in part)
        return str(names.get("commonName", "stranger"))
