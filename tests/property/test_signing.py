"""Signatures are byte for byte identical to botocore's."""

import datetime as dt
import re
from unittest.mock import patch

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials
from hypothesis import given
from hypothesis import strategies as st

from tests.property.strategies import connection_ids
from worker.settings import Settings
from worker.transport.signing import Address, Credentials, Signer, wire_id

REQUIRED = {"GATECAST_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/1/q", "GATECAST_TABLE": "table"}
SECRETS = st.text("abcXYZ0189+/=", min_size=1, max_size=100)
BASE_PATHS = st.lists(
    st.text("abcXYZ019._~-$+!*'()", min_size=1, max_size=8).filter(lambda each: each not in (".", "..")), max_size=3
).map(lambda segments: "".join(f"/{each}" for each in segments))
ENDPOINTS = BASE_PATHS.map("https://ws.example.com{}".format) | st.sampled_from([
    "https://abc123.execute-api.eu-west-1.amazonaws.com/live",
    "https://ws.example.com",
    "https://ws.example.com/chat/v1",
    "https://WS.Example.com:8443/chat",
    "http://127.0.0.1:4510/dev~1",
    "http://[::1]:4510/dev",
])  # fmt: skip


def connections_endpoint(url: str) -> str:
    """The endpoint as the worker's configuration accepts it."""
    return Settings.from_environ({**REQUIRED, "GATECAST_CONNECTIONS_ENDPOINT": url}).connections_endpoint


def botocore_request(url: str, body: bytes, credentials: Credentials, region: str, second: int) -> AWSRequest:
    request = AWSRequest("POST", url, data=body)
    signer = botocore.auth.SigV4Auth(SdkCredentials(*credentials), "execute-api", region)
    now = dt.datetime.fromtimestamp(second, dt.UTC)
    with patch("botocore.auth.get_current_datetime", return_value=now):
        signer.add_auth(request)
    return request


@given(
    endpoint=ENDPOINTS,
    ids=st.lists(connection_ids() | st.sampled_from([".", "..", "a/b", "%", "é=", "~-_"]), min_size=1, max_size=4),
    body=st.binary(max_size=300),
    access_key=st.text("ABC012", min_size=1, max_size=20),
    secret_key=SECRETS,
    token=st.none() | st.text("abc/+=12", min_size=1, max_size=1500),
    region=st.sampled_from(["us-east-1", "ap-southeast-2", "cn-north-1"]),
    seconds=st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=3),
)
def test_signatures_match_botocore(
    endpoint: str,
    ids: list[str],
    body: bytes,
    access_key: str,
    secret_key: str,
    token: str | None,
    region: str,
    seconds: list[int],
) -> None:
    credentials = Credentials(access_key, secret_key, token)
    address = Address.from_url(connections_endpoint(endpoint))
    signer = Signer(address, region, "execute-api")
    signer.use(credentials)
    for second in seconds:
        prepared = signer.prepare(f"{address.path}/@connections/", {}, body, second)
        for connection_id in ids:
            head, _, sent_body = prepared.request(connection_id).partition(b"\r\n\r\n")
            request_line, *header_lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in header_lines)
            path = f"{address.path}/@connections/{wire_id(connection_id)}"

            expected = botocore_request(f"{address.scheme}://{address.host}{path}", body, credentials, region, second)

            assert request_line == f"POST {path} HTTP/1.1"
            assert headers["authorization"] == expected.headers["Authorization"]
            assert headers["x-amz-date"] == expected.headers["X-Amz-Date"]
            assert headers.get("x-amz-security-token") == expected.headers.get("X-Amz-Security-Token")
            assert sent_body == body
            assert headers["content-length"] == str(len(body))
            assert headers["host"] == address.host


@given(connection_ids())
def test_a_connection_id_is_a_single_path_segment(connection_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", wire_id(connection_id))
    assert wire_id(connection_id) not in (".", "..")


def test_new_credentials_change_the_signature_and_the_generation() -> None:
    signer = Signer(Address.from_url("https://ws.example.com"), "eu-west-1", "execute-api")
    signer.use(Credentials("a", "b"))
    before, generation = signer.prepare("/@connections/", {}, b"x", 1).request("id="), signer.generation
    signer.use(Credentials("a", "b"))
    assert signer.generation == generation
    signer.use(Credentials("a", "c"))
    assert signer.generation != generation
    assert signer.prepare("/@connections/", {}, b"x", 1).request("id=") != before
