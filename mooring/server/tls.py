"""TLS of the doors."""

from __future__ import annotations

import ssl

import grpc

from mooring.config import TlsFiles
from mooring.errors import ConfigurationError

__all__ = ["grpc_credentials", "tls_context"]


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


def grpc_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of a gRPC server for the same.

    Raises:
        ConfigurationError: as ``tls_context``.
    """
    tls_context(files)  # gRPC itself does not say which file is wrong
    client_ca = files.client_ca
    return grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.certificate.read_bytes())],
        root_certificates=None if client_ca is None else client_ca.read_bytes(),
        require_client_auth=client_ca is not None,
    )
