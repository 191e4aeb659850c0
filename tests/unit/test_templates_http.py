"""The template of the HTTP API: what is open to whom, and the environment of its functions."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from local import http_api
from routes.http import handlers
from tests.templates import Template

CHECKOUT = Path(__file__).parents[2]
AUTHORIZER = "arn:aws:lambda:us-east-1:000000000000:function:gatecast-authorize"
WITH_CLIENTS = {"AuthorizerFunctionArn": AUTHORIZER}


def functions(**parameters: str) -> dict[str, dict[str, Any]]:
    return Template("http", parameters).of_type("AWS::Lambda::Function")


def test_nothing_can_be_called_without_a_signature_or_a_token() -> None:
    template = Template("http", WITH_CLIENTS)
    routes = {each["RouteKey"]: each for each in template.of_type("AWS::ApiGatewayV2::Route").values()}
    assert {name: each["AuthorizationType"] for name, each in routes.items()} == {
        "ANY /{proxy+}": "AWS_IAM",
        "ANY /client/{proxy+}": "CUSTOM",
    }
    assert routes["ANY /client/{proxy+}"]["AuthorizerId"] == "${TokenAuthorizer}"
    assert "CorsConfiguration" not in template.properties("Api")


def test_each_route_invokes_its_own_function() -> None:
    template = Template("http", WITH_CLIENTS)
    for name, key, handler in (
        ("Backend", "ANY /{proxy+}", handlers.backend),
        ("Client", "ANY /client/{proxy+}", handlers.client),
    ):
        route, integration = template.properties(f"{name}Route"), template.properties(f"{name}Integration")
        assert (route["RouteKey"], route["Target"]) == (key, f"integrations/${{{name}Integration}}")
        assert f"functions/${{{name}.Arn}}/invocations" in integration["IntegrationUri"]
        assert integration["PayloadFormatVersion"] == "2.0"
        module, _, attribute = template.properties(name)["Handler"].rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is handler


def test_tokens_are_verified_by_the_authorizer_of_the_websocket_api_and_results_are_not_kept() -> None:
    authorizer = Template("http", WITH_CLIENTS).properties("TokenAuthorizer")
    assert AUTHORIZER in authorizer["AuthorizerUri"]
    assert authorizer["AuthorizerPayloadFormatVersion"] == "1.0", "which it returns: a policy"
    assert authorizer["AuthorizerResultTtlInSeconds"] == 0
    assert authorizer["IdentitySource"] == ["$request.header.Authorization"]
    outputs = Template("api", {"TokenIssuer": "i", "TokenAudience": "a", "TokenSecretArn": "arn:secret"}).outputs
    assert outputs["AuthorizerFunctionArn"] == "${Authorize.Arn}"


def test_without_an_authorizer_there_is_nothing_for_clients() -> None:
    assert "AuthorizerFunctionArn" not in Template("api", {"Authorizer": "none, anyone may connect"}).outputs
    template = Template("http")
    assert [each["RouteKey"] for each in template.of_type("AWS::ApiGatewayV2::Route").values()] == ["ANY /{proxy+}"]
    assert functions().keys() == {"Backend"}
    assert not template.of_type("AWS::ApiGatewayV2::Authorizer")


def test_the_functions_have_the_variables_that_their_code_reads() -> None:
    """Those of `routes.dependencies` that an operation needs: `tests/integration/test_http_privilege.py` runs all."""
    read = {
        name
        for path in (CHECKOUT / "routes").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(name := node.value, str)
        if re.fullmatch(r"GATECAST_[A-Z_]+", name)
    }
    given = {name: set(each["Environment"]["Variables"]) for name, each in functions(**WITH_CLIENTS).items()}
    common = {"GATECAST_TABLE", "GATECAST_QUEUE_URL", "GATECAST_PAYLOAD_BUCKET"}
    limits = {"GATECAST_JOINS_PER_SECOND", "GATECAST_PUBLISHES_PER_SECOND"}
    powertools = {"POWERTOOLS_METRICS_DISABLED", "POWERTOOLS_SERVICE_NAME"}
    assert given == {"Backend": common | powertools, "Client": common | limits | powertools}
    assert common | limits <= read


def test_the_access_log_has_no_path_and_no_query() -> None:
    logged = set(
        re.findall(r"\$context\.([\w.]+)", Template("http").properties("Stage")["AccessLogSettings"]["Format"])
    )
    assert logged == {
        "requestTime", "requestId", "httpMethod", "routeKey", "identity.sourceIp", "identity.userArn", "status",
        "error.message", "integrationErrorMessage", "authorizer.error",
    }  # fmt: skip


def test_both_rates_are_limited() -> None:
    stage = Template("http", {"HttpRate": "7"}).properties("Stage")
    assert stage["DefaultRouteSettings"] == {"ThrottlingRateLimit": "7", "ThrottlingBurstLimit": "7"}
    assert stage["StageName"] == "$default", "another name would be part of each path"


@pytest.mark.parametrize("parameters", [{}, WITH_CLIENTS])
def test_the_local_stack_has_the_same_paths(parameters: dict[str, str]) -> None:
    keys = {each["RouteKey"] for each in Template("http", parameters).of_type("AWS::ApiGatewayV2::Route").values()}
    assert (f"ANY {http_api.CLIENT_PATH}{{proxy+}}" in keys) == bool(parameters)


def test_a_caller_s_policy_covers_this_api_alone() -> None:
    template = Template("http")
    (statement,) = template.properties("CallerPolicy")["PolicyDocument"]["Statement"]
    assert statement["Action"] == "execute-api:Invoke"
    assert statement["Resource"] == f"{template.outputs['HttpApiArn']}/*"
