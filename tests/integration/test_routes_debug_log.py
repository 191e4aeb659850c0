"""Whatever the environment says of log levels, the routes' output has no credential, token or payload."""

import subprocess
import sys
import textwrap
from pathlib import Path

import boto3

from local.ministack import Ministack
from local.resources import create_queues, create_table
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256

CHECKOUT = Path(__file__).parents[2]
PAYLOAD = "a payload that nobody may log"
SESSION_TOKEN = "a-session-token-that-nobody-may-log"
DEBUG = {
    "LOG_LEVEL": "DEBUG",
    "POWERTOOLS_LOG_LEVEL": "DEBUG",
    "AWS_LAMBDA_LOG_LEVEL": "DEBUG",
    "AWS_LAMBDA_LOG_FORMAT": "JSON",
    "POWERTOOLS_LOGGER_LOG_EVENT": "true",
    "POWERTOOLS_DEBUG": "true",
    "POWERTOOLS_DEV": "true",
}
PROGRAM = textwrap.dedent(
    """
    import json, logging, os, sys
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)  # as Lambda's runtime does for the root logger
    from routes import authorizer, handlers
    from tests.routes_events import LambdaContext, event
    token, payload = sys.argv[1:]
    request = {**event("$connect"), "methodArn": "arn:x", "queryStringParameters": {"token": token}}
    context = authorizer.handler(request, LambdaContext())["context"]
    def call(handler, **body):
        text = json.dumps({"action": handler.__name__, **body})
        response = handler(event(body=text, authorizer=context), LambdaContext())
        assert '"type":"ok"' in response["body"], response
    assert handlers.connect(event("$connect", authorizer=context), LambdaContext())["statusCode"] == 200
    call(handlers.join, room="lobby")
    call(handlers.publish, room="lobby", data=payload)
    call(handlers.leave, room="lobby")
    for _ in range(20):
        handlers.default(event(body=payload, authorizer=context), LambdaContext())
    assert handlers.disconnect(event("$disconnect"), LambdaContext())["statusCode"] == 200
    print("all called")
    """
)


def test_debug_everywhere_reveals_nothing(unique_name: str) -> None:
    with Ministack.start(services=("sqs", "dynamodb", "secretsmanager")) as ministack:
        variables = ministack.environment()
        session = boto3.session.Session(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_REGION"],
        )
        names = ("dynamodb", "sqs", "secretsmanager")
        clients = {name: session.client(name, endpoint_url=ministack.url) for name in names}
        create_table(clients["dynamodb"], unique_name)
        queues = create_queues(clients["sqs"], unique_name)
        arn = clients["secretsmanager"].create_secret(Name=unique_name, SecretString=SECRET)["ARN"]
        for client in clients.values():
            client.close()
        token = hs256(gatecast={"join": ["lobby"], "publish": ["lobby"]})
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, token, PAYLOAD],
            cwd=CHECKOUT,
            env={
                **variables,
                **DEBUG,
                "AWS_SESSION_TOKEN": SESSION_TOKEN,
                "GATECAST_TABLE": unique_name,
                "GATECAST_QUEUE_URL": queues.url,
                "GATECAST_CONNECTIONS_ENDPOINT": "http://127.0.0.1:1/local",
                "GATECAST_TOKEN_ISSUER": ISSUER,
                "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
                "GATECAST_TOKEN_SECRET_ARN": arn,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    output = ran.stdout + ran.stderr
    assert "all called" in output, output
    for secret in (variables["AWS_SECRET_ACCESS_KEY"], SESSION_TOKEN, PAYLOAD, SECRET, token, token.split(".")[1]):
        assert secret not in output
