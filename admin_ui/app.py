"""The web UI's process: its routes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import orjson
from fastapi import FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from admin_ui.answers import NO_STORE, error_answer
from admin_ui.assets import Assets
from admin_ui.auth import Attempts, OneTimeLinks, Session, Sessions, check_token
from admin_ui.config import UiConfig
from admin_ui.guard import UiGuard, comes_from_socket
from admin_ui.live import LiveFeed
from admin_ui.proxy import ADMIN_CALLS, VISITOR_CALLS, forward
from admin_ui.tabs import run_tab
from admin_ui.upstream import KeyedServer, check_admin_key
from mooring.errors import (
    AuthenticationError,
    InvalidRequestError,
    ModelUnavailableError,
    MooringError,
    NotFoundError,
)

__all__ = ["AdminUi"]

_MAX_LOGIN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class AdminUi:
    """One UI: the application, and what whoever starts it needs of it.

    Attributes:
        app: the ASGI application.
        links: one-time links into it.
    """

    app: UiGuard
    links: OneTimeLinks
    live: LiveFeed

    @classmethod
    def make(
        cls, config: UiConfig, client: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic
    ) -> AdminUi:
        """Args:
        client: the way to the server.
        clock: seconds that only grow.
        """
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        links = OneTimeLinks(clock)
        sessions = Sessions(clock, config.session_idle_s)
        live = LiveFeed(client, sessions.drop_key)
        if config.playground:
            _add_visitor_routes(app, client, KeyedServer(client, clock) if config.opens_server else None)
            _add_files(app, Assets("playground"), lambda request: None)
        else:
            doors = _Doors(config, client, sessions, links, Attempts(clock), live)
            _add_session_routes(app, doors)
            _add_files(app, Assets("admin"), doors.told_of)

        @app.exception_handler(MooringError)
        async def answer_error(_: Request, error: MooringError) -> Response:
            return error_answer(error)

        return cls(UiGuard(app, config), links, live)


@dataclass(frozen=True, slots=True)
class _Doors:
    """Parts that the routes for operators share."""

    config: UiConfig
    client: httpx.AsyncClient
    sessions: Sessions
    links: OneTimeLinks
    attempts: Attempts
    live: LiveFeed

    @property
    def cookie_name(self) -> str:
        """Browsers share cookies between the ports of a host, and several UIs may run on one."""
        name = f"mooring-ui-{self.config.port}"
        return f"__Host-{name}" if self.config.is_secret else name

    def session(self, connection: HTTPConnection) -> Session:
        return self.sessions.get(connection.cookies.get(self.cookie_name))

    def opened(self, admin_key: str) -> Response:
        """The answer to a log-in."""
        cookie, session = self.sessions.open(admin_key)
        answer = JSONResponse(self.described(session), headers=NO_STORE)
        answer.set_cookie(
            self.cookie_name, cookie, path="/", httponly=True, samesite="strict", secure=self.config.is_secret
        )
        return answer

    def described(self, session: Session) -> Mapping[str, str]:
        return {"token": session.token, "server": self.config.server}

    def told_of(self, request: Request) -> Mapping[str, str] | None:
        """The session of a page's browser, as the page is told of it; None if there is none."""
        try:
            return self.described(self.session(request))
        except AuthenticationError:
            return None


def _add_session_routes(app: FastAPI, doors: _Doors) -> None:
    @app.post("/login")
    async def log_in(request: Request) -> Response:
        """Take the admin key, or the secret of a one-time link."""
        given = await _json(request)
        with doors.attempts.one_of(_client_of(request, doors.config)):
            match given:
                case {"link": str(secret)}:
                    admin_key = doors.links.take(secret)
                    with contextlib.suppress(ModelUnavailableError):  # a server that is away may come up
                        await check_admin_key(doors.client, admin_key)
                case {"key": str(admin_key)}:
                    await check_admin_key(doors.client, admin_key)
                case _:
                    raise InvalidRequestError("A log-in has a key.", param="key")
        return doors.opened(admin_key)

    @app.post("/links")
    async def make_link(request: Request) -> Response:
        """Give this process's own user a one-time link, over the Unix socket."""
        if not comes_from_socket(request.scope):
            raise NotFoundError("There is nothing here.")
        given = await _json(request)
        match given:
            case {"key": str(admin_key)}:
                await check_admin_key(doors.client, admin_key)
            case _:
                raise InvalidRequestError("A link is made for a key.", param="key")
        link = f"{doors.config.url}/#link={doors.links.make(admin_key)}"
        return JSONResponse({"link": link}, headers=NO_STORE)

    @app.get("/session")
    async def show_session(request: Request) -> Response:
        """Tell a page whether its browser is logged in; a browser notes each refusal in its console."""
        return JSONResponse(doors.told_of(request) or {"token": None}, headers=NO_STORE)

    @app.post("/logout", status_code=204)
    async def log_out(request: Request) -> Response:
        check_token(doors.session(request), request.headers.get("x-mooring-token"))
        doors.sessions.close(request.cookies[doors.cookie_name])
        answer = Response(status_code=204)
        answer.delete_cookie(
            doors.cookie_name, path="/", httponly=True, samesite="strict", secure=doors.config.is_secret
        )
        return answer

    @app.api_route("/api/{path:path}", methods=["GET", "POST", "PATCH", "DELETE"])
    async def call_server(request: Request, path: str) -> Response:
        session = doors.session(request)
        if request.method != "GET":
            check_token(session, request.headers.get("x-mooring-token"))
            doors.sessions.note_use(session)
        answer = await forward(doors.client, request, ADMIN_CALLS, "/admin/v1/", path, session.admin_key)
        if answer.status_code == 401:  # the server has another key now
            doors.sessions.drop_key(session.admin_key)
        return answer

    @app.websocket("/live")
    async def follow(socket: WebSocket) -> None:
        try:
            session = doors.session(socket)
        except MooringError as error:
            await socket.send_denial_response(error_answer(error))
            return
        await run_tab(socket, doors.live, doors.sessions, session)


def _add_visitor_routes(app: FastAPI, client: httpx.AsyncClient, keyed: KeyedServer | None) -> None:
    """Args:
    keyed: the server, where none may ask it without a key.
    """

    @app.api_route("/v1/{path:path}", methods=["GET", "POST"])
    async def call_server(request: Request, path: str) -> Response:
        """Pass a visitor's call on with the visitor's own key."""
        if keyed is not None:
            await keyed.check()
        given = request.headers.get("authorization", "")
        key = given.removeprefix("Bearer ") if given.startswith("Bearer ") else None
        return await forward(client, request, VISITOR_CALLS, "/v1/", path, key)


def _add_files(app: FastAPI, assets: Assets, told_of: Callable[[Request], Mapping[str, str] | None]) -> None:
    """Args:
    told_of: finds what a page is told of its browser's session.
    """

    async def file(request: Request) -> Response:
        return assets.file(request, request.path_params["version"], request.path_params["name"])

    async def icon(request: Request) -> Response:
        return assets.file(request, assets.version, "logo.svg")

    async def document(request: Request) -> Response:
        """Show the document, which finds the page by its address; calls that no route takes are not found."""
        path = request.path_params["path"]
        if path.startswith(("api/", "static/", "v1/")) or path in ("login", "logout", "links", "live"):
            raise NotFoundError("There is nothing here.")
        return assets.document(request, told_of(request))

    # As plain routes: a first load asks for thirty files.
    app.add_route("/static/{version}/{name:path}", file, ["GET"])
    app.add_route("/favicon.ico", icon, ["GET"])
    app.add_route("/{path:path}", document, ["GET"])


def _client_of(request: Request, config: UiConfig) -> str:
    """The address of a browser: behind a proxy, what that has added at the end of what it got."""
    told = ",".join(request.headers.getlist("x-forwarded-for")) if config.behind_proxy else ""
    address = told.rpartition(",")[2].strip()
    return address or (request.client.host if request.client is not None else "")


async def _json(request: Request) -> object:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_LOGIN_BYTES:
            raise InvalidRequestError("That is too long.")
    try:
        value: object = orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError("The body is not JSON.") from error
    return value
