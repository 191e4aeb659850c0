import pytest

from gatecast import room_settings
from gatecast.room_settings import SettingsItem
from local.options import MAX_HISTORY_SECONDS, MAX_PRESENCE, parse
from routes.environment import OPEN_ACCESS


def test_defaults_are_one_open_worker_on_a_fixed_port() -> None:
    options = parse([], {})
    assert (options.workers, options.port, options.fifo) == (1, 4510, False)
    assert (options.authorizer, options.own_issuer, options.allowed_origins) == (False, False, ())
    assert options.room_settings == {}


def test_options_take_effect() -> None:
    arguments = ["--workers", "2", "--port", "0", "--authorizer", "required", "--allow-origin", "http://localhost:1"]
    options = parse(arguments, {})
    assert (options.workers, options.port, options.authorizer) == (2, 0, True)
    assert options.allowed_origins == ("http://localhost:1",)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--history-seconds", "3600", "--presence", "100"], {"history_seconds": 3_600, "presence": 100}),
        (["--presence", "1000"], {"presence": 1_000}),
        (["--history-seconds", "0"], {}),
    ],
)
def test_history_and_presence_are_settings_of_all_rooms(arguments: list[str], expected: dict[str, int]) -> None:
    assert parse(arguments, {}).room_settings == expected
    settings = SettingsItem.from_item({name: {"N": str(value)} for name, value in expected.items()})
    assert {name: value for name, value in settings._asdict().items() if value is not None} == expected


def test_the_settings_have_the_limits_of_the_table() -> None:
    assert (MAX_HISTORY_SECONDS, MAX_PRESENCE) == (room_settings.MAX_HISTORY_SECONDS, room_settings.MAX_PRESENCE)


@pytest.mark.parametrize(
    ("value", "expected"), [("required", True), (OPEN_ACCESS, False), ("none", False), ("", False)]
)
def test_the_routes_own_variable_takes_effect(value: str, expected: bool) -> None:
    assert parse([], {"GATECAST_AUTHORIZER": value}).authorizer is expected


def test_the_option_overrides_the_variable() -> None:
    assert not parse(["--authorizer", "none"], {"GATECAST_AUTHORIZER": "required"}).authorizer


def test_an_issuer_of_ones_own_takes_effect() -> None:
    variables = {
        "GATECAST_TOKEN_ISSUER": "https://issuer.example/",
        "GATECAST_TOKEN_AUDIENCE": "x",
        "GATECAST_TOKEN_JWKS_URL": "https://issuer.example/keys",
    }
    assert parse(["--authorizer", "required"], variables).own_issuer


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--port", "abc"], {}, "'abc' is not a whole number from 0 to 65535"),
        (["--port", "65536"], {}, "'65536' is not a whole number"),
        (["--port", "-1"], {}, "--port"),
        (["--workers", "65"], {}, "'65' is not a whole number from 0 to 64"),
        (["--workers", ""], {}, "'' is not a whole number"),
        (["--history-seconds", "604801"], {}, "'604801' is not a whole number from 0 to 604800"),
        (["--presence", "-1"], {}, "--presence"),
        (["--presence", "many"], {}, "'many' is not a whole number from 0 to 1000"),
        (["--authorizer", "yes"], {}, "'yes' is neither 'none' nor 'required'"),
        ([], {"GATECAST_AUTHORIZER": "yes"}, "GATECAST_AUTHORIZER: 'yes' is neither 'none' nor 'required'"),
        ([], {"GATECAST_TABLE": "mine", "GATECAST_HTTP_PORT": "1"}, "unset GATECAST_TABLE GATECAST_HTTP_PORT"),
        ([], {"GATECAST_TOKEN_ISSUER": "x"}, "GATECAST_TOKEN_ISSUER has an effect only with --authorizer required"),
        (["--authorizer", "required"], {"GATECAST_TOKEN_ISSUER": "x"}, "set all of GATECAST_TOKEN_ISSUER, "),
        (["--authorizer", "required"], {"GATECAST_TOKEN_SECRET_ARN": "x"}, "unset GATECAST_TOKEN_SECRET_ARN"),
    ],
)
def test_what_is_invalid_or_would_be_ignored_is_named(
    arguments: list[str], variables: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments, variables)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
