"""The Lambda authorizer of `$connect`: `handler` admits clients with a valid token of the issuer, and rejects others.

A token is sent as a subprotocol behind the dialects (`Sec-WebSocket-Protocol: gatecast.v2, {token}`), which browsers
can send and access logs do not record; as `Authorization: Bearer {token}`; or in the query (`?token={token}`). The
authorizer's identity sources must be `[]`: API Gateway requires every source that is configured, and a token is in only
one of the three places.

| variable | meaning |
|---|---|
| GATECAST_TABLE | the table, where it reads whether the user has been revoked (`gatecast.rooms.revocations`) |
| GATECAST_TOKEN_ISSUER | the required value of a token's `iss` |
| GATECAST_TOKEN_AUDIENCE | the value, or element, that its `aud` must have; of several, separated by spaces, one |
| GATECAST_TOKEN_SECRET_ARN | the secret in Secrets Manager that signs tokens (HS256). Exactly one of this and: |
| GATECAST_TOKEN_JWKS_URL | the address of the issuer's public keys (RSA, EC or Ed25519) |
| GATECAST_TOKEN_AUDIENCE_CLAIM | the claim with the audience, `aud` by default |
| GATECAST_TOKEN_USER_CLAIM | the claim with the user, `sub` by default |
| GATECAST_TOKEN_GRANTS_CLAIM | the claim with the grants, `gatecast` by default |

It returns a policy that allows this one `$connect`, with the context on which the routes rely; raises the error
"Unauthorized", which API Gateway turns into a 401; or returns a policy that denies, which is a 403 (`routes.tokens`
defines which applies, and a revoked user is denied). If it cannot decide, because configuration or keys are missing or
the table cannot be read, it raises an error, which is a 500: it fails closed. API Gateway invokes it once per
connection and caches nothing (caching exists for HTTP and REST APIs only).
"""

import os
import re
import threading
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from botocore.config import Config

from gatecast.rooms.revocations import Revocations
from routes import environment
from routes.access import AuthorizerContext
from routes.environment import ConfigurationError
from routes.keys import Keys, PublicKeys, SharedSecret
from routes.log import lambda_handler, log_failure, logger
from routes.metrics import record_invocation
from routes.subprotocols import SUBPROTOCOLS, chosen_dialect, header_values, offered_subprotocols, without_dialects
from routes.tokens import STANDARD_NAMES, ClaimNames, InvalidToken, Verifier

_SDK_CONFIG: Final = Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2})
_BEARER: Final = re.compile(r"bearer +(.*)", re.ASCII | re.DOTALL | re.IGNORECASE)
"""Other schemes are no tokens: some clients send Basic credentials wherever they have any."""
_PRINTABLE: Final = re.compile(r"[!-~]+")
_creation_lock: Final = threading.RLock()  # boto3 clients must be created on one thread at a time


class AuthorizerFailed(Exception):
    """The authorizer cannot decide. The reason is in its log, not in this message, which Lambda logs as well."""


@lambda_handler
def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Takes the event of a WebSocket API's REQUEST authorizer and returns an IAM policy."""
    with record_invocation("authorizer") as invocation:
        try:
            return _allowed(event)
        except InvalidToken as rejection:
            invocation.rejected()
            logger.info("connect.rejected", extra={"status": int(rejection.status), "reason": rejection.reason})
            if rejection.status is HTTPStatus.FORBIDDEN:
                return _policy(event, "Deny", "nobody", {})
            failure = Exception("Unauthorized")  # API Gateway turns exactly this text into a 401
        except Exception as error:  # noqa: BLE001 - fails closed on any error
            invocation.failed()
            log_failure("authorizer.failed", error)
            failure = AuthorizerFailed("see authorizer.failed in the log")
    raise failure


def extract_token(event: Mapping[str, Any]) -> str:
    """The event's only token, unverified. Raises InvalidToken if there is none, or more than one."""
    multiple = event.get("multiValueQueryStringParameters") or {}
    single = event.get("queryStringParameters") or {}
    in_query = multiple.get("token") or ([single["token"]] if "token" in single else [])
    in_header = [found[1] for line in header_values(event, "authorization") if (found := _BEARER.fullmatch(line))]
    offered = offered_subprotocols(event)
    behind_dialects = without_dialects(offered)
    match behind_dialects, [*in_header, *in_query]:
        case [token], [] if len(offered) > 1 and token not in SUBPROTOCOLS:
            return token
        case [], [token]:
            return str(token)
    raise InvalidToken(HTTPStatus.UNAUTHORIZED, "no token, or more than one")


def clear_caches() -> None:
    """Drops the cached configuration, keys and client, for a process whose environment changes: tests."""
    _verifier.cache_clear()
    _revocations.cache_clear()


def _allowed(event: dict[str, Any]) -> dict[str, Any]:
    with _creation_lock:
        verifier, revocations = _verifier(), _revocations()
    identity = verifier.verify(extract_token(event))
    if revocations.is_revoked(identity.user, issued_at=identity.issued_at):
        raise InvalidToken(HTTPStatus.FORBIDDEN, "the user is revoked")
    context = AuthorizerContext.from_access(identity.user, identity.access, chosen_dialect(event))
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
        issuer=_printable("GATECAST_TOKEN_ISSUER", environment.required("GATECAST_TOKEN_ISSUER")),
        audience=_audience("GATECAST_TOKEN_AUDIENCE"),
        names=ClaimNames(
            audience=_claim("GATECAST_TOKEN_AUDIENCE_CLAIM", STANDARD_NAMES.audience),
            user=_claim("GATECAST_TOKEN_USER_CLAIM", STANDARD_NAMES.user),
            grants=_claim("GATECAST_TOKEN_GRANTS_CLAIM", STANDARD_NAMES.grants),
        ),
    )


@cache
def _revocations() -> Revocations:
    table_name = environment.required("GATECAST_TABLE")
    return Revocations(environment.client("dynamodb", _SDK_CONFIG), table_name)


def _audience(name: str) -> str:
    audiences = environment.required(name)
    for audience in audiences.split(" "):
        _printable(name, audience)
    return audiences


def _claim(name: str, default: str) -> str:
    return _printable(name, os.environ.get(name) or default)


def _printable(name: str, value: str) -> str:
    """The value. Raises ConfigurationError if it has a space or a line break, with which it would match no token."""
    if not _PRINTABLE.fullmatch(value):
        raise ConfigurationError(f"{name} has the value {value!r}: expected characters from ! to ~, without spaces")
    return value


def _keys() -> Keys:
    arn = os.environ.get("GATECAST_TOKEN_SECRET_ARN")
    url = os.environ.get("GATECAST_TOKEN_JWKS_URL")
    if bool(arn) == bool(url):
        raise ConfigurationError("exactly one of GATECAST_TOKEN_SECRET_ARN and GATECAST_TOKEN_JWKS_URL must be set")
    return PublicKeys(url) if url else SharedSecret(environment.client("secretsmanager", _SDK_CONFIG), str(arn))
