"""Templates of SAM and CloudFormation: what is read, what is left out, and what each mistake gets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gatecast.emulator.config import Config, ConfigurationError
from gatecast.emulator.integration import Mock, Route, Unavailable
from gatecast.emulator.intrinsics import Template
from gatecast.emulator.python_code import PythonHandler
from gatecast.emulator.remote import HttpProxy, LambdaFunction
from gatecast.emulator.template import read_template

CHECKOUT = Path(__file__).parents[2]
INVOKE = "http://127.0.0.1:3001"
HEAD = """
Parameters:
  Stage: { Type: String, Default: prod }
  Admin: { Type: String, Default: "no" }
Conditions:
  IsAdmin: !Equals [!Ref Admin, "yes"]
Mappings:
  Tables: { prod: { name: chat-prod }, dev: { name: chat-dev } }
Globals:
  Function:
    Runtime: python3.13
    Environment:
      Variables:
        ENDPOINT: !Sub "https://${Api}.execute-api.${AWS::Region}.amazonaws.com/${Stage}"
        LOG_LEVEL: debug
"""
API = """
  Api:
    Type: AWS::ApiGatewayV2::Api
    Properties: { Name: chat, ProtocolType: WEBSOCKET, RouteSelectionExpression: $request.body.kind }
  Stage:
    Type: AWS::ApiGatewayV2::Stage
    Properties: { ApiId: !Ref Api, StageName: !Ref Stage }
"""
URI = "arn:aws:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/${%s.Arn}/invocations"


def route(name: str, key: str, function: str, **properties: Any) -> str:
    """A route and its integration, as JSON, which is YAML as well."""
    integration = {
        "ApiId": {"Ref": "Api"},
        "IntegrationType": "AWS_PROXY",
        "IntegrationUri": {"Fn::Sub": URI % function},
    }
    target = {"Fn::Join": ["/", ["integrations", {"Ref": f"{name}Integration"}]]}
    given = {"ApiId": {"Ref": "Api"}, "RouteKey": key, "Target": target, **properties}
    return (
        f"  {name}: {json.dumps({'Type': 'AWS::ApiGatewayV2::Route', 'Properties': given})}\n"
        f"  {name}Integration: {json.dumps({'Type': 'AWS::ApiGatewayV2::Integration', 'Properties': integration})}\n"
    )


def function(name: str, **properties: Any) -> str:
    return f"  {name}: {json.dumps({'Type': 'AWS::Serverless::Function', 'Properties': properties})}\n"


def read(tmp_path: Path, resources: str, *, head: str = HEAD, of_api: str = API, **options: Any) -> Config:
    path = tmp_path / "template.yaml"
    path.write_text(f"{head}\nResources:\n{of_api}{resources}")
    return read_template(path, **options)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "app.py").write_text("def handler(event, context):\n    return {'statusCode': 200}\n")
    return "src/"


def test_routes_run_python_functions_here_and_others_behind_the_invoke_api(tmp_path: Path, source: str) -> None:
    resources = (
        function("On", CodeUri=source, Handler="app.handler")
        + function("Send", CodeUri="js/", Handler="index.handler", Runtime="nodejs22.x", FunctionName="chat-send")
        + function("Tell", PackageType="Image", ImageUri="tell:latest", Runtime="")
        + route("Connect", "$connect", "On")
        + route("SendRoute", "send", "Send", RouteResponseSelectionExpression="$default")
        + route("TellRoute", "tell", "Tell")
        + "  Responding: { Type: AWS::ApiGatewayV2::RouteResponse,"
        " Properties: { ApiId: !Ref Api, RouteId: !Ref TellRoute, RouteResponseKey: $default } }\n"
    )
    config = read(tmp_path, resources, invoke_endpoint=INVOKE)
    assert isinstance(config.routes["$connect"].integration, PythonHandler)
    assert config.routes["send"] == Route(LambdaFunction.at(INVOKE, "chat-send"), response=True)
    assert config.routes["tell"] == Route(LambdaFunction.at(INVOKE, "Tell"), response=True)
    assert config.stage == "prod"
    assert config.selection.key('{"kind": "send"}') == "send"
    assert config.environment == {"ENDPOINT": "{endpoint}", "LOG_LEVEL": "debug"}
    assert config.left_out == []
    config.folders[0].load()


def test_conditions_and_parameters_decide_what_there_is(tmp_path: Path, source: str) -> None:
    resources = function("On", CodeUri=source, Handler="app.handler") + route("Send", "send", "On")
    admin = route("Admin", "admin", "On").replace('"Type"', '"Condition": "IsAdmin", "Type"')
    assert set(read(tmp_path, resources + admin).routes) == {"send"}
    config = read(tmp_path, resources + admin, parameters={"Admin": "yes", "Stage": "dev"})
    assert set(config.routes) == {"send", "admin"}
    assert config.stage == "dev"


def test_an_authorizer_and_its_identity_sources(tmp_path: Path, source: str) -> None:
    resources = (
        function("On", CodeUri=source, Handler="app.handler")
        + route("Connect", "$connect", "On", AuthorizationType="CUSTOM", AuthorizerId={"Ref": "Auth"})
        + "  Auth:\n    Type: AWS::ApiGatewayV2::Authorizer\n    Properties:\n      ApiId: !Ref Api\n"
        "      AuthorizerType: REQUEST\n      IdentitySource: [route.request.querystring.token]\n"
        f'      AuthorizerUri: !Sub "{URI % "On"}"\n'
    )
    authorizer = read(tmp_path, resources).authorizer
    assert authorizer
    assert isinstance(authorizer.handler, PythonHandler)
    assert authorizer.identity_sources == ("route.request.querystring.token",)


@pytest.mark.parametrize("kind", ["AWS_IAM", "JWT"])
def test_an_authorization_that_is_not_emulated_lets_nobody_in(tmp_path: Path, source: str, kind: str) -> None:
    resources = function("On", CodeUri=source, Handler="app.handler")
    config = read(tmp_path, resources + route("Connect", "$connect", "On", AuthorizationType=kind))
    assert config.authorizer
    assert isinstance(config.authorizer.handler, Unavailable)
    assert config.left_out == [f"authorizer of $connect: {kind} is not emulated; it fails when it is invoked"]


def test_an_http_proxy_with_its_parameters(tmp_path: Path) -> None:
    integration = """
  Route:
    Type: AWS::ApiGatewayV2::Route
    Properties: { ApiId: !Ref Api, RouteKey: send, Target: !Sub "integrations/${Proxy}" }
  Proxy:
    Type: AWS::ApiGatewayV2::Integration
    Properties:
      ApiId: !Ref Api
      IntegrationType: HTTP_PROXY
      IntegrationUri: http://127.0.0.1:5000/send
      IntegrationMethod: PUT
      RequestParameters:
        integration.request.header.ConnectionId: context.connectionId
        integration.request.path.room: route.request.body.room
"""
    config = read(tmp_path, integration)
    parameters = {"integration.request.header.ConnectionId": "context.connectionId"}
    assert config.routes["send"].integration == HttpProxy("http://127.0.0.1:5000/send", "PUT", parameters)
    assert config.left_out == ["route send: request parameter integration.request.path.room: route.request.body.room"]


@pytest.mark.parametrize(
    ("text", "integration"),
    [
        ('{"type": "pong"}', Mock({"type": "pong"})),
        ('{"type": "pong", "id": "$context.connectionId"}', None),
        ("#set($a = 1){}", None),
    ],
)
def test_a_mock_responds_with_a_template_that_has_no_variables(
    tmp_path: Path, text: str, integration: Mock | None
) -> None:
    resources = f"""
  Route:
    Type: AWS::ApiGatewayV2::Route
    Properties: {{ ApiId: !Ref Api, RouteKey: ping, Target: !Sub "integrations/${{Mock}}" }}
  Mock: {{ Type: AWS::ApiGatewayV2::Integration, Properties: {{ ApiId: !Ref Api, IntegrationType: MOCK }} }}
  Response:
    Type: AWS::ApiGatewayV2::IntegrationResponse
    Properties:
      ApiId: !Ref Api
      IntegrationId: !Ref Mock
      IntegrationResponseKey: $default
      ResponseTemplates: {{ $default: {json.dumps(text)} }}
"""
    config = read(tmp_path, resources)
    found = config.routes["ping"].integration
    assert found == integration or (integration is None and isinstance(found, Unavailable))
    assert bool(config.left_out) == (integration is None)


def test_what_is_left_out_is_listed(tmp_path: Path, source: str) -> None:
    resources = (
        function(
            "On",
            CodeUri=source,
            Handler="app.handler",
            Layers=["arn:aws:lambda:us-east-1:1:layer:x:1"],
            Environment={
                "Variables": {
                    "TABLE": {"Ref": "Table"},
                    "MAPPED": {"Fn::FindInMap": ["Tables", {"Ref": "Stage"}, "name"]},
                    "SHARED": {"Fn::ImportValue": "elsewhere"},
                }
            },
        )
        + function("Send", Runtime="nodejs22.x", CodeUri="js/", Handler="index.handler")
        + route("Connect", "$connect", "On", ApiKeyRequired=True)
        + route("SendRoute", "send", "Send")
        + "  Table: { Type: AWS::DynamoDB::Table }\n"
        "  Second: { Type: AWS::ApiGatewayV2::Stage, Properties: { ApiId: !Ref Api, StageName: test } }\n"
    )
    elsewhere = "Send (nodejs22.x) is no Python function with its code in a folder: run it elsewhere, and give"
    config = read(tmp_path, resources)
    assert config.environment["TABLE"] == "Table"
    assert config.environment["MAPPED"] == "chat-prod"
    assert "SHARED" not in config.environment
    assert config.left_out == [
        "route $connect: ApiKeyRequired",
        f"route send: {elsewhere} --invoke-endpoint; it fails when it is invoked",
        "stage test",
        "1 resources that are no part of the API: AWS::DynamoDB::Table",
        "function On: variable TABLE is 'Table': Table (AWS::DynamoDB::Table) is not emulated",
        'function On: variable SHARED: Fn::ImportValue: it is not supported, in "elsewhere"',
        "function On: Layers",
    ]


def test_sam_s_own_websocket_api(tmp_path: Path, source: str) -> None:
    api = """
  Api:
    Type: AWS::Serverless::WebSocketApi
    Properties:
      RouteSelectionExpression: $request.body.action
      Auth: { AuthType: CUSTOM, AuthArn: !GetAtt On.Arn, IdentitySource: [route.request.header.Auth] }
      Routes:
        $connect: { FunctionArn: !GetAtt On.Arn }
        send: { FunctionArn: !Sub "${On.Arn}", RouteResponseSelectionExpression: $default, IntegrationTimeout: 1000 }
"""
    config = read(tmp_path, function("On", CodeUri=source, Handler="app.handler"), of_api=api)
    assert {key: each.response for key, each in config.routes.items()} == {"$connect": False, "send": True}
    assert all(isinstance(each.integration, PythonHandler) for each in config.routes.values())
    assert config.authorizer
    assert config.authorizer.identity_sources == ("route.request.header.Auth",)
    assert config.stage == "default"
    assert config.left_out == ["route send: IntegrationTimeout"]


def test_inline_code_and_aliases(tmp_path: Path) -> None:
    inline = "def handler(event, context):\n    return 1\n"
    resources = (
        "  Inline: "
        + json.dumps(
            {
                "Type": "AWS::Lambda::Function",
                "Properties": {"Runtime": "python3.13", "Handler": "index.handler", "Code": {"ZipFile": inline}},
            }
        )
        + "\n  Live: { Type: AWS::Lambda::Alias, Properties: { FunctionName: !Ref Inline, Name: live } }\n"
        + route("Send", "send", "Inline").replace("${Inline.Arn}", "${Live}")
    )
    config = read(tmp_path, resources, head="")
    handler = config.routes["send"].integration
    assert isinstance(handler, PythonHandler)
    assert handler({}, None) == 1


def test_an_asset_of_the_cdk_is_the_function_s_folder(tmp_path: Path, source: str) -> None:
    code = {"Runtime": "python3.13", "Handler": "app.handler", "Code": {"S3Bucket": "assets", "S3Key": "x.zip"}}
    resource = {"Type": "AWS::Lambda::Function", "Properties": code, "Metadata": {"aws:asset:path": source}}
    config = read(tmp_path, f"  On: {json.dumps(resource)}\n{route('Send', 'send', 'On')}", head="")
    handler = config.routes["send"].integration
    assert isinstance(handler, PythonHandler)
    assert handler({}, None) == {"statusCode": 200}


def test_the_probe_s_own_template_is_read() -> None:
    config = read_template(CHECKOUT / "deploy" / "verify" / "probe.yaml", api="AuthorizedApi")
    assert set(config.routes) == {"$connect", "echo"}
    assert config.authorizer
    assert config.authorizer.identity_sources == ()


@pytest.mark.parametrize(
    ("resources", "options", "error"),
    [
        ("", {}, r"Api: the API has no routes"),
        (
            "  Other: { Type: AWS::ApiGatewayV2::Api, Properties: { ProtocolType: WEBSOCKET } }",
            {},
            r"--api, of Api, Ot",
        ),
        ("", {"api": "Ap"}, r"there is no WebSocket API Ap: choose one with --api, of Api"),
        ("", {"parameters": {"Stag": "x"}}, r"Parameters: there is no Stag; there are: Stage, Admin"),
        (
            "  Send: { Type: AWS::ApiGatewayV2::Route, Properties: { ApiId: !Ref Api, RouteKey: a, Target: b } }",
            {},
            r"Send: its Target is 'b', which is no integration",
        ),
        (
            "  Send: { Type: AWS::ApiGatewayV2::Route, Properties: { ApiId: !Ref Nothing, RouteKey: a } }",
            {},
            r"Ref: there is no Nothing, or its condition does not hold",
        ),
        ("  X: { Type: A, Condition: Nothing }", {}, r"Conditions: there is no Nothing"),
    ],
)
def test_a_mistake_is_reported(tmp_path: Path, resources: str, options: Mapping[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"template\.yaml: .*{error}") as raised:
        read(tmp_path, resources, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", r"it is not YAML: "),
        ("[]", r"it is no template: there are no Resources"),
        ("Resources: 1", r"no templ"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=error):
        read_template(path)


INTRINSICS = """
Parameters:
  Name: { Type: String, Default: chat }
  Zones: { Type: CommaDelimitedList, Default: "a, b" }
  Wanted: { Type: String }
  Secret: { Type: "AWS::SSM::Parameter::Value<String>", Default: /secret }
Conditions:
  Chat: !Equals [!Ref Name, chat]
  Never: !And [!Condition Chat, !Not [!Condition Chat]]
  Either: !Or [!Condition Never, !Condition Chat]
Resources:
  Table: { Type: AWS::DynamoDB::Table, Properties: { TableName: !Sub "${Name}-table" } }
  On: { Type: AWS::Serverless::Function, Properties: { FunctionName: on } }
"""


@pytest.mark.parametrize(
    ("value", "resolved"),
    [
        ({"Ref": "Name"}, "chat"),
        ({"Ref": "Zones"}, ["a", "b"]),
        ({"Ref": "Table"}, "chat-table"),
        ({"Ref": "AWS::Region"}, "eu-west-1"),
        ({"Fn::GetAtt": "On.Arn"}, "arn:aws:lambda:eu-west-1:000000000000:function:On"),
        ({"Fn::GetAtt": ["On", "Arn"]}, "arn:aws:lambda:eu-west-1:000000000000:function:On"),
        ({"Fn::GetAtt": "Table.StreamArn"}, "Table.StreamArn"),
        ({"Fn::Sub": "${Name}-${!literal}-${AWS::Partition}"}, "chat-${literal}-aws"),
        ({"Fn::Sub": ["${Name}-${x}", {"x": {"Ref": "Name"}}]}, "chat-chat"),
        ({"Fn::Join": ["/", [{"Ref": "Name"}, "x"]]}, "chat/x"),
        ({"Fn::Select": ["1", {"Ref": "Zones"}]}, "b"),
        ({"Fn::Split": ["-", "a-b"]}, ["a", "b"]),
        ({"Fn::If": ["Either", "yes", "no"]}, "yes"),
        ({"Fn::If": ["Never", "yes", {"Ref": "AWS::NoValue"}]}, None),
        ({"a": {"Fn::If": ["Never", 1, {"Ref": "AWS::NoValue"}]}, "b": [{"Ref": "AWS::NoValue"}, 2]}, {"b": [2]}),
        ({"Fn::Base64": "x"}, "eA=="),
        (True, True),
    ],
)
def test_intrinsic_functions(tmp_path: Path, value: Any, resolved: Any) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(INTRINSICS)
    assert Template(path, {}, region="eu-west-1").resolve(value) == resolved


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"Ref": "Wanted"}, r"Parameters: Wanted has no default here: give --parameter Wanted=VALUE"),
        ({"Ref": "Secret"}, r"Secret has no default here"),
        ({"Fn::Transform": {}}, r"Fn::Transform: it is not supported"),
        ({"Fn::Select": ["7", ["a"]]}, r"Fn::Select: IndexError"),
        ({"Fn::FindInMap": ["Nothing", "a", "b"]}, r"Fn::FindInMap: KeyError"),
        ({"Fn::GetAtt": "Nothing.Name"}, r"Fn::GetAtt: there is no Nothing"),
    ],
)
def test_values_that_cannot_be_resolved_are_named(tmp_path: Path, value: Any, error: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(INTRINSICS)
    with pytest.raises(ConfigurationError, match=error):
        Template(path, {}, region="eu-west-1").resolve(value)
