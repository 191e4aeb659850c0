"""However the services fail: batches stay within their limits, nothing is lost unnamed, and rooms keep their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gatecast import Published, decode
from gatecast.publisher import Publication
from gatecast.publisher.batches import MAX_BATCH_BYTES, MAX_ENTRIES, Batches
from gatecast.publisher.publication import Destination, prepare
from gatecast.publisher.steps import Call
from tests.publishing_steps import HTTPClientError, ServiceError, VirtualTime, run_steps

RETRY_SECONDS = 10.0
SIZES = (1, 128_000, 2_000_000)


@dataclass(frozen=True)
class Drawn:
    room: str
    size: int
    valid: bool


MESSAGES = st.lists(
    st.builds(
        Drawn,
        st.sampled_from("abc"),
        st.sampled_from((1, 128_000, 128_000, 128_000, 2_000_000)),
        st.sampled_from((True, True, True, False)),
    ),
    max_size=40,
)
PAYLOADS = {size: b"x" * size for size in SIZES}


class Service:
    """SQS, which deduplicates by id, and S3. Both fail as `data` draws it."""

    def __init__(self, data: st.DataObject | None, time: VirtualTime, *, fifo: bool) -> None:
        self.stored: dict[str, str] = {}
        """Rooms by id, in the order of storing."""
        self.objects: set[str] = set()
        self.calls = 0
        self._data = data
        self._time = time
        self._fifo = fifo

    def __call__(self, call: Call) -> Any:
        self.calls += 1
        self._time.now += 0.01
        fault = self._draw("ok", "ok", "ok", "before", "after", "final" if self.calls > 5 else "ok")
        if fault in {"before", "final"}:
            raise ServiceError("AccessDenied", 403) if fault == "final" else HTTPClientError("reset")
        response = self._put(call) if call.service == "s3" else self._send(call.arguments["Entries"])
        if fault == "after":
            raise HTTPClientError("timeout")
        return response

    def _put(self, call: Call) -> Any:
        self.objects.add(call.arguments["Key"])
        return {}

    def _send(self, entries: list[dict[str, Any]]) -> Any:
        groups = [entry["MessageGroupId"] for entry in entries]
        assert 1 <= len(entries) <= MAX_ENTRIES
        assert sum(len(entry["MessageBody"].encode()) for entry in entries) <= MAX_BATCH_BYTES
        assert len({entry["Id"] for entry in entries}) == len(entries)
        assert not self._fifo or len(set(groups)) == len(groups)
        successful, failed = [], []
        for entry in entries:
            outcome = self._draw("ok", "ok", "busy", "invalid", "missing")
            if outcome == "ok":
                broadcast = decode(entry["MessageBody"])
                if broadcast.reference:
                    assert broadcast.reference.key in self.objects, "the object comes first"
                self.stored.setdefault(broadcast.id, entry["MessageGroupId"])
                successful.append({"Id": entry["Id"]})
            elif outcome != "missing":
                failed.append({"Id": entry["Id"], "Code": outcome, "SenderFault": outcome == "invalid"})
        return {"Successful": successful, "Failed": failed}

    def _draw(self, *outcomes: str) -> str:
        return self._data.draw(st.sampled_from(outcomes)) if self._data else "ok"


def publications(drawn: list[Drawn], chosen: list[int]) -> Iterator[Publication]:
    for number in chosen:
        each = drawn[number]
        if not each.valid:
            yield Publication(room=each.room, json=float("nan"), id=str(number))
        elif each.size > MAX_BATCH_BYTES:
            yield Publication(room=each.room, payload=PAYLOADS[each.size], id=str(number))
        else:
            yield Publication(room=each.room, data=PAYLOADS[each.size].decode(), id=str(number))


def published(messages: Iterator[Publication], service: Service, time: VirtualTime, *, fifo: bool) -> Published:
    prepared = partial(prepare, to=Destination(fifo=fifo, bucket="payloads"), now_ms=1_700_000_000_000)
    batches = Batches("https://q", prepared, fifo=fifo, retry_seconds=RETRY_SECONDS, clock=time, jitter=lambda: 0.5)
    result = run_steps(batches.run(), service, messages, time)
    assert isinstance(result, Published)
    return result


def by_room(stored: dict[str, str]) -> dict[str, list[int]]:
    rooms: dict[str, list[int]] = {}
    for name, room in stored.items():
        rooms.setdefault(room, []).append(int(name))
    return rooms


@settings(deadline=None)
@given(drawn=MESSAGES, fifo=st.booleans(), data=st.data())
def test_each_message_is_accepted_or_named_and_rooms_of_fifo_queues_keep_their_order(
    drawn: list[Drawn], fifo: bool, data: st.DataObject
) -> None:
    time = VirtualTime()
    service = Service(data, time, fifo=fifo)
    result = published(publications(drawn, list(range(len(drawn)))), service, time, fifo=fifo)

    accepted = [int(each) for each in result.accepted]
    failed = [int(each.id) for each in result.failed]
    assert sorted(accepted + failed) == list(range(len(drawn)))
    assert accepted == sorted(accepted)
    assert failed == sorted(failed) == [each.position for each in result.failed]
    assert set(result.accepted) <= set(service.stored)
    assert all(drawn[number].valid for number in accepted)
    if not fifo:
        return
    for numbers in by_room(service.stored).values():
        assert numbers == sorted(numbers)
    for each in result.failed:
        room = drawn[int(each.id)].room
        assert all(drawn[number].room != room for number in accepted if number > int(each.id))

    # what failed is published again, once the services have recovered and the messages are corrected
    corrected = [Drawn(each.room, each.size, valid=True) for each in drawn]
    service._data = None
    assert published(publications(corrected, failed), service, time, fifo=True).failed == []
    for numbers in by_room(service.stored).values():
        assert numbers == sorted(numbers)
    assert len(service.stored) == len(drawn)


@settings(deadline=None)
@given(drawn=MESSAGES, fifo=st.booleans())
def test_a_queue_that_never_responds_is_given_up_in_time(drawn: list[Drawn], fifo: bool) -> None:
    time = VirtualTime()

    def perform(_call: Call) -> Any:
        time.now += 0.01
        raise HTTPClientError("reset")

    prepared = partial(prepare, to=Destination(fifo=fifo, bucket="payloads"), now_ms=1_700_000_000_000)
    batches = Batches("https://q", prepared, fifo=fifo, retry_seconds=RETRY_SECONDS, clock=time, jitter=lambda: 0.9)
    result = run_steps(batches.run(), perform, publications(drawn, list(range(len(drawn)))), time)
    assert [each.position for each in result.failed] == list(range(len(drawn)))
    assert time.now <= RETRY_SECONDS + 0.1 * MAX_ENTRIES
