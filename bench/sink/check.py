"""Tests both mock servers in their sanitized builds: `make check`.

Requests are split at random, pipelined, truncated, sent with and without TLS, and mutated; then the SDKs call the mock
AWS server. A program that a sanitizer stopped, or that leaked, does not exit with 0.
"""

import asyncio
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any, BinaryIO

import aioboto3
import boto3
from botocore.config import Config

PROGRAMS, CERTIFICATES = Path(sys.argv[1]), Path(sys.argv[2])
TLS_OPTIONS = ("--certificate", str(CERTIFICATES / "server.pem"), "--key", str(CERTIFICATES / "server-key.pem"))
PATH = "/production/@connections/L0SM9cOFvHcCIhw%3D"
Response = tuple[int, dict[str, str], bytes]

seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(2**32)
rng = random.Random(seed)


@contextlib.contextmanager
def running(program: str, *options: str) -> Iterator[int]:
    """Run a mock server, which must end cleanly. Yields its port."""
    command: list[str | Path] = [PROGRAMS / program, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - the build's own
        assert process.stdout
        try:
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(10)
        assert status == 0, f"{program} ended with {status}"


def connect(port: int, *, tls: bool) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not tls:
        return raw
    context = ssl.create_default_context(cafile=CERTIFICATES / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context.wrap_socket(raw, server_hostname=rng.choice(["localhost", "127.0.0.1"]))


def read_response(stream: BinaryIO) -> Response:
    status = int(stream.readline().split()[1])
    headers = dict(http.client.parse_headers(stream).items())
    return status, headers, stream.read(int(headers.get("Content-Length", "0")))


def request_json(port: int, method: str, path: str, body: str = "") -> Any:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    client.request(method, path, body)
    response = client.getresponse().read()
    client.close()
    return json.loads(response) if response else None


def post(body: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\ncontent-length:  {len(body)} \r\n"
    return f"{head}X-Amz-Security-Token: {'t' * 1000}\r\n\r\n".encode() + body


def send_split(connection: socket.socket, text: bytes) -> None:
    while text:
        length = min(len(text), rng.choice([1, 2, 3, 17, 200, 1000, 5000, 40000, 200000]))
        connection.sendall(text[:length])
        text = text[length:]
        if rng.random() < 0.2:
            time.sleep(0.0005)


def check_splits(*, tls: bool, options: tuple[str, ...] = ()) -> None:
    with running("connections", *(TLS_OPTIONS if tls else ()), *options) as port:
        posts = sent_bytes = 0
        for _ in range(40):
            with connect(port, tls=tls) as connection, connection.makefile("rb") as responses:
                for _ in range(8):
                    # The sum of what is pipelined stays below what a peer may send ahead.
                    bodies = [rng.randbytes(rng.choice([0, 1, 256, 2000, 20000])) for _ in range(rng.randint(1, 5))]
                    bodies.append(rng.randbytes(rng.choice([0, 300, 131072])))
                    send_split(connection, b"".join(map(post, bodies)))
                    for _ in bodies:
                        status, headers, _ = read_response(responses)
                        assert status in ((200, 410, 429) if options else (200,)), status
                        assert len(headers["x-amzn-RequestId"]) == 36
                        assert re.fullmatch(r"[\w-]{15}=", headers["x-amz-apigw-id"])
                        assert (headers.get("x-amzn-ErrorType") is None) == (status == 200)
                    posts += len(bodies)
                    sent_bytes += sum(map(len, bodies))
        with connect(port, tls=tls) as connection, connection.makefile("rb") as responses:
            connection.sendall(b"GET /stats HTTP/1.1\r\nConnection: close\r\n\r\n")
            _, headers, body = read_response(responses)
            assert headers["Connection"] == "close"
            assert responses.read() == b""
        stats = json.loads(body)
        assert (stats["posts"], stats["bytes"]) == (posts, sent_bytes), stats
        assert sum(stats["statuses"].values()) == posts
        assert stats["handshakes"] == (41 if tls else 0)


def check_every_byte() -> None:
    with running("connections") as port, connect(port, tls=False) as connection, connection.makefile("rb") as responses:
        text = b"POST /@connections/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        for at in range(1, len(text)):
            connection.sendall(text[:at])
            time.sleep(0.001)
            connection.sendall(text[at:])
            assert read_response(responses)[0] == 200
        for method, path, status in (
            ("DELETE", PATH, 204),
            ("GET", PATH, 200),
            ("PUT", PATH, 403),
            ("GET", "/nowhere", 403),
            ("POST", "/reset", 204),
        ):
            connection.sendall(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
            assert read_response(responses)[0] == status
        connection.sendall(post(b"x" * 131073))
        assert read_response(responses)[0] == 413
        assert request_json(port, "GET", "/stats")["too_large"] == 1


def check_rejections() -> None:
    with running("connections") as port:
        for text, status in (
            (b"\r\n\r\n", 400),
            (b"GET / HTTP/1.0\r\n\r\n", 505),
            (b"GET / HTTP/1.1\r\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            (b"x" * 20000, 431),
        ):
            with connect(port, tls=False) as connection, connection.makefile("rb") as responses:
                connection.sendall(text)
                assert read_response(responses)[0] == status, text[:100]
                assert responses.read() == b""


def check_mutations(program: str, text: bytes, *options: str) -> None:
    """The program survives arbitrary input."""
    with running(program, *options) as port:
        for _ in range(1500):
            mutated = bytearray(text)
            for _ in range(rng.randint(1, 8)):
                at = rng.randrange(len(mutated))
                match rng.randrange(4):
                    case 0:
                        mutated[at] = rng.randrange(256)
                    case 1:
                        del mutated[at : at + rng.randint(1, 20)]
                    case 2:
                        mutated[at:at] = rng.choice([b"\r", b"\n", b'"', b"{", b"]", b"\\", b"\\u12", b":", b","])
                    case _:
                        del mutated[at + 1 :]
                if not mutated:
                    break
            with connect(port, tls=False) as connection, contextlib.suppress(OSError):
                connection.sendall(mutated)
                connection.shutdown(socket.SHUT_WR)
                if rng.random() < 0.5:
                    connection.recv(1000)
        assert request_json(port, "GET", "/stats")


def check_garbage_for_tls() -> None:
    with running("connections", *TLS_OPTIONS) as port:
        for i in range(300):
            with connect(port, tls=False) as connection, contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x01" * (i % 2) + rng.randbytes(rng.randint(1, 3000)))
                connection.shutdown(socket.SHUT_WR)  # it may look like the start of a TLS record
                if i % 3:
                    connection.recv(1000)
            if i % 10 == 0:
                with connect(port, tls=True) as connection:
                    connection.sendall(post(b"hello"))
                    assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
                    connection.sendall(post(b"hello")[:-3])  # and disconnect in the middle of a request


def check_delay() -> None:
    with (
        running("connections", "--delay-min-ms", "20", "--delay-max-ms", "60") as port,
        contextlib.ExitStack() as stack,
    ):
        connections = [stack.enter_context(connect(port, tls=False)) for _ in range(200)]
        started = time.monotonic()
        for connection in connections:
            connection.sendall(post(b"hello"))
        for connection in connections[150:]:
            connection.close()  # while its response is delayed
        durations = []
        for connection in connections[:150]:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK\r\nDate: ")
            durations.append(time.monotonic() - started)
        assert durations[0] >= 0.02
        assert durations[-1] < 0.5
        assert request_json(port, "GET", "/stats")["in_flight_peak"] > 100


def room_query(room: str, **more: Any) -> dict[str, Any]:
    return {
        "TableName": "gatecast",
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": {":pk": {"S": f"room#{room}#0"}},
        **more,
    }


def read_pages(dynamodb: Any, query: dict[str, Any]) -> list[list[dict[str, Any]]]:
    pages: list[list[dict[str, Any]]] = []
    start: dict[str, Any] = {}
    while True:
        response = dynamodb.query(**query, **start)
        headers, body = response["ResponseMetadata"]["HTTPHeaders"], response
        assert int(headers["x-amz-crc32"]) > 0
        assert body["Count"] == body["ScannedCount"] == len(body["Items"])
        pages.append(body["Items"])
        if "LastEvaluatedKey" not in body:
            return pages
        assert body["LastEvaluatedKey"] == {
            "pk": query["ExpressionAttributeValues"][":pk"],
            "sk": body["Items"][-1]["sk"],
        }
        start = {"ExclusiveStartKey": body["LastEvaluatedKey"]}


def clients(port: int, session: Any) -> tuple[Any, Any]:
    options = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "region_name": "eu-central-1",
        "aws_access_key_id": "a",
        "aws_secret_access_key": "s",
        "config": Config(retries={"total_max_attempts": 1}),
    }
    return session.client("sqs", **options), session.client("dynamodb", **options)


def check_queries(port: int, dynamodb: Any) -> None:
    pages = read_pages(dynamodb, room_query("r1"))
    assert [len(page) for page in pages] == [7400, 7400, 200]
    members = [item["sk"]["S"] for page in pages for item in page]
    assert members == sorted(members)
    assert len(set(members)) == 15000
    assert all(re.fullmatch(r"[\w-]{14}[AEIMQUYcgkosw048]=", member) for member in members)
    assert set(members).isdisjoint(item["sk"]["S"] for page in read_pages(dynamodb, room_query("r2")) for item in page)
    item = pages[1][5]
    assert sorted(item) == ["expires_at", "joined_at_ms", "pk", "sk"]
    assert abs(int(item["expires_at"]["N"]) - time.time() - 3600) < 30
    assert abs(int(item["joined_at_ms"]["N"]) - time.time() * 1000 + 3600_000) < 30_000
    assert pages == read_pages(dynamodb, room_query("r1"))

    projected = room_query(
        "r1",
        KeyConditionExpression="#p=:pk",
        ProjectionExpression="#s, joined_at_ms, expires_at",
        ExpressionAttributeNames={"#s": "sk", "#p": "pk"},
    )
    first = dynamodb.query(**projected)["Items"]
    assert sorted(first[0]) == ["expires_at", "joined_at_ms", "sk"]
    assert [item["sk"] for item in first] == [item["sk"] for item in pages[0]]

    for at in (*rng.sample(range(15000), 30), 14999):  # a query continues after any key, a member's or not
        limit = rng.choice([1, 10, 1000])
        for sk in (members[at], members[at] + "a", members[at][:-1] + "~"):
            key = {"pk": {"S": "room#r1#0"}, "sk": {"S": sk}}
            response = dynamodb.query(**room_query("r1"), ExclusiveStartKey=key, Limit=limit)
            assert [item["sk"]["S"] for item in response["Items"]] == members[at + 1 : at + 1 + limit]
            assert ("LastEvaluatedKey" in response) == (at + 1 + limit <= 15000)
    foreign = ["", " ", "~", "é", "A", "A-", "A.", "m", "z" * 20, *(rng.randbytes(9).hex() for _ in range(50))]
    for sk in foreign:
        key = {"pk": {"S": "room#r1#0"}, "sk": {"S": sk}}
        response = dynamodb.query(**room_query("r1"), ExclusiveStartKey=key, Limit=1)["Items"]
        expected = [member for member in members if member.encode() > sk.encode()][:1]
        assert [item["sk"]["S"] for item in response] == expected, sk

    rooms = boto3.resource(
        "dynamodb",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="eu-central-1",
        aws_access_key_id="a",
        aws_secret_access_key="s",
    )
    condition = boto3.dynamodb.conditions.Key("pk").eq('room#a"\\b#0')
    assert rooms.Table("t").query(KeyConditionExpression=condition, Limit=3)["Items"][2]["pk"] == 'room#a"\\b#0'
    joined = room_query("x", KeyConditionExpression="pk = :pk AND begins_with(sk, :room)")
    joined["ExpressionAttributeValues"] = {":room": {"S": "room#"}, ":pk": {"S": "connection#abc="}}
    assert dynamodb.query(**joined)["Items"] == []
    request_json(port, "POST", "/reset", '{"joined_rooms": 3}')
    items = dynamodb.query(**joined)["Items"]
    assert [(item["sk"]["S"], item["shard"]["N"]) for item in items] == [
        ("room#r0", "0"),
        ("room#r1", "0"),
        ("room#r2", "0"),
    ]
    assert items[0]["pk"] == {"S": "connection#abc="}
    joined |= {"ProjectionExpression": "sk, #shard", "ExpressionAttributeNames": {"#shard": "shard"}}
    assert [sorted(item) for item in dynamodb.query(**joined)["Items"]] == [["shard", "sk"]] * 3
    with contextlib.suppress(dynamodb.exceptions.ClientError):
        dynamodb.query(**room_query("r1", KeyConditionExpression="pk = :pk AND sk > :sk"))
        raise AssertionError("a condition on sk")


def check_settings(port: int, dynamodb: Any) -> None:
    """Rooms have settings while the workload has history; nothing else has, and a stream's head is always absent."""
    partitions = ("settings#*", "settings#r7", "settings#r7/*", "connection#r7", 'settings#r"\\8')
    keys = [{"pk": {"S": pk}, "sk": {"S": "room"}} for pk in partitions]
    request = {"t": {"Keys": keys}, "u": {"Keys": keys[:1]}}
    assert dynamodb.batch_get_item(RequestItems=request)["Responses"] == {"t": [], "u": []}
    request_json(port, "POST", "/reset", '{"history_seconds": 3600}')
    found = dynamodb.batch_get_item(RequestItems=request)["Responses"]
    assert found == {"t": [{**keys[at], "history_seconds": {"N": "3600"}} for at in (1, 4)], "u": []}
    head = {"pk": {"S": "stream#r7"}, "sk": {"S": "head"}}
    assert "Item" not in dynamodb.get_item(TableName="t", Key=head)
    request_json(port, "POST", "/reset", '{"history_seconds": 0}')
    assert dynamodb.batch_get_item(RequestItems=request)["Responses"] == {"t": [], "u": []}


def check_writes(port: int, dynamodb: Any) -> None:
    key = {"pk": {"S": "a"}, "sk": {"S": "b"}}
    assert "Item" not in dynamodb.get_item(TableName="t", Key=key)
    absent = dynamodb.batch_get_item(RequestItems={"t": {"Keys": [key]}, "u": {"Keys": [key]}})
    assert absent["Responses"] == {"t": [], "u": []}
    check_settings(port, dynamodb)
    assert "Attributes" not in dynamodb.update_item(TableName="t", Key=key)
    assert dynamodb.update_item(TableName="t", Key=key, ReturnValues="ALL_NEW")["Attributes"] == {}
    dynamodb.put_item(TableName="t", Item=key)
    dynamodb.delete_item(TableName="t", Key=key)
    statements = [{"Statement": "INSERT INTO \"t\" VALUE {'pk': ?}", "Parameters": [{"S": "]},{"}]}] * 25
    assert dynamodb.batch_execute_statement(Statements=statements)["Responses"] == [{"TableName": "t"}] * 25
    assert dynamodb.batch_write_item(RequestItems={"t": [{"PutRequest": {"Item": key}}]})["UnprocessedItems"] == {}
    dynamodb.transact_write_items(TransactItems=[{"Put": {"TableName": "t", "Item": key}}])
    assert dynamodb.describe_table(TableName="t")["Table"]["TableStatus"] == "ACTIVE"
    with contextlib.suppress(dynamodb.exceptions.ClientError):
        dynamodb.list_tables()
        raise AssertionError("an unsupported operation did not fail")


def check_queue(port: int, sqs: Any) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from gatecast import broadcast  # noqa: PLC0415 - from the checkout, which is not on the path before

    queue = "https://sqs.eu-central-1.amazonaws.com/000000000000/broadcasts"
    seen: dict[str, str] = {}
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages"):
        for message in messages:
            assert md5(message["Body"].encode(), usedforsecurity=False).hexdigest() == message["MD5OfBody"]
            decoded = broadcast.decode(message["Body"])
            assert decoded.room == f"r{len(seen) % 7}" == message["Attributes"]["MessageGroupId"]
            assert len(str(decoded.data)) == 3000
            assert message["Attributes"]["ApproximateReceiveCount"] == "1"
            assert abs(int(message["Attributes"]["SentTimestamp"]) - time.time() * 1000) < 120_000
            seen[message["MessageId"]] = decoded.id
        entries = [{"Id": f'"{i}\\', "ReceiptHandle": message["ReceiptHandle"]} for i, message in enumerate(messages)]
        sqs.change_message_visibility_batch(
            QueueUrl=queue, Entries=[{**entry, "VisibilityTimeout": 30} for entry in entries]
        )
        deleted = sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
        assert [entry["Id"] for entry in deleted["Successful"]] == [entry["Id"] for entry in entries]
    assert len(seen) == len(set(seen.values())) == 25
    handle = entries[0]["ReceiptHandle"]
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0)
    body = 'Ä "quoted" \\ \n \x7f 😀 \ufffd'
    expected = md5(body.encode(), usedforsecurity=False).hexdigest()
    assert sqs.send_message(QueueUrl=queue, MessageBody=body)["MD5OfMessageBody"] == expected
    sent = sqs.send_message_batch(QueueUrl=queue, Entries=[{"Id": str(i), "MessageBody": body} for i in range(10)])
    assert {entry["MD5OfMessageBody"] for entry in sent["Successful"]} == {expected}
    assert sqs.get_queue_url(QueueName="broadcasts")["QueueUrl"] == queue
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert attributes["ApproximateNumberOfMessages"] == "0"

    stats = request_json(port, "GET", "/stats")
    assert [stats[name] for name in ("received", "deleted", "deleted_again", "sent")] == [25, 25, 1, 11], stats
    started = time.monotonic()
    assert "Messages" not in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1)
    assert 0.9 < time.monotonic() - started < 3


async def check_long_poll(port: int) -> None:
    """A pending long poll returns when a new workload starts; a client that disconnects does no harm."""
    sqs_client, dynamodb_client = clients(port, aioboto3.Session())
    async with sqs_client as sqs, dynamodb_client as dynamodb:
        polls = [
            asyncio.create_task(sqs.receive_message(QueueUrl="q", MaxNumberOfMessages=10, WaitTimeSeconds=20))
            for _ in range(4)
        ]
        await asyncio.sleep(0.3)
        polls.pop().cancel()
        await asyncio.sleep(0.1)
        body = ' { "data_bytes" : 10,\n"broadcasts":35 , "members" : 5} '
        await asyncio.to_thread(request_json, port, "POST", "/reset", body)
        received = [message for poll in polls for message in (await poll)["Messages"]]
        assert len({message["MessageId"] for message in received}) == 30
        for message in received:
            await sqs.delete_message(QueueUrl="q", ReceiptHandle=message["ReceiptHandle"])
        results = await asyncio.gather(*(dynamodb.query(**room_query(f"r{i}")) for i in range(20)))
        assert len({item["sk"]["S"] for response in results for item in response["Items"]}) == 100
        assert len((await dynamodb.query(**room_query("r1", Limit=5)))["Items"]) == 5
    stats = await asyncio.to_thread(request_json, port, "GET", "/stats")
    assert (stats["received"], stats["deleted"], stats["items"]) == (30, 30, 105), stats
    expected = {
        "broadcasts": 35,
        "rooms": 7,
        "first_room": 0,
        "members": 5,
        "page_members": 7400,
        "data_bytes": 10,
        "joined_rooms": 3,
        "history_seconds": 0,
    }
    assert stats["workload"] == expected


def check_service_delays() -> None:
    """Each service has its configured latency, and the time when messages are sent is recorded."""
    options = ("--broadcasts", "1", "--first-room", "41", "--sqs-delay-ms", "40", "--dynamodb-delay-ms", "15")
    with running("aws", *options) as port:
        sqs, dynamodb = clients(port, boto3.Session())
        dynamodb.query(**room_query("r41"))  # opens the connection
        began = time.monotonic()
        dynamodb.query(**room_query("r41"))
        queried = time.monotonic()
        (message,) = sqs.receive_message(QueueUrl="q")["Messages"]
        received = time.monotonic()
        assert 0.015 <= queried - began < 0.035
        assert 0.04 <= received - queried < 0.5
        assert json.loads(message["Body"])["room"] == message["Attributes"]["MessageGroupId"] == "r41"
        assert queried + 0.04 <= request_json(port, "GET", "/stats")["received_at"] <= received


def check_pages(*, tls: bool) -> None:
    """More than a socket buffer holds, to a client that reads late; rendered first, then from the cache."""
    body = json.dumps(room_query("r3")).encode()
    head = f"POST / HTTP/1.1\r\nx-amz-target: DynamoDB_20120810.Query\r\nContent-Length: {len(body)}\r\n\r\n"
    with (
        running("aws", "--members", "20000", *(TLS_OPTIONS if tls else ())) as port,
        connect(port, tls=tls) as connection,
        connection.makefile("rb") as responses,
    ):
        send_split(connection, (head.encode() + body) * 20)
        time.sleep(0.3)
        for _ in range(20):
            status, headers, page = read_response(responses)
            assert status == 200
            assert int(headers["x-amz-crc32"]) == zlib.crc32(page)
            assert len(json.loads(page)["Items"]) == 7400


def check_aws() -> None:
    options = ("--broadcasts", "25", "--rooms", "7", "--members", "15000", "--data-bytes", "3000")
    with running("aws", *options) as port:
        sqs, dynamodb = clients(port, boto3.Session())
        check_queries(port, dynamodb)
        check_writes(port, dynamodb)
        check_queue(port, sqs)
        asyncio.run(check_long_poll(port))


def main() -> None:
    print(f"seed {seed}")
    for tls in (False, True):
        check_splits(tls=tls)
        delays = ("--delay-min-ms", "0", "--delay-max-ms", "2", "--status", "429:0.1", "--status", "410:0.1")
        check_splits(tls=tls, options=delays)
    check_every_byte()
    check_rejections()
    check_mutations("connections", post(b"hello"))
    for target, body in (
        ("DynamoDB_20120810.Query", room_query("r1", ExclusiveStartKey={"pk": {"S": "a"}, "sk": {"S": "b"}})),
        ("AmazonSQS.SendMessageBatch", {"Entries": [{"Id": "1", "MessageBody": "é😀\n"}]}),
        ("AmazonSQS.DeleteMessageBatch", {"Entries": [{"Id": "1", "ReceiptHandle": "AQEB0123456789abcdef12345"}]}),
        (
            "DynamoDB_20120810.BatchGetItem",
            {"RequestItems": {"t": {"Keys": [{"pk": {"S": "settings#r1"}, "sk": {"S": "room"}}] * 2}, "u": {}}},
        ),
    ):
        text = json.dumps(body)
        head = f"POST / HTTP/1.1\r\nX-Amz-Target: {target}\r\nContent-Length: {len(text)}\r\n\r\n"
        check_mutations("aws", (head + text).encode(), "--history-seconds", "3600")
    check_garbage_for_tls()
    check_delay()
    check_service_delays()
    for tls in (False, True):
        check_pages(tls=tls)
    check_aws()
    print("passed")


if __name__ == "__main__":
    main()
