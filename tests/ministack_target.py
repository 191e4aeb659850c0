"""ministack's own WebSocket APIs as a target of `deploy.verify`: the same function and routes, made by API calls.

Its CloudFormation does not make the template as a whole.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import boto3

from deploy.verify.target import Durations, Events, Stage, Target
from deploy.verify.wire import Keys
from local.aws_environment import CREDENTIALS, REGION
from local.ministack import Ministack

SERVICES: Final = ("apigateway", "execute-api", "iam", "lambda", "logs", "sqs")
DURATIONS: Final = Durations(settle_seconds=4.0, hold_seconds=1.0)
_FUNCTION: Final = Path(__file__).parents[1] / "deploy" / "verify" / "function.py"
_BOTO3: Final = """
import botocore.session

def client(name):
    return botocore.session.get_session().create_client(name)
"""
"""As far as the function needs it: ministack runs functions in its own environment, which has only botocore."""
_ROLE: Final = "arn:aws:iam::000000000000:role/probe"
_RESPONDING: Final = ("echo", "quiet", "sized")


@contextmanager
def ministack_target() -> Iterator[Target]:
    """A running ministack with the probe's two APIs."""
    with Ministack.start(services=SERVICES) as ministack:
        session = boto3.session.Session(CREDENTIALS.access_key_id, CREDENTIALS.secret_access_key, region_name=REGION)
        clients = {name: session.client(name, endpoint_url=ministack.url) for name in ("apigatewayv2", "lambda", "sqs")}
        try:
            queue_url = clients["sqs"].create_queue(QueueName="events")["QueueUrl"]
            function = _deployed(clients["lambda"], queue_url)
            gateway = clients["apigatewayv2"]
            keys = Keys(CREDENTIALS.access_key_id, CREDENTIALS.secret_access_key)
            yield Target(
                main=_api(gateway, function, ministack.url, authorized=False),
                authorized=_api(gateway, function, ministack.url, authorized=True),
                events=Events(clients["sqs"], queue_url),
                keys=lambda: keys,
                region=REGION,
                now=lambda: datetime.now(UTC),
                durations=DURATIONS,
            )
        finally:
            for client in clients.values():
                client.close()


def _deployed(client: Any, queue_url: str) -> str:
    """The ARN of the function."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.py", _FUNCTION.read_text())
        archive.writestr("boto3.py", _BOTO3)
    arn: str = client.create_function(
        FunctionName="probe",
        Runtime="python3.13",
        Handler="index.handler",
        Role=_ROLE,
        Timeout=29,
        Code={"ZipFile": code.getvalue()},
        Environment={"Variables": {"QUEUE_URL": queue_url}},
    )["FunctionArn"]
    return arn


def _api(gateway: Any, function: str, url: str, *, authorized: bool) -> Stage:
    api = gateway.create_api(Name="probe", ProtocolType="WEBSOCKET", RouteSelectionExpression="$request.body.action")
    api_id = api["ApiId"]
    uri = f"arn:aws:apigateway:{REGION}:lambda:path/2015-03-31/functions/{function}/invocations"
    integration = gateway.create_integration(ApiId=api_id, IntegrationType="AWS_PROXY", IntegrationUri=uri)
    target = f"integrations/{integration['IntegrationId']}"
    authorization = {}
    if authorized:
        authorizer = gateway.create_authorizer(
            ApiId=api_id, Name="probe", AuthorizerType="REQUEST", AuthorizerUri=uri, IdentitySource=[]
        )
        authorization = {"AuthorizationType": "CUSTOM", "AuthorizerId": authorizer["AuthorizerId"]}
    gateway.create_route(ApiId=api_id, RouteKey="$connect", Target=target, **authorization)
    for key in ("$disconnect", "silent", *_RESPONDING):
        responds = {"RouteResponseSelectionExpression": "$default"} if key in _RESPONDING else {}
        route = gateway.create_route(ApiId=api_id, RouteKey=key, Target=target, **responds)
        if responds:
            gateway.create_route_response(ApiId=api_id, RouteId=route["RouteId"], RouteResponseKey="$default")
    _add_ping(gateway, api_id)
    gateway.create_stage(ApiId=api_id, StageName="main", AutoDeploy=True)
    endpoint = f"{url}/_aws/execute-api/{api_id}/main"
    return Stage(endpoint.replace("http://", "ws://"), endpoint)


def _add_ping(gateway: Any, api_id: str) -> None:
    """A mock whose response is the template's, as far as it goes without the template's variables."""
    mock = gateway.create_integration(ApiId=api_id, IntegrationType="MOCK", RequestTemplates={"$default": "{}"})
    gateway.create_integration_response(
        ApiId=api_id,
        IntegrationId=mock["IntegrationId"],
        IntegrationResponseKey="$default",
        ResponseTemplates={"$default": '#set($ref = $input.json("$.ref")){"type":"pong","ref":$ref}'},
    )
    route = gateway.create_route(
        ApiId=api_id,
        RouteKey="ping",
        Target=f"integrations/{mock['IntegrationId']}",
        RouteResponseSelectionExpression="$default",
    )
    gateway.create_route_response(ApiId=api_id, RouteId=route["RouteId"], RouteResponseKey="$default")
