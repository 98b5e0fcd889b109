"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.programs import need_program

__all__ = ["Certificates", "make_certificates"]


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, and the certificates and keys that it gave to a server and to a client."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Makes an authority and what it signs; the server is 127.0.0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    _openssl(*new, "-subj", "/CN=test authority", "-keyout", str(authority_key), "-out", str(authority))
    signed = [
        "-CA",
        str(authority),
        "-CAkey",
        str(authority_key),
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]
    made = []
    for name, extra in (("server", ["-addext", "subjectAltName=IP:127.0.0.1"]), ("client", [])):
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl(*new, *signed, *extra, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate))
        made += [certificate, key]
    return Certificates(authority, *made)


def _openssl(*arguments: str) -> None:
    program = need_program("openssl", "openssl")
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60)
