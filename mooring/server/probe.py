"""``python -m mooring.server.probe DATA_DIR``, the health check of a container: ends with 0 if the server of the data
folder is ready, wherever it listens and with TLS too. It loads little, since it runs every few seconds."""

from __future__ import annotations

import ssl
import sys
import urllib.request
from pathlib import Path

from mooring.server.data_dir import published_addresses

__all__ = ["main"]

_TIMEOUT_S = 2.0


def main(data_dir: Path) -> str | None:
    """Why the server is not ready; None if it is. One that wants certificates of its clients hangs up on this one,
    which has none, and is taken to be ready if it does."""
    addresses = published_addresses(data_dir)
    if addresses is None:
        return f"no server uses the data folder {data_dir}"
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # it sends nothing secret, so whoever answers may be anybody
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    url = addresses["http"].replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    try:
        with opener.open(f"{url}/health/ready", timeout=_TIMEOUT_S):
            return None
    except (ssl.SSLError, ConnectionResetError) as error:
        return None if url.startswith("https:") else str(error)
    except OSError as error:  # a refusal by HTTP is one too
        return str(error)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
