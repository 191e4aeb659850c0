"""Publishing many: what is sent together, what is retried, and what is named as failed."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from gatecast import Broadcast, Failed, Publication, Published, decode
from gatecast.broadcast import MAX_DATA_BYTES
from gatecast.publisher.batches import MAX_BATCH_BYTES, MAX_ENTRIES, Batches, Problem
from gatecast.publisher.publication import Destination, prepare
from gatecast.publisher.steps import Call
from tests.publishing_steps import HTTPClientError, NoCredentialsError, ServiceError, VirtualTime, accepted, run_steps

NOW_MS = 1_700_000_000_000


class Service:
    """SQS and S3. `script` has, for each batch call in turn, an error, or the results of entries that fail, by id."""

    def __init__(self, script: Iterable[Any] = (), *, uploads: Iterable[Any] = ()) -> None:
        self.calls: list[list[str]] = []
        self.stored: list[str] = []
        self.objects: list[str] = []
        self.order: list[str] = []
        self._script = iter(script)
        self._uploads = iter(uploads)

    def __call__(self, call: Call) -> Any:
        self.order.append(call.service)
        if call.service == "s3":
            if isinstance(error := next(self._uploads, None), Exception):
                raise error
            self.objects.append(call.arguments["Key"])
            return {}
        entries = {decode(each["MessageBody"]).id: each["Id"] for each in call.arguments["Entries"]}
        self.calls.append(list(entries))
        failing: Any = next(self._script, {})
        if isinstance(failing, Exception):
            raise failing
        self.stored += [name for name in entries if name not in failing]
        failed = [{"Id": number, **failing[name]} for name, number in entries.items() if failing.get(name)]
        return {"Successful": [{"Id": entries[name]} for name in entries if name not in failing], "Failed": failed}


BUSY = {"Code": "InternalError", "Message": "busy", "SenderFault": False}
INVALID = {"Code": "InvalidMessageContents", "Message": "characters", "SenderFault": True}


def published(
    messages: Iterable[Any],
    service: Any,
    *,
    fifo: bool = False,
    retry_seconds: float = 30.0,
    jitter: float = 0.5,
    time: VirtualTime | None = None,
) -> Published:
    time = time or VirtualTime()
    prepared = partial(prepare, to=Destination(fifo=fifo, bucket="payloads"), now_ms=NOW_MS)
    url = "https://sqs/1/q.fifo" if fifo else "https://sqs/1/q"
    batches = Batches(url, prepared, fifo=fifo, retry_seconds=retry_seconds, clock=time, jitter=lambda: jitter)
    result = run_steps(batches.run(), service, messages, time)
    assert isinstance(result, Published)
    return result


def to_rooms(*ids: str) -> list[Publication]:
    """Messages whose room is the first character of their id."""
    return [Publication(room=each[0], data="x", id=each) for each in ids]


def failures(result: Published) -> dict[str, str]:
    return {each.id: each.code for each in result.failed}


def test_nothing_is_published_without_a_call() -> None:
    service = Service()
    assert published([], service) == ([], [])
    assert service.order == []


def test_batches_are_full_and_all_are_accepted_in_order() -> None:
    service = Service()
    names = [f"a{number}" for number in range(23)]
    result = published(to_rooms(*names), service)
    assert result == (names, [])
    assert [len(call) for call in service.calls] == [10, 10, 3]


def test_a_broadcast_and_a_publication_are_sent_alike() -> None:
    sent: list[Any] = []

    def perform(call: Call) -> Any:
        sent.append(call)
        return accepted(call)

    messages = [Broadcast(id="1", room="a", data="x"), Publication(room="a", data="y", id="2", delay=5)]
    assert published(messages, perform).accepted == ["1", "2"]
    (call,) = sent
    assert (call.service, call.method, call.arguments["QueueUrl"]) == ("sqs", "send_message_batch", "https://sqs/1/q")
    first, second = call.arguments["Entries"]
    assert (first["Id"], first["MessageGroupId"], decode(first["MessageBody"])) == ("0", "a", messages[0])
    assert (second["Id"], second["DelaySeconds"], decode(second["MessageBody"]).data) == ("1", 5, "y")


def test_no_more_than_a_batch_and_one_message_are_read_before_they_are_sent() -> None:
    read: list[str] = []
    settled: list[str] = []
    held: list[int] = []

    def messages() -> Iterator[Publication]:
        for number in range(50):
            read.append(str(number))
            yield Publication(room="a", data="x" * MAX_DATA_BYTES, id=str(number))

    def perform(call: Call) -> Any:
        held.append(len(read) - len(settled))
        assert sum(len(each["MessageBody"].encode()) for each in call.arguments["Entries"]) <= MAX_BATCH_BYTES
        settled.extend(decode(each["MessageBody"]).id for each in call.arguments["Entries"])
        return accepted(call)

    prepared = partial(prepare, to=Destination(fifo=False), now_ms=NOW_MS)
    batches = Batches("https://q", prepared, fifo=False, retry_seconds=30)
    assert len(run_steps(batches.run(), perform, messages()).accepted) == 50
    assert max(held) <= MAX_BATCH_BYTES // MAX_DATA_BYTES + 1


def test_only_what_may_succeed_is_retried_together_with_what_follows() -> None:
    service = Service([{"a1": BUSY, "a2": INVALID}, {"a1": BUSY}])
    names = [f"a{number}" for number in range(12)]
    result = published(to_rooms(*names), service)
    assert service.calls == [names[:10], ["a1", "a10", "a11"], ["a1"]]
    assert result.accepted == [name for name in names if name != "a2"]
    assert result.failed == [Failed(2, "a2", "InvalidMessageContents", "characters")]


@pytest.mark.parametrize(
    "error",
    [
        HTTPClientError("timeout"), ConnectionResetError("reset"), TimeoutError(), ServiceError("InternalFailure", 500),
        ServiceError("Whatever", 503), ServiceError("TooMany", 429), ServiceError("RequestThrottled", 403),
        ServiceError("KMS.ThrottlingException"),
    ],
)  # fmt: skip
def test_a_call_that_may_succeed_later_is_repeated_as_a_whole(error: Exception) -> None:
    service = Service([error, error])
    assert published(to_rooms("a1", "b1"), service) == (["a1", "b1"], [])
    assert service.calls == [["a1", "b1"]] * 3


def test_an_entry_without_a_result_is_retried() -> None:
    service = Service([{"a1": None}])
    assert published(to_rooms("a1", "b1"), service) == (["a1", "b1"], [])
    assert service.calls == [["a1", "b1"], ["a1"]]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServiceError("AccessDenied", 403), "AccessDenied"),
        (ServiceError("AWS.SimpleQueueService.NonExistentQueue"), "AWS.SimpleQueueService.NonExistentQueue"),
        (NoCredentialsError("none"), "NoCredentialsError"),
    ],
)
def test_after_a_final_error_nothing_is_sent_and_everything_is_named(error: Exception, code: str) -> None:
    service = Service([{}, error])
    names = [f"a{number}" for number in range(35)]
    result = published(to_rooms(*names), service)
    assert len(service.calls) == 2
    assert result.accepted == names[:10]
    assert [(each.position, each.id, each.code) for each in result.failed] == [
        (position, names[position], code) for position in range(10, 35)
    ]
    assert result.failed[0].reason == str(error)
    assert result.failed[-1].reason == f"not sent, after: {error}"


def test_a_failing_queue_is_given_up_after_the_retry_time_and_everything_is_named() -> None:
    time = VirtualTime()
    service = Service([ServiceError("ServiceUnavailable", 503)] * 1_000)
    names = [f"a{number}" for number in range(25)]
    result = published(to_rooms(*names), service, retry_seconds=30, time=time)
    assert result.accepted == []
    assert list(failures(result)) == names
    assert set(failures(result).values()) == {"ServiceUnavailable"}
    assert 25 < time.now < 30
    assert 8 < len(service.calls) < 30, "neither a busy loop nor one attempt"
    assert set(map(tuple, service.calls)) == {tuple(names[:10])}, "after the first ten nothing else was tried"


def test_without_a_retry_time_every_call_is_made_once() -> None:
    service = Service([ServiceError("ServiceUnavailable", 503)])
    result = published(to_rooms("a1"), service, retry_seconds=0)
    assert failures(result) == {"a1": "ServiceUnavailable"}
    assert len(service.calls) == 1


def test_one_that_keeps_failing_is_given_up_while_others_are_accepted() -> None:
    time = VirtualTime()

    def messages() -> Iterator[Publication]:
        yield Publication(room="a", data="x", id="bad")
        for number in range(2_000):
            yield Publication(room="a", data="x", id=str(number))

    result = published(messages(), Service([{"bad": BUSY}] * 1_000), time=time, jitter=0.999)
    assert failures(result) == {"bad": "InternalError"}
    assert len(result.accepted) == 2_000
    assert time.now < 30


def test_the_wait_grows_with_failures_in_a_row_up_to_five_seconds() -> None:
    waits: list[float] = []
    time = VirtualTime()

    def perform(_call: Call) -> Any:
        waits.append(time.now)
        raise ServiceError("ServiceUnavailable", 503)

    published(to_rooms("a1"), perform, time=time, jitter=1.0)
    between = [round(later - earlier, 6) for earlier, later in pairwise(waits)]
    assert between == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]


def test_invalid_messages_are_named_and_the_others_are_published() -> None:
    messages = [
        Publication(room="a", data="x", id="1"),
        Publication(room="a", json=math.nan),
        Publication(room="two words", data="x", id="3"),
        Broadcast(id="two words", room="a", data="x"),
        Publication(room=["a"], data="x", id="5"),  # type: ignore[typeddict-item]
        Publication(room="a", data="x", id="6"),
    ]
    result = published(messages, Service())
    assert result.accepted == ["1", "6"]
    assert [(each.position, each.code) for each in result.failed] == [(n, "InvalidBroadcast") for n in (1, 2, 3, 4)]
    assert len(result.failed[0].id) == 32
    assert [each.id for each in result.failed[1:]] == ["3", "two words", "5"]
    assert "json: not possible as JSON" in result.failed[0].reason


def test_a_mistake_of_the_program_is_raised() -> None:
    with pytest.raises(KeyError, match="no client's"):
        published(to_rooms("a1"), Service([KeyError("no client's")]))


def test_an_error_of_the_messages_is_raised() -> None:
    def messages() -> Iterator[Publication]:
        yield Publication(room="a", data="x", id="1")
        raise RuntimeError("the program's own")

    with pytest.raises(RuntimeError, match="the program's own"):
        published(messages(), Service())
    with pytest.raises(TypeError, match="expected a Broadcast"):
        published(["text"], Service())


# FIFO queues


def test_a_call_to_a_fifo_queue_has_one_message_of_each_group() -> None:
    service = Service()
    names = ["a1", "a2", "b1", "a3", "b2", "c1"]
    result = published(to_rooms(*names), service, fifo=True)
    assert result == (names, [])
    assert service.calls == [["a1", "b1", "c1"], ["a2", "b2"], ["a3"]]


def test_a_message_never_overtakes_one_of_its_room_that_is_retried() -> None:
    service = Service([{"a1": BUSY}, {"a1": BUSY}])
    assert published(to_rooms("a1", "a2", "b1", "b2"), service, fifo=True).failed == []
    assert service.calls == [["a1", "b1"], ["a1", "b2"], ["a1"], ["a2"]]
    assert service.stored == ["b1", "b2", "a1", "a2"]


def test_once_a_message_has_failed_later_ones_of_its_room_fail_without_being_sent() -> None:
    service = Service([{"a1": INVALID}])
    names = ["a1", "a2", "b1", "b2", *(f"a{number}" for number in range(3, 15)), "b3"]
    result = published(to_rooms(*names), service, fifo=True)
    assert result.accepted == ["b1", "b2", "b3"] == service.stored
    assert failures(result) == {
        "a1": "InvalidMessageContents",
        **{f"a{number}": "PrecedingFailed" for number in range(2, 15)},
    }
    again = Service()
    assert published(to_rooms(*(each.id for each in result.failed)), again, fifo=True).failed == []
    assert again.stored == [f"a{number}" for number in range(1, 15)]


def test_an_invalid_message_fails_those_of_its_room_behind_it_and_none_before_it() -> None:
    service = Service([{"a2": BUSY}, {"a2": BUSY}])
    messages = [
        *to_rooms("a2", "a3"),
        Publication(room="a", json=math.nan, id="a4"),
        Publication(user="ann", data="", id="u1"),
        *to_rooms("a5", "b1"),
        Publication(user="ann", data="x", id="u2"),
    ]
    result = published(messages, service, fifo=True)
    assert result.accepted == ["a2", "a3", "b1"]
    assert failures(result) == {
        "a4": "InvalidBroadcast", "u1": "InvalidBroadcast", "a5": "PrecedingFailed", "u2": "PrecedingFailed"
    }  # fmt: skip


def test_a_standard_queue_promises_no_order_and_sends_what_follows() -> None:
    service = Service([{"a1": INVALID}])
    assert published(to_rooms("a1", "a2"), service).accepted == ["a2"]


# Objects


def large(name: str) -> Publication:
    return Publication(room=name[0], payload=b"x" * (MAX_BATCH_BYTES // 2), id=name)


def test_objects_are_stored_before_their_messages_and_large_ones_fill_a_batch() -> None:
    service = Service()
    result = published([*to_rooms("a1"), large("a2"), large("a3"), *to_rooms("a4")], service)
    assert result.accepted == ["a1", "a2", "a3", "a4"]
    assert service.order == ["sqs", "s3", "sqs"] * 2
    assert service.calls == [["a1"], ["a2"], ["a4"], ["a3"]]
    assert len(set(service.objects)) == 2


def test_an_upload_is_retried_and_not_repeated_once_it_has_succeeded() -> None:
    service = Service([{}, {"a1": BUSY}], uploads=[ServiceError("SlowDown", 503)])
    assert published([large("a1"), *to_rooms("b1")], service).failed == []
    assert service.order == ["sqs", "s3", "s3", "sqs", "sqs"]
    assert service.calls == [["b1"], ["a1"], ["a1"]]
    assert len(service.objects) == 1


@pytest.mark.parametrize("fifo", [False, True])
def test_a_bucket_that_does_not_respond_is_called_once_per_round_and_delays_nothing_else(fifo: bool) -> None:
    time = VirtualTime()
    calls: list[tuple[float, str]] = []

    def perform(call: Call) -> Any:
        calls.append((time.now, call.service))
        if call.service == "s3":
            time.now += 20.0  # as long as the SDK's own retries
            raise HTTPClientError
        return accepted(call)

    objects = [Publication(room=name, payload=b"x" * 1_000, id=name) for name in "abcdefgh"]
    result = published([*objects, *to_rooms("z1")], perform, fifo=fifo, time=time)
    assert result.accepted == ["z1"]
    assert failures(result) == dict.fromkeys("abcdefgh", "HTTPClientError")
    assert [service for _, service in calls] == ["sqs", "s3", "s3"]
    assert calls[0] == (0.0, "sqs")
    assert time.now < 30.0 + 20.0


def test_a_final_error_of_the_bucket_fails_only_what_needs_it() -> None:
    service = Service(uploads=[ServiceError("AccessDenied", 403), ServiceError("AccessDenied", 403)])
    result = published([large("a1"), *to_rooms("a2"), large("b1"), *to_rooms("c1")], service, fifo=True)
    assert result.accepted == ["c1"]
    assert failures(result) == {"a1": "AccessDenied", "a2": "PrecedingFailed", "b1": "AccessDenied"}


def test_problems_are_told_apart_by_code_status_and_class() -> None:
    assert Problem.from_error(ServiceError("SlowDown", 503)) == ("SlowDown", "An error occurred (SlowDown)", True)
    assert Problem.from_error(NoCredentialsError("none")) == ("NoCredentialsError", "none", False)
    assert Problem.from_entry({"Id": "0"}) == ("Unknown", "", True)


def test_a_call_has_at_most_ten_entries() -> None:
    service = Service()
    published(to_rooms(*(f"a{n}" for n in range(100))), service)
    assert max(map(len, service.calls)) == MAX_ENTRIES
