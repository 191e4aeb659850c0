"""The Lambda authorizer of `$connect`: `handler` lets in whoever has a token of the issuer's, and nobody else.

A token comes as the second of two subprotocols (`Sec-WebSocket-Protocol: gatecast.v1, {token}`), which browsers can
send and access logs do not keep, or in the query (`?token={token}`). Its identity sources must be `[]`: API Gateway
demands all that are named, and a token comes in only one of the two places.

| variable | meaning |
|---|---|
| GATECAST_TOKEN_ISSUER | what a token's `iss` must be |
| GATECAST_TOKEN_AUDIENCE | what its `aud` must be or hold |
| GATECAST_TOKEN_SECRET_ARN | the secret in Secrets Manager that signs tokens: HS256. Or, and exactly one of the two: |
| GATECAST_TOKEN_JWKS_URL | where the issuer's public keys are: RS256 and ES256 |

Answers: a policy that allows this one `$connect`, with the context that the routes rely on; the error "Unauthorized",
which API Gateway turns into a 401; a policy that denies, which is a 403 (see `routes.tokens` for which is which). Where
it cannot decide, for want of configuration or of keys, it fails, which is a 500: never does an error let anyone in.
API Gateway asks it once a connection and caches nothing (caching exists for HTTP and REST APIs only).
"""

import os
import threading
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from botocore.config import Config

from routes import environment
from routes.access import AuthorizerContext
from routes.environment import ConfigurationError
from routes.keys import Keys, PublicKeys, SharedSecret
from routes.log import lambda_handler, log_failure, logger
from routes.metrics import measured
from routes.requests import SUBPROTOCOL, offered_subprotocols
from routes.tokens import RefusedToken, Verifier

_SDK: Final = Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2})
_making: Final = threading.RLock()  # boto3 makes clients on one thread at a time


class AuthorizerFailed(Exception):  # noqa: N818 - it says what happened
    """It cannot say who may connect. Why stands in the log, and not in here: Lambda logs this, too."""


@lambda_handler
def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Takes the event of a REQUEST authorizer of a WebSocket API and gives an IAM policy."""
    with measured("authorizer") as invocation:
        try:
            return _allowed(event)
        except RefusedToken as refused:
            invocation.rejected()
            logger.info("connect.refused", extra={"status": int(refused.status), "reason": refused.reason})
            if refused.status is HTTPStatus.FORBIDDEN:
                return _policy(event, "Deny", "nobody", {})
            failure = Exception("Unauthorized")  # this, word for word, is what API Gateway takes for a 401
        except Exception as error:  # noqa: BLE001 - whatever happened, nobody gets in by it
            invocation.failed()
            log_failure("authorizer.failed", error)
            failure = AuthorizerFailed("see authorizer.failed in the log")
    raise failure


def token_of(event: Mapping[str, Any]) -> str:
    """The one token of the event, unverified. Raises RefusedToken if there is none, or more than one."""
    every = event.get("multiValueQueryStringParameters") or {}
    one = event.get("queryStringParameters") or {}
    in_query = every.get("token") or ([one["token"]] if "token" in one else [])
    match offered_subprotocols(event), in_query:
        case [first, token], [] if first == SUBPROTOCOL:
            return str(token)
        case ([] | [_]) as offered, [token] if set(offered) <= {SUBPROTOCOL}:
            return str(token)
    raise RefusedToken(HTTPStatus.UNAUTHORIZED, "no token, or more than one")


def reset() -> None:
    """Forgets configuration and keys, for a process whose environment changes: tests."""
    _verifier.cache_clear()


def _allowed(event: dict[str, Any]) -> dict[str, Any]:
    with _making:
        verifier = _verifier()
    identity = verifier.verify(token_of(event))
    context = AuthorizerContext.of(identity.user, identity.access)
    return _policy(event, "Allow", identity.user, context.flat())


def _policy(event: Mapping[str, Any], effect: str, principal: str, context: Mapping[str, str]) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": event["methodArn"]}
    return {
        "principalId": principal,
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": dict(context),
    }


@cache
def _verifier() -> Verifier:
    return Verifier(
        _keys(),
        issuer=environment.required("GATECAST_TOKEN_ISSUER"),
        audience=environment.required("GATECAST_TOKEN_AUDIENCE"),
    )


def _keys() -> Keys:
    arn = os.environ.get("GATECAST_TOKEN_SECRET_ARN")
    url = os.environ.get("GATECAST_TOKEN_JWKS_URL")
    if bool(arn) == bool(url):
        raise ConfigurationError("exactly one of GATECAST_TOKEN_SECRET_ARN and GATECAST_TOKEN_JWKS_URL must be set")
    return PublicKeys(url) if url else SharedSecret(environment.client("secretsmanager", _SDK), str(arn))
