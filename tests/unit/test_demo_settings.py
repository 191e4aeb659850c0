import pytest

from local.demo.settings import ConfigurationError, Settings


def test_defaults() -> None:
    expected = Settings(clients=1_000, rooms=20, messages=200, keep=False)
    assert Settings.from_environ({}) == expected
    assert Settings.from_environ({"CLIENTS": "", "ROOMS": "", "MESSAGES": "", "KEEP": ""}) == expected


def test_everything_set() -> None:
    environ = {"CLIENTS": "5000", "ROOMS": "7", "MESSAGES": "1", "KEEP": "1"}
    assert Settings.from_environ(environ) == Settings(clients=5_000, rooms=7, messages=1, keep=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLIENTS", "many"),
        ("CLIENTS", "9"),
        ("CLIENTS", "10001"),
        ("CLIENTS", "-1"),
        ("CLIENTS", "1e3"),
        ("CLIENTS", " 100"),
        ("CLIENTS", "\uff11\uff10\uff10"),
        ("CLIENTS", "9" * 5_000),
        ("ROOMS", "0"),
        ("ROOMS", "501"),
        ("MESSAGES", "0"),
        ("MESSAGES", "100001"),
        ("KEEP", "yes"),
        ("KEEP", "2"),
    ],
)
def test_invalid_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_environ({name: value})
    assert str(error.value).startswith(f"{name}=")
    assert "\n" not in str(error.value)
