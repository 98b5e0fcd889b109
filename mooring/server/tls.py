"""TLS of the doors."""

from __future__ import annotations

import ssl

from mooring.config import TlsFiles
from mooring.errors import ConfigurationError

__all__ = ["tls_context"]


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """The server's side of TLS connections, 1.2 and later. Clients must have certificates of the client CA if
    there is one.

    Raises:
        ConfigurationError: a file cannot be read, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"TLS files {files.certificate} and {files.key} cannot be used: {error}"
        ) from error
    return context
