"""Reading the members that a broadcast is for, page by page."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from gatecast.broadcast import Broadcast
from gatecast.frames import V1
from worker.ports import MAX_BATCH_GET, Member, MemberSource, Page

_NAMED_PER_PAGE: Final = MAX_BATCH_GET


def begin_page(table: MemberSource, broadcast: Broadcast, after: str = "") -> Awaitable[Page]:
    """Start reading the page of members after `after` (empty: from the start). It need not be awaited.

    `after` is a key or locator, or for a broadcast to `connections` the number of them that were read. Of these only
    the dialects are read; a connection without an item counts as one that uses v1, and when it was established remains
    unknown.
    """
    if broadcast.room:
        return table.begin_page(broadcast.room, int(broadcast.shard or 0), after)
    reading = asyncio.create_task(_named_page(table, broadcast, int(after or "0")), name="dialects")
    reading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return reading


async def _named_page(table: MemberSource, broadcast: Broadcast, start: int) -> Page:
    named = list(dict.fromkeys(broadcast.connections or ()))
    ids = named[start : start + _NAMED_PER_PAGE]
    found = await table.connections(ids) if ids else {}
    members = [Member(each, None, found[each].frames if each in found else V1) for each in ids]
    end = start + len(ids)
    return Page(members, str(end) if end < len(named) else None)
