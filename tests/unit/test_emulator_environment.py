"""What handlers in the emulator's process find in their environment."""

import os
from pathlib import Path

import pytest

from gatecast.emulator.environment import variables

ADDRESSES = {"endpoint": "http://127.0.0.1:1/local", "url": "ws://127.0.0.1:1/local", "region": "eu-west-1"}


@pytest.fixture
def nobody(tmp_path: Path) -> dict[str, str]:
    """The environment of a reader without any configuration for AWS."""
    return {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}


def test_addresses_are_filled_in(nobody: dict[str, str]) -> None:
    given = {"CALLBACK": "{endpoint}", "URL": "{url}?a={b}", "HOST": "{host}"}
    added = variables(given, **ADDRESSES, environ=nobody)
    assert added["CALLBACK"] == "http://127.0.0.1:1/local"
    assert added["URL"] == "ws://127.0.0.1:1/local?a={b}"
    assert added["HOST"] == "127.0.0.1:1"
    assert added["AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI"] == "http://127.0.0.1:1/local"


def test_an_sdk_without_credentials_and_region_gets_invented_ones(nobody: dict[str, str]) -> None:
    added = variables({}, **ADDRESSES, environ=nobody)
    assert (added["AWS_ACCESS_KEY_ID"], added["AWS_REGION"], added["AWS_DEFAULT_REGION"]) == (
        "local",
        "eu-west-1",
        "eu-west-1",
    )


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"])
def test_the_readers_own_credentials_stay(nobody: dict[str, str], name: str) -> None:
    added = variables({}, **ADDRESSES, environ={**nobody, name: "own"})
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & added.keys()


def test_credentials_in_a_file_stay(nobody: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]")
    own = {**nobody, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    assert "AWS_ACCESS_KEY_ID" not in variables({}, **ADDRESSES, environ=own)


def test_the_readers_own_region_and_endpoint_stay(nobody: dict[str, str]) -> None:
    own = {**nobody, "AWS_DEFAULT_REGION": "us-west-2", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI": "http://other"}
    added = variables({}, **ADDRESSES, environ=own)
    assert added["AWS_REGION"] == "us-west-2"
    assert not {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI"} & added.keys()


def test_nothing_is_written_to_the_environment_itself(nobody: dict[str, str]) -> None:
    before = dict(os.environ)
    variables({"NEW": "1"}, **ADDRESSES, environ=nobody)
    assert dict(os.environ) == before
