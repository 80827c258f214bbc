"""Certificates for the tests of TLS, made by the openssl command; nothing of theirs is kept."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

MANY = 150
"""Certificates in the long chain: about 85 kB, more than a small send buffer holds, less than clients take."""


@dataclass(frozen=True)
class Pki:
    """Files in PEM form. ``server`` and ``client`` are signed by ``ca``; ``stranger`` by itself."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        """``pki.server_key`` is the path of server-key.pem."""
        path = self.folder / f"{name.replace('_', '-')}.pem"
        if not path.exists():
            raise AttributeError(name)
        return str(path)

    @classmethod
    def make(cls, folder: Path) -> "Pki":
        """Make all of them, of elliptic curves: it takes a quarter of a second."""
        _self_signed(folder, "ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # clients of 3.13 want it
        for name, extension in (("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"), ("client", "")):
            _signed(folder, name, f"authorityKeyIdentifier=keyid\n{extension}\n")
        _self_signed(folder, "stranger")
        _openssl("ec", "-in", folder / "server-key.pem", "-aes128", "-passout", "pass:secret",
                 "-out", folder / "encrypted-key.pem")  # fmt: skip
        pieces = [(folder / f"{name}.pem").read_text() for name in ("server", *["stranger"] * MANY)]
        (folder / "long-chain.pem").write_text("".join(pieces))
        pair = (folder / "server-key.pem").read_text() + pieces[0]
        (folder / "both.pem").write_text(pair)
        (folder / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        return cls(folder)

    def server_options(self, **more: object) -> list[str]:
        """Options of ``poolserver run`` for this server's certificate."""
        keys = {"certificate": self.server, "key": self.server_key} | more
        return [word for name, value in keys.items() for word in ("--set", f"tls.{name}={value}")]


def _self_signed(folder: Path, name: str, *more: str) -> None:
    files = ("-keyout", folder / f"{name}-key.pem", "-out", folder / f"{name}.pem")
    _openssl("req", "-x509", *_NEW, "-days", "2", "-subj", f"/CN={name}", *more, *files)


def _signed(folder: Path, name: str, extension: str) -> None:
    request = folder / f"{name}.csr"
    _openssl("req", *_NEW, "-subj", f"/CN={name}", "-keyout", folder / f"{name}-key.pem", "-out", request)
    extensions = folder / f"{name}.ext"
    extensions.write_text(extension)
    signer = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca-key.pem", "-CAcreateserial")
    files = ("-in", request, "-out", folder / f"{name}.pem", "-extfile", extensions)
    _openssl("x509", "-req", "-days", "2", *signer, *files)


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
