"""The commands that use the queues and the table, on ministack: what they do, what they print, and their exit codes."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from msgspec import UNSET

from gatecast import Broadcast, decode, encode
from gatecast import table as keys
from gatecast.broadcast import Close
from gatecast.cli import room_table
from gatecast.cli.__main__ import invoke
from local.resources import Queues, write_room_settings
from tests.members import connection_ids, write_members
from tests.queues import dead_letters, queue_depth

Run = Callable[..., Any]


class Ran:
    """What a command printed, and its exit code."""

    def __init__(self, code: int, out: str, errors: str) -> None:
        self.code, self.out, self.errors = code, out, errors

    @property
    def json(self) -> Any:
        [line] = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `gatecast` with these arguments, and variables as keywords."""
    monkeypatch.setattr("gatecast.dead_letter_queue._WAIT_SECONDS", 0)  # this queue has one server

    def run(*arguments: str, **variables: str) -> Ran:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = invoke(arguments)
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def variables(aws: Mapping[str, str], queues: Queues, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del aws
    monkeypatch.setenv("GATECAST_QUEUE_URL", queues.url)
    monkeypatch.setenv("GATECAST_DEAD_LETTER_QUEUE_URL", queues.dead_letter_url)
    monkeypatch.setenv("GATECAST_TABLE", table)


def published(sqs: Any, queues: Queues) -> list[Broadcast]:
    found = []
    while messages := sqs.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=queues.url, ReceiptHandle=message["ReceiptHandle"])
            found.append(decode(message["Body"]))
    return found


@pytest.mark.usefixtures("variables")
def test_publishing(run: Run, sqs: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("publish", "lobby", "hello\x1b[2J", "--id", "one", "--expires-in", "1h")
    assert (ran.code, ran.out, ran.errors) == (0, "published to lobby, id one\n", "")
    [first] = published(sqs, queues)
    assert (first.id, first.room, first.data) == ("one", "lobby", "hello\x1b[2J")
    assert first.expires_at_ms is not UNSET
    assert 3_500 < first.expires_at_ms / 1000 - time.time() <= 3_600

    ran = run("publish", "@user/ann", "--json", ' {"n": 1.10}', "--output", "json")
    [second] = published(sqs, queues)
    assert ran.json == {"id": second.id, "room": "@user/ann"}
    assert bytes(second.json or b"") == b'{"n": 1.10}'

    for payload, arguments in ((b"from a pipe\n\n", ()), (b'{"from": "a pipe"}\n', ("--json",))):
        monkeypatch.setattr("gatecast.cli.publish._read", lambda payload=payload: payload)
        assert run("publish", "lobby", "-", *arguments).code == 0
    third, fourth = sorted(published(sqs, queues), key=lambda each: bool(each.json))
    assert third.data == "from a pipe\n"
    assert bytes(fourth.json or b"") == b'{"from": "a pipe"}'


@pytest.mark.usefixtures("variables")
def test_a_payload_that_the_queue_cannot_hold_needs_a_bucket(
    run: Run, sqs: Any, queues: Queues, payload_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatecast.cli.publish._read", lambda: b"x" * 200_000)
    ran = run("publish", "lobby", "-")
    assert (ran.code, ran.out) == (2, "")
    assert "200,000 bytes" in ran.errors
    assert ran.errors.endswith(": set GATECAST_PAYLOAD_BUCKET, and clients receive a URL\n")
    assert run("publish", "lobby", "-", GATECAST_PAYLOAD_BUCKET=payload_bucket).code == 0
    [found] = published(sqs, queues)
    assert found.reference is not UNSET
    assert (found.reference.bucket, found.reference.bytes) == (payload_bucket, 200_000)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["publish", "a b", "x"], "ROOM is 'a b': give a name of 1 to 100 characters"),
        (["publish", "lobby", "x", "--id", "a b"], "--id is 'a b': give a name of 1 to 100 characters"),
        (["publish", "lobby", ""], "data: "),
        (["publish", "lobby", "{", "--json"], "json: "),
        (["publish", "lobby", "x", "--expires-in", "soon"], "--expires-in is 'soon': give a duration"),
        (["publish", "lobby"], "missing argument 'TEXT': see gatecast publish --help"),
        (
            ["publish", "lobby", "-5"],
            "no such option: -5 (a text that begins with - needs -- before it): see gatecast publish --help",
        ),
        (["publish", "lobby", "x", "y"], "unexpected extra argument"),
        (["publish", "lobby", "x", "--output", "xml"], "--output"),
        (["room", "chat/*"], "chat/* is no room: give the name of one room"),
        (["rooms", "set", "lobby"], "missing argument 'NAME=VALUE'"),
        (["rooms", "set", "lobby", "histroy_seconds=60"], "did you mean history_seconds?"),
        (["rooms", "set", "lobby", "history_seconds=60"], "needs a confirmation"),
        (["rooms", "grow", "lobby"], "missing option '--shards'"),
        (["rooms", "grow", "lobby", "--shards", "0"], "give a number from 1 to 1,000"),
        (["kick"], "exactly one of USER, --connections and --room"),
        (["kick", "ann", "--room", "lobby"], "exactly one of USER, --connections and --room"),
        (["kick", "--room", "lobby"], "needs a confirmation"),
        (["kick", "--room", "lobby", "--for", "1h"], "--for is only for a user"),
        (["kick", "@all"], "@all is a room, not a user: give --room @all"),
        (["kick", "a b"], "USER is 'a b': give a name"),
        (["kick", "a" * 100], "room: "),
        (["kick", "ann", "--code", "a b"], "--code is 'a b': give a name"),
        (["dead-letters", "drop"], "exactly one of MESSAGE, --reason and --all"),
        (["dead-letters", "drop", "--all"], "needs a confirmation"),
        (["dead-letters"], "missing command"),
        (["tail", "lobby", "http://127.0.0.1:1"], "begins with wss://"),
        (["tail", "lobby", "ws://127.0.0.1:1", "--since", "1", "--last", "1"], "exclude each other"),
        (["tail", "lobby", "ws://127.0.0.1:1", "--last", "101"], "--last"),
        (["nonsense"], "no such command 'nonsense': see gatecast --help"),
    ],
)
@pytest.mark.usefixtures("variables")
def test_wrong_arguments_are_one_line(run: Run, arguments: list[str], says: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert says in ran.errors
    assert ran.errors.count("\n") == 1
    assert ran.errors.startswith("gatecast")


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "says"),
    [
        ("GATECAST_QUEUE_URL", "", ["publish", "lobby", "x"], "GATECAST_QUEUE_URL is missing: set it to the URL"),
        ("GATECAST_QUEUE_URL", "queue", ["kick", "ann"], "GATECAST_QUEUE_URL is 'queue': set it to the URL"),
        ("GATECAST_TABLE", "", ["room", "lobby"], "GATECAST_TABLE is missing: set it to"),
        ("GATECAST_TABLE", "a b", ["rooms", "set", "lobby", "presence=1"], "GATECAST_TABLE is 'a b': set it to"),
        ("GATECAST_TABLE", "", ["kick", "ann", "--for", "1h"], "GATECAST_TABLE is missing"),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", "", ["dead-letters", "list"], "GATECAST_DEAD_LETTER_QUEUE_URL is missing"),
        ("AWS_REGION", "", ["room", "lobby"], "AWS_REGION is missing: set it to the Region"),
        ("AWS_REGION", "Europe!", ["room", "lobby"], "the Region is 'Europe!': set AWS_REGION to a Region's name"),
        (
            "GATECAST_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/1/q", ["publish", "lobby", "x"],
            "GATECAST_QUEUE_URL is in the Region eu-west-1, but AWS_REGION is us-east-1",
        ),
        ("AWS_PROFILE", "nobody", ["room", "lobby"], "AWS_PROFILE or the SDK's files are wrong"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("variables")
def test_a_wrong_environment_is_one_line(
    run: Run, variable: str, value: str, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    ran = run(*arguments, **{variable: value})
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.errors
    assert ran.errors.count("\n") == 1


@pytest.mark.usefixtures("variables")
def test_a_service_that_fails_is_one_line_with_a_remedy(run: Run) -> None:
    ran = run("publish", "lobby", "x", AWS_ENDPOINT_URL_SQS="http://127.0.0.1:1")
    assert (ran.code, ran.out) == (1, "")
    assert "http://127.0.0.1:1" in ran.errors
    assert "cannot be reached" in ran.errors
    assert "check the network" in ran.errors
    assert ran.errors.count("\n") == 1
    ran = run("room", "lobby", GATECAST_TABLE="nope")
    assert ran.code == 1
    assert "ResourceNotFoundException" in ran.errors
    assert "set GATECAST_TABLE" in ran.errors


@pytest.mark.usefixtures("variables")
def test_a_room(run: Run, dynamodb: Any, table: str) -> None:
    write_members(dynamodb, table, "chat/one", connection_ids(3, "old"), shards=2, expires_in_seconds=-60)
    write_members(dynamodb, table, "chat/one", connection_ids(30), shards=2)
    write_room_settings(dynamodb, table, {"history_seconds": 60, "presence": 5}, name="*")
    write_room_settings(dynamodb, table, {"presence": 7}, name="chat/*")
    head = keys.key(keys.stream_pk("chat/one"), keys.HEAD_SK)
    dynamodb.put_item(TableName=table, Item={**head, "offset": {"N": "1790000000000017"}})
    dynamodb.update_item(
        TableName=table, Key=keys.key(keys.settings_pk("*"), keys.SETTINGS_SK), UpdateExpression="SET receipt = :x",
        ExpressionAttributeValues={":x": {"S": "often"}},
    )  # fmt: skip

    found = run("room", "chat/one", "--output", "json").json
    assert found["members"] == sum(found["shards"]) == 30
    assert len(found["shards"]) == 2
    assert found["head"] == 1_790_000_000_000_017
    assert found["settings"] == {
        "shards": {"value": 2, "source": "chat/one"},
        "join_shards": {"value": 2, "source": "chat/one"},
        "history_seconds": {"value": 60, "source": "*"},
        "presence": {"value": 7, "source": "chat/*"},
        "receipt": {"value": False, "source": "*"},
    }
    assert found["damaged"] == [{"item": "*", "attribute": "receipt"}]

    ran = run("room", "chat/one")
    assert ran.code == 0
    assert "members  30 in 2 shards" in ran.out
    assert "history_seconds  60     *" in ran.out
    assert ran.errors.startswith("receipt of the settings of * is invalid")


def settings_item(dynamodb: Any, table: str, name: str) -> dict[str, Any]:
    item = dynamodb.get_item(TableName=table, Key=keys.key(keys.settings_pk(name), keys.SETTINGS_SK)).get("Item", {})
    return {attribute: value for attribute, value in item.items() if attribute not in {"pk", "sk"}}


@pytest.mark.usefixtures("variables")
def test_changing_settings(run: Run, dynamodb: Any, table: str) -> None:
    shown = run("rooms", "set", "chat/*", "history_seconds=3600", "receipt=true", "--dry-run")
    assert shown.code == 0
    assert "history_seconds  0 (from default)      ->  3600 (from chat/*)" in shown.out
    assert not settings_item(dynamodb, table, "chat/*")

    ran = run("rooms", "set", "chat/*", "history_seconds=3600", "receipt=true", "--yes")
    assert ran.out.splitlines()[-1] == "written; in force everywhere within 60 s"
    assert settings_item(dynamodb, table, "chat/*") == {"history_seconds": {"N": "3600"}, "receipt": {"BOOL": True}}

    found = run("rooms", "set", "chat/one", "history_seconds=0", "receipt=true", "--yes", "--output", "json").json
    assert found["written"]
    assert found["changes"][0] == {
        "name": "history_seconds",
        "before": {"value": 3_600, "source": "chat/*"},
        "after": {"value": 0, "source": "chat/one"},
    }
    again = run("rooms", "set", "chat/one", "history_seconds=0", "--output", "json")
    assert again.json == {"target": "chat/one", "changes": [], "written": False}, "nothing to confirm"

    assert run("rooms", "set", "chat/one", "history_seconds=inherit", "receipt=inherit", "--yes").code == 0
    assert not settings_item(dynamodb, table, "chat/one")


@pytest.mark.usefixtures("variables")
def test_a_damaged_setting_is_replaced(run: Run, dynamodb: Any, table: str) -> None:
    key = keys.key(keys.settings_pk("lobby"), keys.SETTINGS_SK)
    dynamodb.put_item(TableName=table, Item={**key, "presence": {"S": "many"}})
    assert run("rooms", "set", "lobby", "presence=0", "--yes", "--output", "json").json["written"]
    assert settings_item(dynamodb, table, "lobby") == {"presence": {"N": "0"}}


@pytest.mark.usefixtures("variables")
def test_growing_a_room(run: Run, dynamodb: Any, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[float, dict[str, Any]]] = []
    monkeypatch.setattr(
        time, "sleep", lambda seconds: waited.append((seconds, settings_item(dynamodb, table, "lobby")))
    )
    grow = room_table.grow
    monkeypatch.setattr("gatecast.cli.rooms.grow", lambda *all_, **named: grow(*all_, **named, sleep=time.sleep))
    assert run("rooms", "grow", "lobby", "--shards", "8", "--dry-run").out == "lobby: 1 shard -> 8 shards\n"
    assert not settings_item(dynamodb, table, "lobby")

    ran = run("rooms", "grow", "lobby", "--shards", "8", "--yes")
    assert (ran.code, ran.errors) == (0, "waiting 60 s, until all routes and workers read 8 shards\n")
    assert waited == [(60, {"shards": {"N": "8"}})]
    assert settings_item(dynamodb, table, "lobby") == {"shards": {"N": "8"}, "join_shards": {"N": "8"}}

    assert run("rooms", "grow", "lobby", "--shards", "8").out == "lobby has 8 shards already\n"
    ran = run("rooms", "grow", "lobby", "--shards", "4", "--yes")
    assert ran.code == 2
    assert "a number of shards never shrinks" in ran.errors


@pytest.mark.usefixtures("variables")
def test_kicking(run: Run, sqs: Any, dynamodb: Any, queues: Queues, table: str) -> None:
    found = run("kick", "ann", "--code", "banned", "--output", "json").json
    [only] = published(sqs, queues)
    assert (only.id, only.room, only.close) == (found["id"], "@user/ann", Close(code="banned", retry=False))
    ran = run("kick", "--connections", "a=", "--connections", "b=", "--retry")
    assert ran.out.startswith("workers close 2 connections, id ")
    [only] = published(sqs, queues)
    assert (only.connections, only.close) == (("a=", "b="), Close(code="kicked", retry=True))
    assert run("kick", "--room", "lobby", "--yes").code == 0
    assert [each.room for each in published(sqs, queues)] == ["lobby"]

    found = run("kick", "ann", "--for", "1h", "--output", "json").json
    item = dynamodb.get_item(TableName=table, Key=keys.key(keys.user_pk("ann"), keys.NOT_BEFORE_SK))["Item"]
    assert item["not_before"] == {"N": str(found["not_before"])}
    assert 3_590 < found["not_before"] - time.time() <= 3_600
    assert queue_depth(sqs, queues.url) == 2, "one of them delayed, for connections that are being opened"
    assert "ann cannot connect before " in run("kick", "ann", "--for", "0s").out
    soon = run("kick", "bob", "--for", "0s", "--output", "json").json["not_before"]
    item = dynamodb.get_item(TableName=table, Key=keys.key(keys.user_pk("bob"), keys.NOT_BEFORE_SK))["Item"]
    assert item["not_before"] == {"N": str(soon)}
    assert soon > time.time()


@pytest.mark.usefixtures("variables")
def test_on_a_fifo_queue_the_second_kick_is_waited_for(
    run: Run, sqs: Any, fifo_queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    ran = run("kick", "ann", "--for", "1h", GATECAST_QUEUE_URL=fifo_queues.url)
    assert (ran.code, waited) == (0, [30])
    assert len({each.id for each in published(sqs, fifo_queues)}) == 2

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    ran = run("kick", "ann", "--for", "1h")
    assert ran.code == 130
    assert ran.errors.endswith("connections that were being opened may remain: run the same command again\n")


def put(sqs: Any, queues: Queues, body: str, reason: str | None) -> str:
    attributes = {"reason": {"DataType": "String", "StringValue": reason}} if reason else {}
    sent = sqs.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body, MessageAttributes=attributes)
    return str(sent["MessageId"])


def letter(number: int) -> str:
    return encode(Broadcast(id=f"b{number}", connections=(f"c{number}=",), data="secret\x1b[2J", part="u-1"))


@pytest.mark.usefixtures("variables")
def test_listing_and_showing_dead_letters(run: Run, sqs: Any, queues: Queues) -> None:
    ids = [put(sqs, queues, letter(number), "undelivered") for number in range(12)]
    poison = put(sqs, queues, "no\x9b2Jthing", "poison: body: not valid JSON")

    ran = run("dead-letters", "list")
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "13 dead letters (poison: 1, undelivered: 12)"
    assert f"{ids[3]}  undelivered, 1 connection, id b3, part u-1, 0 min old" in ran.out
    assert "secret" not in ran.out
    listed = [json.loads(line) for line in run("dead-letters", "list", "--output", "json").out.splitlines()]
    assert {each["message"] for each in listed} == {*ids, poison}
    assert {each["message"] for each in listed if not each["resendable"]} == {poison}

    ran = run("dead-letters", "show", ids[3])
    assert "data      secret\\x1b[2J" in ran.out
    assert "to        c3=" in ran.out
    found = run("dead-letters", "show", ids[3], "--output", "json").json
    assert found["broadcast"]["data"] == "secret\x1b[2J"
    assert run("dead-letters", "show", poison).out.splitlines()[-1] == "body      no\\x9b2Jthing"
    ran = run("dead-letters", "show", "nope")
    assert (ran.code, ran.errors) == (1, "gatecast: there is no dead letter nope: see gatecast dead-letters list\n")
    assert len(dead_letters_of(sqs, queues)) == 13, "all are visible again"


def dead_letters_of(sqs: Any, queues: Queues) -> list[Any]:
    found: list[Any] = []
    while messages := sqs.receive_message(
        QueueUrl=queues.dead_letter_url, MaxNumberOfMessages=10, VisibilityTimeout=60
    ).get("Messages"):
        found += messages
    for message in found:
        sqs.change_message_visibility(
            QueueUrl=queues.dead_letter_url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
    return found


@pytest.mark.usefixtures("variables")
def test_resending_some_dead_letters(run: Run, sqs: Any, queues: Queues) -> None:
    ids = [put(sqs, queues, letter(number), "undelivered") for number in range(3)]
    put(sqs, queues, "nothing", "poison")
    assert run("dead-letters", "redrive", ids[1], "--dry-run", "--output", "json").json == {
        "dry_run": True,
        "resent": {"undelivered": 1},
        "skipped": {},
    }
    ran = run("dead-letters", "redrive", ids[1], "nope")
    assert ran.code == 1
    assert ran.errors == "gatecast: 1 of 2 messages were found: see gatecast dead-letters list\n"
    assert [each.id for each in published(sqs, queues)] == ["b1"]
    found = run("dead-letters", "redrive", "--output", "json").json
    assert found == {"dry_run": False, "resent": {"undelivered": 2}, "skipped": {"poison": 1}}
    assert [each.reason for each in dead_letters(sqs, queues.dead_letter_url)] == ["poison"]


@pytest.mark.usefixtures("variables")
def test_dropping_dead_letters(run: Run, sqs: Any, queues: Queues) -> None:
    ids = [put(sqs, queues, letter(number), "undelivered") for number in range(3)]
    for _ in range(2):
        put(sqs, queues, "nothing", "poison: why")
    assert run("dead-letters", "drop", "--reason", "poison", "--dry-run", "--output", "json").json == {
        "dry_run": True,
        "dropped": {"poison": 2},
    }
    ran = run("dead-letters", "drop", "--reason", "poison", "--yes")
    assert ran.out.splitlines()[-1] == "2 dropped (poison: 2)"
    ran = run("dead-letters", "drop", ids[0], "nope", "--yes")
    assert ran.code == 1
    assert f"dropped: {ids[0]}, undelivered, 1 connection, id b0" in ran.out
    assert {each["MessageId"] for each in dead_letters_of(sqs, queues)} == set(ids[1:])
    assert run("dead-letters", "drop", "--all", "--yes", "--output", "json").json["dropped"] == {"undelivered": 2}
    assert not dead_letters_of(sqs, queues)


@pytest.mark.usefixtures("variables")
def test_on_a_fifo_queue_what_is_dropped_hides_nothing(run: Run, sqs: Any, fifo_queues: Queues) -> None:
    for number in range(14):
        reason = "poison" if number in {0, 13} else "undelivered"
        sqs.send_message(
            QueueUrl=fifo_queues.dead_letter_url, MessageBody=f"n{number}", MessageGroupId="lobby",
            MessageDeduplicationId=str(number),
            MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
        )  # fmt: skip
    url = fifo_queues.dead_letter_url
    ran = run("dead-letters", "drop", "--reason", "undelivered", "--yes", GATECAST_DEAD_LETTER_QUEUE_URL=url)
    assert ran.out.splitlines()[-1] == "12 dropped (undelivered: 12)"


@pytest.mark.usefixtures("variables")
def test_the_queue_itself_is_rejected_as_the_source(run: Run, queues: Queues) -> None:
    ran = run("dead-letters", "redrive", GATECAST_DEAD_LETTER_QUEUE_URL=f"{queues.url}/")
    assert ran.code == 2
    assert "GATECAST_DEAD_LETTER_QUEUE_URL and GATECAST_QUEUE_URL name the same queue" in ran.errors
