"""Trust in one certificate: that of a server whose own file of it is at hand."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["trust_only"]

_PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def trust_only(certificate: Path) -> ssl.SSLContext:
    """Trusts this certificate, whatever name it bears, and no other: not those of its issuer either, so of a chain
    only its first certificate counts.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        first = _PEM_CERTIFICATE.search(certificate.read_text())
        context.load_verify_locations(cadata=first[0] if first else "")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the server's certificate {certificate} cannot be read: {error}") from error
    return context
