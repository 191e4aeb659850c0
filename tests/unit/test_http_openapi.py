"""docs/openapi.yaml describes the functions as they are, and docs/reference-http.md is made from it."""

import json
import re
from typing import Any, cast

import msgspec
import pytest
from jsonschema import Draft202012Validator, ValidationError

from gatecast import InvalidBroadcast, Publication
from gatecast.broadcast import MAX_CONNECTIONS, MAX_NAME_LENGTH
from gatecast.publisher import publication
from gatecast.publisher.publication import Destination, prepare
from gatecast.rooms.kicking import MAX_REVOKED_SECONDS
from routes.http import backend, client, messages
from routes.http.problems import _STATUSES, problem
from routes.requests import MAX_LIMIT
from routes.responses import RequestRejected
from tests import http_reference, openapi
from tests.openapi import check_body, document, operations, resolved


def test_the_reference_is_current() -> None:
    assert http_reference.FILE.read_text() == http_reference.text(), "run: .venv/bin/python -m tests.http_reference"


def test_every_operation_is_described_and_nothing_else() -> None:
    ours = {("", each) for each in backend.OPERATIONS} | {("client_", each) for each in client.OPERATIONS}
    described = {(each.method, each.path): each.operation["operationId"] for each in operations()}
    assert described == {(each.method, each.path): f"{prefix}{each.name}" for prefix, each in ours}


def test_what_is_below_client_needs_a_token_and_everything_else_iam() -> None:
    for each in operations():
        security = each.operation.get("security", document()["security"])
        assert security == ([{"token": []}] if each.path.startswith("/client/") else [{"iam": []}])
        assert ("401" in each.responses) == each.path.startswith("/client/")


def test_every_error_can_be_described() -> None:
    codes = document()["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert sorted(codes) == sorted(code.value for code in _STATUSES)
    content = document()["components"]["responses"]["problem"]["content"]
    for code in _STATUSES:
        response = problem(RequestRejected(code, "why", retry_after_seconds=3))
        check_body(content, response["headers"]["content-type"], response["body"].encode())


def test_the_example_of_an_error_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", document()["info"]["description"], re.DOTALL)
    content = document()["components"]["responses"]["problem"]["content"]
    check_body(content, "application/problem+json", example.encode())


def test_limits_are_those_of_the_code() -> None:
    parameters, schemas = document()["components"]["parameters"], document()["components"]["schemas"]
    assert parameters["limit"]["schema"]["maximum"] == parameters["limit"]["schema"]["default"] == MAX_LIMIT
    assert parameters["expiresIn"]["schema"]["maximum"] == publication._MAX_EXPIRY_SECONDS
    assert schemas["Broadcast"]["properties"]["expires_in"] | {"description": ""} == {
        **parameters["expiresIn"]["schema"],
        "description": "",
    }
    assert schemas["Broadcasts"]["properties"]["broadcasts"]["maxItems"] == messages.MAX_BROADCASTS
    assert schemas["Broadcast"]["properties"]["connections"]["maxItems"] == MAX_CONNECTIONS
    assert schemas["Broadcast"]["properties"]["delay"]["maximum"] == publication.MAX_DELAY_SECONDS
    assert schemas["Disconnect"]["properties"]["for_seconds"]["maximum"] == MAX_REVOKED_SECONDS
    assert schemas["Name"]["pattern"] == f"^[!-~]{{1,{MAX_NAME_LENGTH}}}$"


@pytest.mark.parametrize(("name", "struct"), [("Broadcast", messages._Item), ("CloudEvent", messages._CloudEvent)])
def test_bodies_have_the_fields_that_are_read(name: str, struct: Any) -> None:
    assert set(document()["components"]["schemas"][name]["properties"]) == set(struct.__struct_encode_fields__)


@pytest.mark.parametrize(
    "broadcast",
    [
        {"room": "a", "data": "x"},
        {"user": "ann", "json": None, "id": "1", "expires_in": 1.5},
        {"connections": ["c="], "json": [1], "from": "shop", "except": [], "delay": 900},
        {"room": "a"},
        {"data": "x"},
        {"room": "a", "user": "b", "data": "x"},
        {"room": "a", "data": "x", "json": 1},
        {"room": "a b", "data": "x"},
        {"room": "a", "data": "", "id": "1"},
        {"room": "a", "data": "x", "expires_in": 0},
        {"room": "a", "data": "x", "delay": 901},
        {"room": "a", "data": "x", "text": "x"},
        {"room": "a", "data": "x", "id": 7},
    ],
)
def test_a_broadcast_is_described_as_valid_if_it_is(broadcast: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/Broadcast", "components": document()["components"]}
    try:
        encoded = msgspec.Raw(json.dumps(broadcast).encode())
        fields = cast("Publication", messages.publication_of(encoded))
        prepare(fields, Destination(fifo=False), now_ms=1_700_000_000_000)
    except (InvalidBroadcast, RequestRejected):
        with pytest.raises(ValidationError):
            Draft202012Validator(schema).validate(broadcast)
    else:
        Draft202012Validator(schema).validate(broadcast)


def test_references_lead_somewhere_and_everything_is_used() -> None:
    text = openapi.FILE.read_text()
    used = set(re.findall(r'\$ref: "(#/[^"]+)"', text))
    for reference in used:
        assert resolved({"$ref": reference})
    defined = {
        f"#/components/{kind}/{name}"
        for kind, each in document()["components"].items()
        if kind != "securitySchemes"
        for name in each
    }
    assert used == defined
