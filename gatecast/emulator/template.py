"""One WebSocket API of a SAM or CloudFormation template, as a Config.

Read are `AWS::ApiGatewayV2::Api`, `Route`, `RouteResponse`, `Integration`, `IntegrationResponse`, `Authorizer` and
`Stage`, `AWS::Serverless::WebSocketApi`, and the functions that they name. Python functions whose code is in a folder
run in this process, all others behind an Invoke API. What cannot be emulated is named in `Config.left_out`; a route or
authorizer that cannot run fails when it is invoked, so that none is silently open.

A route with a route response selection expression counts as one with a route response: SAM makes nothing else.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gatecast.emulator.authorizer import Authorizer, check_identity_source
from gatecast.emulator.config import DEFAULT_STAGE, Config
from gatecast.emulator.defaults import REGION
from gatecast.emulator.integration import Function, Integration, Mock, Route, Unavailable
from gatecast.emulator.intrinsics import FUNCTIONS, Resource, Template
from gatecast.emulator.remote import HttpProxy, check_parameter
from gatecast.emulator.selection import ACTION, Selection
from gatecast.emulator.template_functions import Functions

_V2: Final = "AWS::ApiGatewayV2::"
_SAM_API: Final = "AWS::Serverless::WebSocketApi"
_SAM_STAGE: Final = "default"
_URI: Final = re.compile(r"/functions/(.+)/invocations\Z")
_EMULATED: Final = ("Api", "Route", "RouteResponse", "Integration", "IntegrationResponse", "Authorizer", "Stage")
_READ: Final = (
    *(f"{_V2}{name}" for name in (*_EMULATED, "Deployment")), _SAM_API, *FUNCTIONS,
    "AWS::Lambda::Alias", "AWS::Lambda::Permission", "AWS::Lambda::Version", "AWS::Logs::LogGroup",
    "AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::Role",
)  # fmt: skip
"""Types that are emulated, or that make no difference here."""
_OF_ROUTES: Final = ("ApiKeyRequired", "RequestModels", "ModelSelectionExpression", "RequestParameters")
_OF_STAGES: Final = ("DefaultRouteSettings", "RouteSettings", "StageVariables")
_OF_INTEGRATIONS: Final = ("TimeoutInMillis", "IntegrationTimeout", "ConnectionId", "TlsConfig")


def read_template(
    path: Path,
    *,
    api: str | None = None,
    parameters: Mapping[str, str] | None = None,
    invoke_endpoint: str | None = None,
    region: str = REGION,
) -> Config:
    """The API with this logical id, or the only one. Nothing is imported yet. Raises ConfigurationError."""
    template = Template(path, parameters or {}, region=region)
    return _Reader(template, _chosen(template, api), invoke_endpoint).config(region)


def _chosen(template: Template, name: str | None) -> Resource:
    apis = [
        *(
            each
            for each in template.of_type(f"{_V2}Api")
            if template.text(each.properties.get("ProtocolType")) == "WEBSOCKET"
        ),
        *template.of_type(_SAM_API),
    ]
    names = [each.name for each in apis]
    if name is None and len(apis) == 1:
        return apis[0]
    if name in names:
        return apis[names.index(name)]
    if not apis:
        raise template.error("Resources", f"there is no {_V2}Api with ProtocolType WEBSOCKET, and no {_SAM_API}")
    problem = f"there is no WebSocket API {name}" if name else "there are several WebSocket APIs"
    raise template.error("Resources", f"{problem}: choose one with --api, of {', '.join(names)}")


class _Reader:
    def __init__(self, template: Template, api: Resource, invoke_endpoint: str | None) -> None:
        self._template = template
        self._api = api
        self._functions = Functions(template, invoke_endpoint)
        self._left_out: list[str] = []

    def config(self, region: str) -> Config:
        sam = self._api.type == _SAM_API
        routes = self._sam_routes() if sam else self._routes()
        if not routes:
            raise self._template.error(self._api.name, "the API has no routes")
        authorizer = self._sam_authorizer() if sam else self._authorizer()
        stage = self._sam_stage() if sam else self._stage()
        self._other_resources()
        return Config(
            routes=routes,
            authorizer=authorizer,
            selection=self._selection(),
            stage=stage,
            region=region,
            environment=self._functions.environment(self._api.name, region),
            folders=self._functions.folders,
            left_out=[*self._left_out, *self._functions.left_out],
        )

    def _of_api(self, kind: str) -> list[Resource]:
        """The resources of this kind that belong to the API."""
        return [
            each
            for each in self._template.of_type(f"{_V2}{kind}")
            if self._template.resolve(each.properties.get("ApiId")) == self._api.name
        ]

    def _routes(self) -> dict[str, Route]:
        responding = {self._text(each, "RouteId") for each in self._of_api("RouteResponse")}
        routes: dict[str, Route] = {}
        for each in self._of_api("Route"):
            key = self._text(each, "RouteKey")
            target = self._text(each, "Target").removeprefix("integrations/")
            integration = self._template.resources.get(target)
            if integration is None:
                raise self._template.error(each.name, f"its Target is {target!r}, which is no integration")
            self._note_some(f"route {key}", each.properties, _OF_ROUTES)
            routes[key] = Route(
                self._integration(key, integration),
                each.name in responding or "RouteResponseSelectionExpression" in each.properties,
            )
        return routes

    def _sam_routes(self) -> dict[str, Route]:
        routes: dict[str, Route] = {}
        for key, given in (self._api.properties.get("Routes") or {}).items():
            self._note_some(f"route {key}", given, (*_OF_ROUTES, *_OF_INTEGRATIONS))
            function = self._function(f"route {key}", self._template.text(given.get("FunctionArn")))
            routes[key] = Route(function, "RouteResponseSelectionExpression" in given)
        return routes

    def _integration(self, key: str, integration: Resource) -> Integration:
        kind = self._text(integration, "IntegrationType")
        uri = self._text(integration, "IntegrationUri")
        self._note_some(f"route {key}", integration.properties, _OF_INTEGRATIONS)
        match kind:
            case "AWS_PROXY":
                return self._function(f"route {key}", uri)
            case "HTTP_PROXY" if uri.startswith(("http://", "https://")):
                return HttpProxy(
                    uri, self._text(integration, "IntegrationMethod") or "POST", self._parameters(key, integration)
                )
            case "MOCK":
                return self._mock(key, integration)
        return self._unavailable(
            f"route {key}", f"an integration of type {kind} ({uri or 'without a URI'}) is not emulated"
        )

    def _function(self, place: str, uri: str) -> Function:
        found = _URI.search(uri)
        function = self._functions.get(self._template.function_name(found[1] if found else uri))
        return self._unavailable(place, function) if isinstance(function, str) else function

    def _mock(self, key: str, integration: Resource) -> Integration:
        responses = [
            each
            for each in self._of_api("IntegrationResponse")
            if self._text(each, "IntegrationId") == integration.name
        ]
        templates = [self._template.resolve(each.properties.get("ResponseTemplates")) or {} for each in responses]
        texts = [text for each in templates for text in each.values()]
        try:
            body = json.loads(texts[0] if texts else "{}")
        except ValueError:
            body = None
        if not isinstance(body, dict) or "$" in "".join(texts[:1]):
            return self._unavailable(
                f"route {key}", "the response template of its mock is not a JSON object without variables"
            )
        return Mock(body)

    def _parameters(self, key: str, integration: Resource) -> dict[str, str]:
        given = self._template.resolve(integration.properties.get("RequestParameters")) or {}
        for name, source in list(given.items()):
            try:
                check_parameter(name, source)
            except ValueError:
                self._left_out.append(f"route {key}: request parameter {name}: {source}")
                del given[name]
        return dict(given)

    def _authorizer(self) -> Authorizer | None:
        connect = [each for each in self._of_api("Route") if self._text(each, "RouteKey") == "$connect"]
        kind = self._text(connect[0], "AuthorizationType") if connect else ""
        name = self._text(connect[0], "AuthorizerId") if connect else ""
        if kind in {"", "NONE"}:
            return None
        authorizer = self._template.resources.get(name)
        if kind != "CUSTOM" or authorizer is None:
            return Authorizer(self._unavailable("authorizer of $connect", f"{kind} is not emulated"))
        return self._custom_authorizer(
            self._text(authorizer, "AuthorizerUri"), authorizer.properties.get("IdentitySource")
        )

    def _sam_authorizer(self) -> Authorizer | None:
        given = self._api.properties.get("Auth") or {}
        kind = self._template.text(given.get("AuthType")).upper()
        if kind in {"", "NONE"}:
            return None
        if kind != "CUSTOM":
            return Authorizer(self._unavailable("authorizer of $connect", f"{kind} is not emulated"))
        return self._custom_authorizer(self._template.text(given.get("AuthArn")), given.get("IdentitySource"))

    def _custom_authorizer(self, uri: str, sources: Any) -> Authorizer:
        place = "authorizer of $connect"
        identity_sources = tuple(self._template.resolve(sources) or ())
        try:
            for source in identity_sources:
                check_identity_source(source)
        except ValueError as error:
            return Authorizer(self._unavailable(place, str(error)))
        return Authorizer(self._function(place, uri), identity_sources)

    def _stage(self) -> str:
        stages = self._of_api("Stage")
        if not stages:
            return DEFAULT_STAGE
        first, *others = stages
        self._left_out += [f"stage {self._text(each, 'StageName')}" for each in others]
        self._note_some(f"stage {self._text(first, 'StageName')}", first.properties, _OF_STAGES)
        return self._text(first, "StageName")

    def _sam_stage(self) -> str:
        name = self._text(self._api, "StageName") or _SAM_STAGE
        self._note_some(f"stage {name}", self._api.properties, (*_OF_STAGES, "Domain"))
        return name

    def _selection(self) -> Selection:
        expression = self._text(self._api, "RouteSelectionExpression")
        try:
            return Selection.parse(expression) if expression else ACTION
        except ValueError as error:
            raise self._template.error(f"{self._api.name}: RouteSelectionExpression", str(error)) from None

    def _other_resources(self) -> None:
        others = [each for each in self._template.resources.values() if each.type not in _READ]
        if others:
            listed = ", ".join(sorted({each.type for each in others}))
            self._left_out.append(f"{len(others)} resources that are no part of the API: {listed}")

    def _note_some(self, place: str, properties: Mapping[str, Any], names: tuple[str, ...]) -> None:
        self._left_out += [f"{place}: {name}" for name in names if properties.get(name)]

    def _unavailable(self, place: str, reason: str) -> Unavailable:
        self._left_out.append(f"{place}: {reason}; it fails when it is invoked")
        return Unavailable(f"{place}: {reason}")

    def _text(self, resource: Resource, name: str) -> str:
        return self._template.text(resource.properties.get(name))
