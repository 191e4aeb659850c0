"""A joined room: its sequence, its events for the program, and the reading of its history where messages stay out."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from gatecast.client import wire
from gatecast.client.buffer import Buffer
from gatecast.client.errors import ConnectionClosed, Disconnected, RequestFailed
from gatecast.client.events import Recovered, RoomEvent
from gatecast.client.options import Options
from gatecast.client.presence import PresenceChanges
from gatecast.client.sequence import Ask, Delivery, RoomSequence
from gatecast.client.session import Session
from gatecast.client.signal import Gate, Signal

SupportsHistory = Callable[[str, int], Awaitable[wire.Ok]]
"""Requests the history of a room after an offset, on whichever connection there is."""
NO_HISTORY: Final = "bad_request"
"""The code for a position that the server does not have, and for the history of a room without one."""
NOT_A_MEMBER: Final = "not_a_member"


class JoinedRoom:
    """A room that the program is in. It outlives connections; `sessions` are those on which it has been joined.

    A room to which the program only publishes does not listen: it has no events, and no position.
    """

    def __init__(
        self,
        name: str,
        sequence: RoomSequence,
        options: Options,
        *,
        signal: Signal,
        gate: Gate,
        history: SupportsHistory,
        tasks: asyncio.TaskGroup,
        listens: bool,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.sequence = sequence
        self.sessions: set[Session] = set()
        self.first_join: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the room has been joined for the first time, or that has failed."""
        self.is_left = False
        self._listens = listens
        self.failures = 0
        self.retry_at = 0.0
        """When a join that was rejected for now may be repeated, on the loop's clock."""
        self.buffer: Buffer[RoomEvent] = Buffer(options.max_buffered, gate)
        self._presence = PresenceChanges(name)
        self._options = options
        self._signal = signal
        self._gate = gate
        self._history = history
        self._tasks = tasks
        self._chance = chance
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for: int | None = None
        self._reading: asyncio.Task[None] | None = None

    def receive(self, frame: wire.Messages) -> None:
        if not self._listens:
            return
        messages = [wire.to_message(each, self.name) for each in frame.messages]
        self._deliver(self.sequence.receive(messages, frame.skipped, room_left=not self.buffer.is_over))

    def receive_presence(self, frame: wire.PresenceFrame) -> None:
        if not self._listens:
            return
        change = self._presence.receive(frame.joined, frame.departed, frame.at_ms)
        if change:
            self._add([Recovered(room=self.name, recovered=False) if self.buffer.is_over else change])

    def joined(self, session: Session, asked: Ask, result: wire.RoomResult) -> None:
        overlapping = any(each is not session and each.ended is None for each in self.sessions)
        self.sessions.add(session)
        self.failures, self.retry_at = 0, 0.0
        if self._listens:
            self._deliver(self.sequence.joined(asked, result.page(self.name), overlapping=overlapping))
        if not self.first_join.done():
            self.first_join.set_result(None)

    def fail(self, error: Exception) -> None:
        """The room cannot be joined any more, or the client has stopped: its reader gets the error."""
        self._end_first_join(error)
        self.stop(error)

    def stop(self, error: Exception | None = None) -> None:
        self.is_left = True
        self._end_first_join(RequestFailed(NOT_A_MEMBER, "the room was left before it was joined"))
        self.buffer.close(error)
        self._cancel_timer()
        if self._reading:
            self._reading.cancel()

    def _end_first_join(self, error: Exception) -> None:
        if not self.first_join.done():
            self.first_join.set_exception(error)
            self.first_join.exception()  # the caller may have been cancelled

    def _deliver(self, events: list[Delivery]) -> None:
        self._add(events)
        match None if self.is_left else self.sequence.wants():
            case "now":
                self._cancel_timer()
                self._read_history()
            case "later" if self._timer_for != self.sequence.position:
                self._cancel_timer()
                self._timer_for = self.sequence.position
                delay = self._options.gap_delay(self._chance())
                self._timer = asyncio.get_running_loop().call_later(delay, self._read_history)
            case None:
                self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._timer_for = None

    def _read_history(self) -> None:
        if not self._reading and not self.is_left:
            self._reading = self._tasks.create_task(self._read_until_complete())

    async def _read_until_complete(self) -> None:
        """Reads the history after the position until nothing is known to be out. A timer continues where it must."""
        try:
            await self._read_pages()
        except ConnectionClosed:
            pass  # the client has stopped, and the room's reader has the reason
        finally:
            self._reading = None
            self._timer_for = None
        self._deliver([])

    async def _read_pages(self) -> None:
        failures = 0
        while True:
            await self._gate.until(lambda: not self.buffer.is_full)
            since = self.sequence.position
            if since is None or self.sequence.wants() is None:
                return
            try:
                page = (await self._history(self.name, since)).page(self.name)
            except (RequestFailed, Disconnected) as error:
                code = error.code if isinstance(error, RequestFailed) else ""
                if code == NO_HISTORY:
                    self.sequence.rejected()
                if code in {NO_HISTORY, NOT_A_MEMBER}:
                    self.join_again()
                    return
                after = error.retry_after_seconds if isinstance(error, RequestFailed) else None
                await asyncio.sleep(after or self._options.backoff(failures, self._chance()))
                failures += 1
                continue
            if page is None:
                self.join_again()
                return
            self._add(self.sequence.filled(since, page))
            if self.sequence.wants() != "now":
                return

    def join_again(self) -> None:
        """The membership, or the history, is not what it was: the response to the next join shows what the room is."""
        self.sessions.clear()
        self._signal.notify()

    def _add(self, events: Iterable[RoomEvent]) -> None:
        """Two reports that messages may be missing, with nothing between them, become one."""
        for event in () if self.is_left else events:
            latest = self.buffer.latest
            if not (isinstance(event, Recovered) and isinstance(latest, Recovered)) or latest.recovered:
                self.buffer.append(event)
            elif not event.recovered:
                after, before = latest.after, event.before
                self.buffer.replace_latest(Recovered(room=self.name, recovered=False, after=after, before=before))
