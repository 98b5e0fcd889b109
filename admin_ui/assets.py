"""The pages' files: read once, under an address that changes with what is in them."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from admin_ui.answers import NO_STORE
from mooring.errors import NotFoundError

__all__ = ["Assets"]

_ROOT = Path(__file__).with_name("static")
_SERVED = frozenset({".js", ".css", ".svg", ".woff2"})
_PACKED_ALREADY = frozenset({".woff2"})
_LEAST_PACKED = 600  # bytes; less is not worth packing
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
_PLACE = "{{static}}"
_TITLE = "{{page}}"
_SESSION = "{{session}}"


@dataclass(frozen=True, slots=True)
class _Asset:
    content_type: str
    body: bytes
    packed: bytes | None


class Assets:
    """The files of ``static/``.

    Args:
        page: which page the document is: ``admin`` or ``playground``.
    """

    def __init__(self, page: str) -> None:
        files = {
            path.relative_to(_ROOT).as_posix(): path.read_bytes()
            for path in sorted(_ROOT.rglob("*"))
            if path.suffix in _SERVED
        }
        total = hashlib.sha256()
        for name, body in files.items():
            total.update(f"{name}\0{len(body)}\0".encode() + body)
        self.version = total.hexdigest()[:12]
        document = (_ROOT / "index.html").read_text()
        self._document = document.replace(_PLACE, f"/static/{self.version}").replace(_TITLE, page)
        self._files: Mapping[str, _Asset] = {name: _asset(name, body) for name, body in files.items()}

    def document(self, request: Request, session: Mapping[str, str] | None) -> Response:
        """The one HTML document, which is asked for anew each time.

        Args:
            session: what the page is told of who is logged in, and so need not ask for; None if nobody is.
        """
        told = "" if session is None else html.escape(json.dumps(session))
        asset = _asset("index.html", self._document.replace(_SESSION, told).encode())
        return _answer(asset, request, NO_STORE)

    def file(self, request: Request, version: str, name: str) -> Response:
        """A file, which a browser may keep for ever.

        Raises:
            NotFoundError: there is no such file in this version.
        """
        asset = self._files.get(name)
        if asset is None or version != self.version:
            raise NotFoundError("There is no such file: load the page again.")
        return _answer(asset, request, _FOR_EVER)


def _asset(name: str, body: bytes) -> _Asset:
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "text/plain"
    is_worth_packing = len(body) >= _LEAST_PACKED and Path(name).suffix not in _PACKED_ALREADY
    packed = gzip.compress(body, 9, mtime=0) if is_worth_packing else None
    return _Asset(f"{kind}; charset=utf-8" if kind.startswith("text/") else kind, body, packed)


def _answer(asset: _Asset, request: Request, headers: Mapping[str, str]) -> Response:
    named = {**headers, "content-type": asset.content_type}
    if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, headers={**named, "content-encoding": "gzip"})
    return Response(asset.body, headers=named)
