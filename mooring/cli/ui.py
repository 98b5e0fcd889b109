"""``mooring ui``: the web UI in a browser."""

from __future__ import annotations

import asyncio
import logging
import webbrowser
from pathlib import Path
from typing import Annotated

import httpx
import typer

from mooring.cli.connection import Connection, ServerAddress
from mooring.config import has_screen, load_settings
from mooring.errors import ConfigurationError, MooringError, error_from_code
from mooring.loopback import is_loopback
from mooring.server.ui_process import UI_SOCKET

_ASK_S = 15.0


def ui(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on, 8080 if not given; 0 takes a free one.", min=0, max=65535),
    ] = None,
    playground: Annotated[
        bool,
        typer.Option(
            "--playground", help="The page for visitors, who have an API key and not the admin key."
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Answer under this name too (repeatable).", metavar="NAME"),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file: TLS to browsers.", dir_okay=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate's private key.", dir_okay=False)
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A reverse proxy with TLS passes all requests on.")
    ] = False,
    idle_minutes: Annotated[
        float, typer.Option(help="Minutes without use after which a log-in ends.", min=1)
    ] = 60.0,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
) -> None:
    """Open the web UI: the one that the server has, or else one that runs until Ctrl-C. docs/admin-ui.md has more."""
    connection: Connection = context.obj
    address = connection.address()
    if not playground and port is None and not address.is_named:
        link = _link_of_server(connection)
        if link is not None:
            _show(link, browser)
            return
    _serve(
        connection,
        address,
        browser,
        host=host,
        port=8080 if port is None else port,
        playground=playground,
        allowed_hosts=tuple(name.lower() for name in allowed_host or ()),
        tls_certificate=None if tls_certificate is None else str(tls_certificate),
        tls_key=None if tls_key is None else str(tls_key),
        behind_proxy=behind_proxy,
        session_idle_s=60 * idle_minutes,
    )


def _link_of_server(connection: Connection) -> str | None:
    """A one-time link into the UI of the data folder's server; None if it has none.

    Raises:
        MooringError: it does not take the key.
    """
    socket = load_settings({"data_dir": connection.data_dir}).data_dir.resolve() / UI_SOCKET
    if not socket.is_socket():
        return None
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(transport=transport, timeout=_ASK_S, trust_env=False) as client:
            answer = client.post("http://ui/links", json={"key": connection.admin_key()})
    except httpx.TransportError:  # of a process that was killed
        return None
    body = answer.json()
    if answer.is_error:
        raise error_from_code(str(body["error"]["code"]), str(body["error"]["message"]))
    return str(body["link"])


def _serve(connection: Connection, address: ServerAddress, browser: bool, **options: object) -> None:
    from admin_ui.app import AdminUi  # takes a while to import
    from admin_ui.config import UiConfig
    from admin_ui.serving import serve

    certificate, shown = address.certificate, connection.client_certificate
    config = UiConfig(
        server=address.url,
        server_certificate=None if certificate is None else str(certificate),
        client_certificate=None if shown is None else str(shown),
        **options,  # type: ignore[arg-type]  # as the options above are declared
    )
    admin_key = _key_if_there(connection) if not config.playground and is_loopback(config.host) else None

    def show(ui: AdminUi, url: str) -> None:
        _show(url if admin_key is None else f"{url}/#link={ui.links.make(admin_key)}", browser)
        typer.echo("Ctrl-C ends it.")

    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(config, show))


def _key_if_there(connection: Connection) -> str | None:
    """The admin key, if it is at hand; else it is typed into the page."""
    try:
        return connection.admin_key()
    except ConfigurationError:
        return None


def _show(link: str, browser: bool) -> None:
    typer.echo(f"The web UI is on {link}")
    if browser and has_screen():
        try:
            webbrowser.open(link)
        except (OSError, webbrowser.Error) as error:
            raise MooringError(f"no browser could be opened ({error}): open the link yourself") from error
