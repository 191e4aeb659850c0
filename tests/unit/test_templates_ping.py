"""The ping of the template api responds like the emulator's, under each reading of what AWS leaves undocumented.

The templates are evaluated as far as they use the Velocity Template Language: one variable, one condition.
"""

import json
import re
from typing import Any

import pytest

from gatecast.emulator.integration import Mock
from local.route_table import PING
from tests.templates import Template

TOKENS = {"TokenIssuer": "https://issuer.example/", "TokenAudience": "gatecast", "TokenSecretArn": "arn:secret"}
ABSENT = ("", '""', "null", None)
"""What `$input.json` may yield for a field that is absent; None leaves the variable without a value."""


def rendered(template: str, payload: str, absent: str | None) -> str:
    """The text that a template yields; `payload` is what `$input` stands for, empty if there is nothing."""
    form = r"#set\(\$ref = \$input\.json\('\$\.ref'\)\)(.*)#if\((\$ref(?: && \$ref != '[^']*')*)\)(.*)#end(.*)"
    found = re.fullmatch(form, template)
    assert found
    before, condition, inside, after = found.groups()
    fields: dict[str, Any] = json.loads(payload or "{}")
    ref = json.dumps(fields["ref"]) if "ref" in fields else absent
    holds = ref is not None and ref not in re.findall(r"!= '([^']*)'", condition)
    return f"{before}{inside.replace('$ref', str(ref)) if holds else ''}{after}"


def templates() -> tuple[str, str]:
    """The templates of the request and of the response."""
    api = Template("api", TOKENS)
    request, response = api.properties("PingMock"), api.properties("PingMockResponse")
    assert request["TemplateSelectionExpression"] == response["TemplateSelectionExpression"] == r"\$default"
    return request["RequestTemplates"]["$default"], response["ResponseTemplates"]["$default"]


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("ref", [{}, {"ref": "a"}, {"ref": 'quoted "$x"'}, {"ref": 7}, {"ref": 0}, {"ref": ["a", 1]}])
def test_the_pong_repeats_ref_whether_the_template_sees_the_request_or_what_it_became(
    ref: dict[str, Any], absent: str | None
) -> None:
    message = json.dumps({"action": "ping", **ref})
    request, response = templates()
    became = rendered(request, message, absent)
    assert json.loads(became) == {"statusCode": 200, **ref}
    for seen in (message, became):
        pong = json.loads(rendered(response, seen, absent))
        assert pong == {"type": "pong", **ref} == json.loads(PING.respond(message))


@pytest.mark.parametrize("absent", ABSENT)
def test_the_pong_has_no_ref_if_the_template_sees_nothing(absent: str | None) -> None:
    assert rendered(templates()[1], "", absent) == PING.respond('{"action":"ping"}') == '{"type":"pong"}'


@pytest.mark.parametrize("ref", ["", None])
def test_an_empty_ref_is_left_out(ref: str | None) -> None:
    message = json.dumps({"action": "ping", "ref": ref})
    request, response = templates()
    for seen in (message, rendered(request, message, "")):
        assert rendered(response, seen, "") == PING.respond(message) == '{"type":"pong"}'


@pytest.mark.parametrize("message", ["", "no JSON", "3", '["ref"]', "[" * 100_000])
def test_a_mock_responds_to_any_message(message: str) -> None:
    assert Mock({"a": 1}, repeats=("ref",)).respond(message) == '{"a":1}'


def test_without_route_responses_the_mock_has_none_either() -> None:
    silent = Template("api", {**TOKENS, "Replies": "no"})
    assert "PingMock" in silent.resources
    assert not {"PingMockResponse", "PingResponse"} & silent.resources.keys()


def test_a_function_takes_the_place_of_the_mock() -> None:
    api = Template("api", {**TOKENS, "PingFunction": "yes"})
    assert not {name for name in api.resources if name.startswith("PingMock")}
    assert api.properties("PingRoute")["Target"] == "integrations/${PingIntegration}"
    assert "Policies" not in api.properties("PingRole"), "it uses no other service"
