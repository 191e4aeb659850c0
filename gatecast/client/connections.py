"""Opens one connection after the other: the first, the next before the last is cut, and again after a failure.

The first connection is opened within `first_connection_seconds`, later ones are retried for ever, with full jitter. A
renewal opens the next connection with a new token, waits until all rooms have been joined on it, and only then ends the
one before. The client stops for good where retrying cannot help: `ConnectionClosed`.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gatecast.client.errors import ConnectionClosed, ConnectionFailed, ConnectionRejected, WrongDialect
from gatecast.client.events import Connected, Connecting, State
from gatecast.client.joining import Joining
from gatecast.client.options import Options
from gatecast.client.session import Handler, Session
from gatecast.client.signal import Gate, Signal
from gatecast.client.transport import Opener

TokenSource = str | None | Callable[[], Awaitable[str]]
"""A token, or an asynchronous function that returns one and is called for each connection."""
MAX_REJECTIONS: Final = 5
"""How often in a row the server may reject a connection, until the client stops."""
_log: Final = logging.getLogger("gatecast.client")


class Connections:
    """`current` is the open connection that requests use; None while there is none."""

    def __init__(
        self,
        url: str,
        token: TokenSource,
        options: Options,
        *,
        opener: Opener,
        joining: Joining,
        signal: Signal,
        gate: Gate,
        handle: Handler,
        on_end: Callable[[Session], None],
        on_state: Callable[[State], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._token = token
        self._options = options
        self._opener = opener
        self._joining = joining
        self._signal = signal
        self._gate = gate
        self._handle = handle
        self._on_end = on_end
        self._on_state = on_state
        self._chance = chance
        self.current: Session | None = None
        self._sessions: set[Session] = set()
        self._failures = 0
        self._rejections = 0

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Runs until it is cancelled. Raises ConnectionClosed, or at the start ConnectionFailed."""
        session = await self._open_first(tasks)
        while True:
            self._use(session)
            session = await self._renewed(session, tasks) or await self._reconnected(session, tasks)

    async def _open_first(self, tasks: asyncio.TaskGroup) -> Session:
        give_up_at = self._now() + self._options.first_connection_seconds
        while True:
            try:
                return await self._open(tasks)
            except ConnectionFailed as error:
                delay = self._options.backoff(self._failures, self._chance())
                if _is_rejection(error) or self._now() + delay >= give_up_at:
                    raise
                self._failed(error)
            await asyncio.sleep(delay)

    async def _reconnected(self, ended: Session, tasks: asyncio.TaskGroup) -> Session:
        if ended.final is not None:
            raise ConnectionClosed(ended.final, "the server has closed the connection for good")
        while True:
            await asyncio.sleep(self._options.backoff(self._failures, self._chance()))
            try:
                return await self._open(tasks)
            except ConnectionFailed as error:
                self._failed(error)
                if self._is_final(error):
                    raise ConnectionClosed("rejected", str(error)) from error

    async def _renewed(self, session: Session, tasks: asyncio.TaskGroup) -> Session | None:
        """The next connection, once it can replace this one; None if this one has ended and there is none."""
        failures = 0
        while True:
            await self._until_due(session)
            if session.has_ended():
                return None
            try:
                successor = await self._open(tasks)
            except ConnectionFailed as error:
                _log.info("renewal.failed reason=%s", error)
            else:
                if await self._may_replace(successor, session):
                    tasks.create_task(self._retire(session))
                    return successor
            failures += 1
            session.renew_at = self._now() + self._options.backoff(failures, self._chance())

    async def _until_due(self, session: Session) -> None:
        """Returns when the connection is to be renewed, or has ended."""
        while not session.has_ended() and (delay := session.renew_at - self._now()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed(session, session.renew_at)

    async def _changed(self, session: Session, renew_at: float) -> None:
        await self._signal.until(lambda: session.has_ended() or session.renew_at != renew_at)

    async def _may_replace(self, successor: Session, session: Session) -> bool:
        """Waits until the rooms are joined on the new connection; without the old one there is no need to wait."""
        await self._signal.until(lambda: successor.settled or successor.has_ended() or session.has_ended())
        return session.has_ended() or successor.final is not None or not successor.has_ended()

    async def _retire(self, session: Session) -> None:
        """What is on its way to the old connection may still arrive, and is delivered once."""
        await asyncio.sleep(min(self._options.overlap_seconds, session.cut_at - self._now()))
        session.end("renewed")

    async def _open(self, tasks: asyncio.TaskGroup) -> Session:
        token = await self._new_token()
        try:
            async with asyncio.timeout(self._options.open_seconds):
                transport = await self._opener(self._url, token)
        except TimeoutError as error:
            raise ConnectionFailed("no connection in time") from error
        session = Session(
            transport,
            self._options,
            signal=self._signal,
            gate=self._gate,
            handle=self._handle,
            on_end=self._ended,
            chance=self._chance,
        )
        self._sessions.add(session)
        tasks.create_task(session.run())
        tasks.create_task(self._joining.keep_joined(session))
        return session

    async def _new_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            async with asyncio.timeout(self._options.open_seconds):
                return await self._token()
        except Exception as error:
            raise ConnectionFailed(f"no token: {type(error).__name__}") from error

    def end(self) -> None:
        """Ends all connections, because the client has stopped."""
        for session in list(self._sessions):
            session.end("closed by the client")

    def _use(self, session: Session) -> None:
        self.current = None if session.has_ended() else session
        if self.current:
            self._rejections = 0
            self._on_state(Connected())
        self._signal.notify()

    def _ended(self, session: Session) -> None:
        """Called when a session ends, for any reason."""
        self._sessions.discard(session)
        self._on_end(session)
        if session is not self.current:
            return
        self.current = None
        was_stable = self._now() - session.opened_at >= self._options.stable_seconds
        self._failures = 0 if was_stable else self._failures + 1
        if session.final is None:
            self._on_state(Connecting(self._failures, session.ended or ""))

    def _failed(self, error: ConnectionFailed) -> None:
        self._failures += 1
        self._rejections = self._rejections + 1 if _is_rejection(error) else 0
        self._on_state(Connecting(self._failures, str(error)))

    def _is_final(self, error: ConnectionFailed) -> bool:
        has_one_token = not callable(self._token)
        is_about_token = isinstance(error, ConnectionRejected) and error.status in {401, 403}
        return (
            isinstance(error, WrongDialect) or (is_about_token and has_one_token) or self._rejections >= MAX_REJECTIONS
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _is_rejection(error: ConnectionFailed) -> bool:
    """Whether repeating the attempt with the same token, or at the same address, is of no use."""
    if isinstance(error, ConnectionRejected):
        return 400 <= error.status < 500 and error.status not in {408, 429}  # noqa: PLR2004 - the client's own fault
    return isinstance(error, WrongDialect)
