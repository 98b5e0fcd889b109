"""Log-ins of the web UI: sessions, one-time links, and how often a wrong key may be tried.

The admin key stays in this process. A browser gets an opaque cookie, and a token that only a page of ours can read:
a write needs both, so that a page of another site, which could make the browser send the cookie, changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mooring.errors import AuthenticationError, PermissionDeniedError, RateLimitError

__all__ = ["Attempts", "OneTimeLinks", "Session", "Sessions", "check_token"]

Clock = Callable[[], float]

_MAX_SESSIONS = 256
_MAX_LINKS = 32
_LINK_S = 300.0
_WINDOW_S = 60.0
_MAX_PER_CLIENT = 8
_MAX_IN_ALL = 64


@dataclass(slots=True)
class Session:
    """One browser that is logged in.

    Attributes:
        admin_key: the key that it logged in with.
        token: what a write has to show beside the cookie.
        used_at_s: when it was last used, on the clock of its ``Sessions``.
    """

    admin_key: str = field(repr=False)
    token: str = field(repr=False)
    used_at_s: float


class Sessions:
    """Sessions by the hash of their cookie. The one that was asked for longest ago goes if there are too many.

    Args:
        clock: seconds that only grow.
        idle_s: seconds without use after which a session ends.
    """

    def __init__(self, clock: Clock, idle_s: float) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._by_hash: OrderedDict[bytes, Session] = OrderedDict()

    def open(self, admin_key: str) -> tuple[str, Session]:
        """A new session, and its cookie. A server has one admin key, so sessions with another one end."""
        for other in {each.admin_key for each in self._by_hash.values()} - {admin_key}:
            self.drop_key(other)
        cookie = secrets.token_urlsafe(32)
        session = Session(admin_key, secrets.token_urlsafe(32), self._clock())
        self._by_hash[_hash(cookie)] = session
        while len(self._by_hash) > _MAX_SESSIONS:
            self._by_hash.popitem(last=False)
        return cookie, session

    def get(self, cookie: str | None) -> Session:
        """The session of a cookie. It does not count as used by that: an open page asks for things by itself.

        Raises:
            AuthenticationError: there is none, or it has ended.
        """
        session = self._by_hash.get(_hash(cookie)) if cookie is not None else None
        if cookie is None or session is None:
            raise AuthenticationError("Log in first.")
        if not self.is_open(session):
            self.close(cookie)
            raise AuthenticationError("The session has ended after some time without use: log in again.")
        self._by_hash.move_to_end(_hash(cookie))
        return session

    def is_open(self, session: Session) -> bool:
        """Whether a session still holds."""
        is_known = any(each is session for each in self._by_hash.values())
        return is_known and self._clock() - session.used_at_s < self._idle_s

    def note_use(self, session: Session) -> None:
        """Counts a session as used now."""
        session.used_at_s = self._clock()

    def close(self, cookie: str) -> None:
        """Ends a session; one that has ended already is no error."""
        self._by_hash.pop(_hash(cookie), None)

    def drop_key(self, admin_key: str) -> None:
        """Ends all sessions with a key that the server takes no longer."""
        for each in [name for name, session in self._by_hash.items() if session.admin_key == admin_key]:
            del self._by_hash[each]


def check_token(session: Session, token: str | None) -> None:
    """Raises PermissionDeniedError unless the token is the session's."""
    if token is None or not hmac.compare_digest(session.token.encode(), token.encode()):
        raise PermissionDeniedError("A change needs the token of its session in the header x-mooring-token.")


class OneTimeLinks:
    """Secrets that each stand for a key once, for five minutes.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_hash: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def make(self, admin_key: str) -> str:
        """A secret that stands for a key."""
        secret = secrets.token_urlsafe(24)
        self._by_hash[_hash(secret)] = (admin_key, self._clock() + _LINK_S)
        while len(self._by_hash) > _MAX_LINKS:
            self._by_hash.popitem(last=False)
        return secret

    def take(self, secret: str) -> str:
        """The key that a secret stands for, which no longer stands for it then.

        Raises:
            AuthenticationError: it stands for none.
        """
        admin_key, until_s = self._by_hash.pop(_hash(secret), ("", 0.0))
        if self._clock() >= until_s:
            raise AuthenticationError("The link has been used, or is too old: `mooring ui` makes a new one.")
        return admin_key


class Attempts:
    """Log-ins of the last minute that failed, or of which it is not known yet, by client and in all.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counted: deque[tuple[float, str]] = deque()

    @contextmanager
    def one_of(self, client: str) -> Iterator[None]:
        """A log-in of a client. It counts from its beginning, so that many at a time are limited too, and from its
        end only if it raises ``AuthenticationError``.

        Raises:
            RateLimitError: the client, or all together, failed too often.
        """
        self._check(client)
        counted = (self._clock(), client)
        self._counted.append(counted)
        try:
            yield
        except AuthenticationError:
            raise
        except BaseException:
            self._forget(counted)
            raise
        self._forget(counted)

    def _check(self, client: str) -> None:
        now_s = self._clock()
        while self._counted and now_s - self._counted[0][0] >= _WINDOW_S:
            self._counted.popleft()
        mine = [at_s for at_s, who in self._counted if who == client]
        if len(mine) >= _MAX_PER_CLIENT or len(self._counted) >= _MAX_IN_ALL:
            oldest_s = mine[0] if len(mine) >= _MAX_PER_CLIENT else self._counted[0][0]
            wait_s = _WINDOW_S - (now_s - oldest_s)
            raise RateLimitError(
                f"Too many wrong keys: try again in {max(1, round(wait_s))} s.", retry_after_s=wait_s
            )

    def _forget(self, counted: tuple[float, str]) -> None:
        with contextlib.suppress(ValueError):  # it took longer than a minute
            self._counted.remove(counted)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
