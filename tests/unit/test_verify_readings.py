"""How `deploy.verify` reads what its probes have seen: every question, with each way that AWS may turn out to be."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from deploy.verify.observation import Observation, Verdict
from deploy.verify.probes import clocks, limits, posts, routes
from deploy.verify.probes.clocks import End
from deploy.verify.probes.limits import Throttled
from deploy.verify.probes.posts import Delivered
from deploy.verify.probes.routes import Admission
from deploy.verify.wire import SILENCE, Response

FITS, DIFFERS, UNCLEAR = Verdict.FITS, Verdict.DIFFERS, Verdict.UNCLEAR

OK, GONE, LIMIT = Response(200), Response(410), Response(429)
PONG, REFERRING = '{"type":"pong"}', r'{"type":"pong","ref":"a \"quoted\" ref"}'


def error(status: int, kind: str = "") -> Response:
    return Response(status, (("x-amzn-ErrorType", kind),) if kind else ())


def throttles(stage: dict[int, int], route: dict[int, int], echoed: int = 3) -> Observation:
    return limits.read_throttles({"stage": Throttled(echoed, stage), "route": Throttled(echoed, route)})


def ids(malformed: int, unknown: int, gone: int) -> Observation:
    return posts.read_ids({"malformed": error(malformed), "unknown": error(unknown), "gone": error(gone)})


def idle(*ends: bool) -> Observation:
    """Whether the connections were closed: silent, with pings, with posts, with messages."""
    closed = dict(zip((clocks.SILENT, clocks.PINGS, clocks.POSTS, clocks.MESSAGES), ends, strict=True))
    return clocks.read_idle({name: End("close code 1001", 600) if each else None for name, each in closed.items()}, 600)


def keep_alive(watched: End | None, used: dict[float, str]) -> Observation:
    return clocks.read_keep_alive(watched, used, 600)


def sizes(*whole: int, beyond: int = 413, cut: int | None = None) -> Observation:
    seen = {size: Delivered(200, size if size in whole else cut or 0, 1) for size in posts.SIZES[:-1]}
    return posts.read_post_sizes({**seen, posts.SIZES[-1]: Delivered(beyond, 0, 0)})


ALL_SIZES = posts.SIZES[:-1]

READINGS: list[tuple[Callable[[], Observation], Verdict, str]] = [
    (lambda: throttles({200: 20}, {200: 20}), FITS, "Neither limit counts"),
    (lambda: throttles({200: 2, 429: 18}, {200: 20}), FITS, "The default of a stage counts"),
    (lambda: throttles({200: 20}, {200: 2, 429: 18}), DIFFERS, "limits of routes throttle"),
    (lambda: throttles({429: 20}, {429: 20}), DIFFERS, "limits of routes throttle"),
    (lambda: throttles({200: 20}, {200: 20}, echoed=20), UNCLEAR, "did not throttle its own messages"),
    (lambda: limits.read_slow_client(8, LIMIT, [LIMIT, LIMIT]), FITS, r"429 after 1\.0 MiB"),
    (lambda: limits.read_slow_client(150, OK, [OK]), UNCLEAR, "No limit"),
    (lambda: limits.read_slow_client(8, GONE, [GONE]), DIFFERS, "gets 410, not 429"),
    (lambda: idle(True, True, True, False), FITS, "Client pings do not reset.*; posts to it do not reset"),
    (lambda: idle(True, False, True, False), FITS, "Client pings reset.*; posts to it do not reset"),
    (lambda: idle(True, False, False, False), FITS, "Client pings reset.*; posts to it reset"),
    (lambda: idle(True, True, True, True), DIFFERS, "Even a client that sends messages"),
    (lambda: idle(False, False, False, False), UNCLEAR, "not closed after 600 s"),
    (lambda: keep_alive(None, {30: clocks.RESPONSE}), FITS, "open for at least 600 s"),
    (lambda: keep_alive(End("FIN", 60), {30: clocks.RESPONSE, 120: "FIN"}), FITS, "after 60 s, with FIN"),
    (lambda: keep_alive(None, {120: clocks.RESPONSE, 360: SILENCE}), FITS, "without notice after 360"),
    (lambda: keep_alive(None, {120: SILENCE, 360: SILENCE}), DIFFERS, "without notice after 120"),
    (lambda: keep_alive(None, {120: "RST"}), FITS, "a request after 120 s ends it: RST"),
    (lambda: ids(400, 410, 410), FITS, "malformed ones 400"),
    (lambda: ids(403, 410, 410), FITS, "malformed ones 403"),
    (lambda: ids(500, 410, 410), DIFFERS, "malformed ones 500"),
    (lambda: ids(400, 403, 410), DIFFERS, "An unknown id gets 403, a gone one 410"),
    (lambda: ids(400, 410, 400), DIFFERS, "a gone one 400"),
    (lambda: posts.read_errors({"a": error(403, "X:http://doc"), "b": error(403)}, OK), FITS, "error types X, none"),
    (lambda: posts.read_errors({"a": error(401), "b": error(403)}, OK), DIFFERS, r"\(a: 401\)"),
    (lambda: posts.read_errors({"a": error(403)}, error(403)), UNCLEAR, "A valid post got 403"),
    (lambda: sizes(*ALL_SIZES), FITS, "Delivered whole: 32,768, 32,769, 65,536, 131,072 bytes; larger ones get 413"),
    (lambda: sizes(32_768), DIFFERS, "Delivered whole: 32,768 bytes"),
    (lambda: sizes(*ALL_SIZES, beyond=200), DIFFERS, "larger ones get 200"),
    (lambda: sizes(32_768, 32_769, 65_536, cut=100), DIFFERS, "65,536 bytes; larger"),
    (lambda: posts.read_post_in_connect([GONE, GONE], OK, 0), FITS, "gets 410, one after it 200"),
    (lambda: posts.read_post_in_connect([OK, OK], OK, 2), FITS, "gets 200"),
    (lambda: posts.read_post_in_connect([OK, OK], OK, 0), DIFFERS, "is lost"),
    (lambda: posts.read_post_in_connect([error(403)], OK, 0), DIFFERS, "gets 403"),
    (lambda: posts.read_post_in_connect([GONE], GONE, 0), DIFFERS, "after it 410"),
    (lambda: posts.read_post_in_connect([], OK, 0), UNCLEAR, "No post was made"),
    (lambda: posts.read_delete(Response(204), 1001, GONE, {"code": 1001}), FITS, "code 1001; .disconnect follows"),
    (lambda: posts.read_delete(Response(204), 1000, GONE, None), FITS, "no .disconnect follows"),
    (lambda: posts.read_delete(Response(204), None, OK, None), DIFFERS, "stays connected"),
    (lambda: posts.read_delete(error(403), None, OK, None), DIFFERS, "stays connected"),
    (lambda: routes.read_mock(PONG, REFERRING), FITS, "responds without a function, and repeats ref"),
    (lambda: routes.read_mock(PONG, PONG), DIFFERS, "without ref"),
    (lambda: routes.read_mock(None, None), DIFFERS, "does not respond"),
    (lambda: routes.read_mock(PONG, None), UNCLEAR, "something else"),
    (lambda: routes.read_mock(REFERRING, REFERRING), UNCLEAR, "something else"),
    (lambda: routes.read_mock(PONG, '{"type": "pong", "ref": 7}'), UNCLEAR, "something else"),
    (lambda: routes.read_mock('{"message": "Internal server error"}', PONG), UNCLEAR, "something else"),
    (lambda: routes.read_mock("pong", "pong"), UNCLEAR, "something else"),
    (lambda: routes.read_quiet({"nothing": ["x"], "no body": []}), FITS, "no message if the function returns no body"),
    (lambda: routes.read_quiet({"nothing": ["x"], "no body": [""]}), FITS, "a message in every case"),
    (lambda: routes.read_sizes({8: "x" * 8, 9: "x" * 9}), FITS, "Delivered whole: 8, 9"),
    (lambda: routes.read_sizes({8: "x" * 8, 9: 1009}), FITS, "Delivered whole: 8$"),
    (lambda: routes.read_sizes({8: None, 9: "x" * 4}), DIFFERS, "none"),
    (lambda: routes.read_order([1, 0], [0, 1, 2]), FITS, "one that takes longer"),
    (lambda: routes.read_order([0, 1], [0, 2, 1]), FITS, "overtake each other"),
    (lambda: routes.read_order([0, 1], [0, 1, 2]), FITS, "No message overtook"),
    (lambda: routes.read_order([0, None], [0]), UNCLEAR, "Not both"),
    (lambda: routes.read_url_length({4_096: Response(101), 4_097: error(414)}), FITS, "up to 4,096 .* get 414"),
    (lambda: routes.read_url_length({4_096: Response(101), 4_097: Response(101)}), FITS, "up to 4,097"),
    (lambda: routes.read_url_length({4_096: error(400), 4_097: error(400)}), DIFFERS, "up to 0"),
    (lambda: routes.read_compression(Response(101)), FITS, "not compressed"),
    (lambda: routes.read_compression(Response(101, (("Sec-WebSocket-Extensions", "x"),))), DIFFERS, "compressed: x"),
    (lambda: routes.read_compression(error(403)), UNCLEAR, "rejected with 403"),
    (lambda: authorizer(query="query", subprotocol="subprotocol", nowhere="nowhere"), FITS, "for every client"),
    (lambda: authorizer(query="query", subprotocol="subprotocol", nowhere=None), DIFFERS, "token nowhere"),
    (lambda: authorizer(query=None, subprotocol="subprotocol", nowhere=None), DIFFERS, "token query, nowhere"),
]  # fmt: skip


def authorizer(**tokens: str | None) -> Observation:
    return routes.read_authorizer({place: Admission(101 if each else 401, each) for place, each in tokens.items()})


@pytest.mark.parametrize(("reading", "verdict", "text"), READINGS)
def test_what_was_seen_is_read(reading: Callable[[], Observation], verdict: Verdict, text: str) -> None:
    observation = reading()
    assert observation.verdict is verdict
    assert re.search(text, observation.reading)
    assert observation.seen, "a reader must be able to check the reading"


def test_every_probe_has_readings() -> None:
    """So that a new question comes with its readings."""
    covered = {name for each, _, _ in READINGS for name in each.__code__.co_names if name.startswith("read_")}
    covered |= {
        "read_throttles",
        "read_ids",
        "read_idle",
        "read_keep_alive",
        "read_post_sizes",
        "read_authorizer",
    }  # by the functions above
    modules: list[Any] = [clocks, limits, posts, routes]
    assert covered == {name for module in modules for name in vars(module) if name.startswith("read_")}


@pytest.mark.parametrize(
    ("received", "text"),
    [
        (None, "no message"),
        (1009, "the connection was closed with code 1009"),
        ("x" * 4, "cut to 4 bytes"),
        ("", "another message: ''"),
        ('{"message": "Internal server error"}', "another message"),
    ],
)
def test_a_response_that_is_not_whole_is_described(received: str | int | None, text: str) -> None:
    assert text in routes.read_sizes({8: received}).seen[0]


def test_an_unknown_id_has_the_form_of_a_known_one_and_is_another() -> None:
    known = "L0SM9cOFvHc-Ihw="
    unknown = posts.unknown_like(known)
    assert re.fullmatch(r"[A-Za-z]{11}-[A-Za-z]{3}=", unknown)
    assert unknown != known
