"""The samples of docs/issuers.md: tokens of each issuer's shape are accepted with the settings beside them."""

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from routes import authorizer, environment
from routes.keys import PublicKeys, SharedSecret
from tests.routes_events import LambdaContext, event
from tests.scripted_dynamodb import Scripted
from tests.templates import Template
from tests.tokens import SECRET, JwksEndpoint, SecretsManager, rsa_jwk, rsa_key, signed

DOCUMENT = Path(__file__).parents[2] / "docs" / "issuers.md"
TIMES = ("iat", "exp", "nbf", "auth_time")
GRANTED = {
    "Amazon Cognito": ("62d5e4b4-3061-70be-1f6a-5c2f3c0a9b1e", "lobby", "lobby"),
    "Auth0": ("auth0|63f1c0ad9d8b1c0a5f1e2d3c", "lobby chat/*", "chat/*"),
    "Clerk": ("user_2aBcDeFgHiJkLmNoPqRsTuVwXyZ", "lobby chat/*", "lobby chat/*"),
    "Keycloak": ("36fa0f91-f94d-4a0c-afed-6b7d952e47da", "lobby chat/*", "chat/*"),
    "Tokens of your own": ("alice", "lobby chat/*", "chat/*"),
}


class Sample(NamedTuple):
    """The blocks of one section: the parameters of the deployment, and a token's claims."""

    parameters: dict[str, str]
    claims: dict[str, Any]

    @classmethod
    def read(cls, section: str) -> "Sample":
        text = DOCUMENT.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        toml, payload = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("toml", "json"))
        assert (len(toml), len(payload)) == (1, 1), section
        return cls(tomllib.loads(toml[0]), json.loads(payload[0]))

    def token(self, **changed: Any) -> str:
        """The sample as a token of now, signed as its issuer signs; a change to `...` omits the claim."""
        elapsed = int(time.time()) - self.claims["iat"]
        current = {name: self.claims[name] + elapsed for name in TIMES if name in self.claims}
        claims = {name: value for name, value in {**self.claims, **current, **changed}.items() if value is not ...}
        if "TokenSecretArn" in self.parameters:
            return signed(claims, SECRET.encode(), "HS256")
        return signed(claims, rsa_key("rsa"), "RS256", {"kid": "rsa"})


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The authorizer, whose key sources are stand-ins. Its variables are those of the template."""
    endpoint = JwksEndpoint(rsa_jwk("rsa", alg="RS256"), rsa_jwk("enc", use="enc", alg="RSA-OAEP"))
    stand_in: Any = endpoint
    monkeypatch.setattr(authorizer, "PublicKeys", lambda url: PublicKeys(url, stand_in))
    monkeypatch.setattr(environment, "client", lambda *_: Scripted())  # nobody is revoked
    monkeypatch.setattr(authorizer, "SharedSecret", lambda *_: SharedSecret(SecretsManager(SECRET), "arn:secret"))
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("GATECAST_TABLE", "gatecast")
    authorizer.clear_caches()
    yield monkeypatch
    authorizer.clear_caches()


def deploy(monkeypatch: pytest.MonkeyPatch, sample: Sample) -> None:
    template = Template("api", sample.parameters)
    assert set(sample.parameters) <= set(template.parameters)
    for name, value in sample.parameters.items():
        pattern = template.parameters[name].get("AllowedPattern", ".*")
        assert re.fullmatch(pattern, value), name
    variables = template.resources["Authorize"]["Properties"]["Environment"]["Variables"]
    for name in ("ISSUER", "AUDIENCE", "JWKS_URL", "SECRET_ARN", "AUDIENCE_CLAIM", "USER_CLAIM", "GRANTS_CLAIM"):
        monkeypatch.setenv(f"GATECAST_TOKEN_{name}", variables.get(f"GATECAST_TOKEN_{name}", ""))


def connect(token: str) -> dict[str, Any]:
    headers = {"Sec-WebSocket-Protocol": f"gatecast.v1, {token}"}
    return authorizer.handler({**event("$connect", headers=headers), "methodArn": "arn"}, LambdaContext())


@pytest.mark.parametrize("section", GRANTED)
def test_sample_token_is_accepted_with_its_grants(section: str, deployment: pytest.MonkeyPatch) -> None:
    sample = Sample.read(section)
    deploy(deployment, sample)
    context = connect(sample.token())["context"]
    assert (context["user"], context["join"], context["publish"]) == GRANTED[section]


@pytest.mark.parametrize("section", GRANTED)
def test_sample_token_of_another_audience_or_issuer_is_rejected(section: str, deployment: pytest.MonkeyPatch) -> None:
    sample = Sample.read(section)
    deploy(deployment, sample)
    claim = sample.parameters.get("TokenAudienceClaim", "aud")
    for changed in ({claim: "another"}, {claim: ...}, {"iss": "https://another.example"}, {"exp": 1}):
        with pytest.raises(Exception, match=r"^Unauthorized$"):
            connect(sample.token(**changed))


def test_id_tokens_of_cognito_are_rejected(deployment: pytest.MonkeyPatch) -> None:
    sample = Sample.read("Amazon Cognito")
    deploy(deployment, sample)
    id_token = sample.token(client_id=..., aud=sample.claims["client_id"], token_use="id")
    with pytest.raises(Exception, match=r"^Unauthorized$"):
        connect(id_token)


def test_other_settings_that_the_page_names_are_accepted(deployment: pytest.MonkeyPatch) -> None:
    permissions = Sample.read("Auth0")
    deploy(deployment, permissions._replace(parameters={**permissions.parameters, "TokenGrantsClaim": "permissions"}))
    words = ["read:messages", "gatecast/join:lobby", "gatecast/publish:lobby"]
    assert connect(permissions.token(permissions=words))["context"]["join"] == "lobby"

    authorizer.clear_caches()
    template = Sample.read("Clerk")
    plain = {name: value for name, value in template.parameters.items() if name != "TokenAudienceClaim"}
    deploy(deployment, template._replace(parameters={**plain, "TokenAudience": "gatecast"}))
    assert connect(template.token(azp=..., aud="gatecast"))["context"]["join"] == "lobby chat/*"


def test_every_section_of_an_issuer_is_tested() -> None:
    headings = re.findall(r"^## (.+)$", DOCUMENT.read_text(), re.MULTILINE)
    assert headings == ["In general", *GRANTED]
