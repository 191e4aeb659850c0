"""When nothing gets through and nothing more is received: is it the endpoint, or are it these very broadcasts? Pure.

Only another broadcast's success can tell, so after a while one of those in hand is put back on the queue, and then
another, to make room for others. The longer it lasts the longer they stay outside, so that an outage takes few of the
receives that the queue allows a message.
"""

from dataclasses import dataclass, field
from typing import Final

from worker.delivery.endpoint import EndpointHealth

_AFTER_SECONDS: Final = 60.0
_EVERY_SECONDS: Final = 5.0
_SHORTEST_SECONDS: Final = 60
_LONGEST_SECONDS: Final = 900


@dataclass(slots=True)
class Standstill:
    """Tell it a few times a second how things are. Times are monotonic seconds."""

    _full_since: float | None = field(init=False, default=None)
    _since: float | None = field(init=False, default=None)
    _put_back_at: float = field(init=False, default=float("-inf"))

    def put_back_seconds(self, now: float, endpoint: EndpointHealth, *, full: bool) -> int | None:
        """For how long one broadcast should be put back now, if one should. `full`: no other can be received."""
        if not full:
            self._full_since = None
            return None
        if self._full_since is None:
            self._full_since = now
        stands_still = endpoint.fails_since(self._full_since, now) > _AFTER_SECONDS
        if not stands_still or now - self._put_back_at < _EVERY_SECONDS:
            return None
        if self._since is None or endpoint.last_success_at > self._since:
            self._since = now
        self._put_back_at = now
        return min(max(_SHORTEST_SECONDS, int(now - self._since)), _LONGEST_SECONDS)
