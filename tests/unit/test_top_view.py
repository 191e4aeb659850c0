"""How scrapes become the contents of one screen."""

from dataclasses import replace
from typing import Any

import pytest

from gatecast.cli.top.figures import Figures, Quantiles, figures, suspects
from gatecast.cli.top.samples import Samples, Series, compare
from gatecast.cli.top.view import Broadcast, BroadcastsInProgress, RoomCost, Scrape, State, Unreachable, View, view


def series(name: str, **labels: str) -> Series:
    return Series(name, frozenset(labels.items()))


def samples(
    counters: dict[Series, float] | None = None, gauges: dict[Series, float] | None = None, *, ready: float = 1.0
) -> Samples:
    return Samples(counters or {}, {series("gatecast_ready"): ready, **(gauges or {})})


def scrape(at: float, counted: Samples | None = None, *broadcasts: Broadcast, **reasons: str) -> Scrape:
    return Scrape(at, counted or samples(), reasons, BroadcastsInProgress(broadcasts, len(broadcasts)))


def broadcast(name: str = "b", **fields: Any) -> Broadcast:
    usual: dict[str, Any] = {
        "id": name, "part": "", "age_seconds": 1.0, "delivered": 0, "gone": 0, "expired": 0, "rejected": 0,
        "undelivered": 0, "in_flight": 0, "waiting": 0, "read_ahead": 0, "all_read": False,
    }  # fmt: skip
    return Broadcast(**{**usual, **fields})


def only(shown: View) -> Figures:
    assert shown.workers[0].figures is not None
    return shown.workers[0].figures


def posts(**by_status: float) -> Samples:
    return samples({series("gatecast_posts_total", status=name.strip("_")): n for name, n in by_status.items()})


def test_posts_by_class_of_status() -> None:
    its = figures(compare(posts(), posts(_200=6, _204=2, _410=4, _429=2, _503=8, error=10), 2.0))
    assert (its.posts_2xx, its.posts_4xx, its.posts_5xx, its.posts_without_response) == (4, 3, 4, 5)


def deliveries(**by_outcome: float) -> Samples:
    return samples({series("gatecast_deliveries_total", outcome=name): n for name, n in by_outcome.items()})


def test_the_success_share_excludes_gone_and_expired() -> None:
    ended = deliveries(delivered=97, gone=50, expired=20, rejected=1, undelivered=2)
    its = figures(compare(deliveries(), ended, 1.0))
    assert (its.delivered, its.gone, its.expired, its.missed, its.success_share) == (97, 50, 20, 3, 0.97)


def test_without_a_finished_delivery_there_is_no_success_share() -> None:
    its = figures(compare(deliveries(gone=1), deliveries(gone=4), 1.0))
    assert (its.delivered, its.gone, its.success_share) == (0, 3, None)


def test_throttled_posts_by_kind_of_limit() -> None:
    def throttled(account: float, connection: float) -> Samples:
        kinds = {"account": account, "connection": connection}
        return samples({series("gatecast_throttled_posts_total", kind=kind): n for kind, n in kinds.items()})

    its = figures(compare(throttled(1, 1), throttled(3, 9), 2.0))
    assert (its.throttled_by_account, its.throttled_by_connection) == (1, 4)


def test_the_first_poll_shows_gauges_only() -> None:
    counters = {series("gatecast_deliveries_total", outcome="delivered"): 5.0, series("gatecast_posts_total"): 5.0}
    its = only(view({}, {"w:1": scrape(1.0, samples(counters, {series("gatecast_posts_in_flight"): 3.0}))}))
    assert (its.delivered, its.posts_2xx, its.success_share, its.cores) == (None, None, None, None)
    assert its.post_seconds == Quantiles(None, None, None)
    assert its.in_flight == 3


def test_rates_cover_the_time_between_two_polls() -> None:
    before, now = {"w:1": scrape(10.0, deliveries(delivered=10))}, {"w:1": scrape(14.0, deliveries(delivered=30))}
    shown = view(before, now)
    assert only(shown).delivered == 5.0
    assert shown.total is not None
    assert shown.total.delivered == 5.0


def test_rates_restart_after_an_outage() -> None:
    shown = view({"w:1": Unreachable("no")}, {"w:1": scrape(14.0, deliveries(delivered=30))})
    assert only(shown).delivered is None


@pytest.mark.parametrize(
    ("gauges", "ready", "state"),
    [
        ({}, 1.0, State.READY),
        ({}, 0.0, State.NOT_READY),
        ({"gatecast_draining": 1.0}, 1.0, State.DRAINING),
        ({"gatecast_draining": 1.0}, 0.0, State.DRAINING),
        ({"gatecast_draining": 0.0}, 1.0, State.READY),
    ],
)
def test_states(gauges: dict[str, float], ready: float, state: State) -> None:
    counted = samples(gauges={series(name): value for name, value in gauges.items()}, ready=ready)
    shown = view({}, {"w:1": scrape(1.0, counted)})
    assert shown.workers[0].state is state
    assert shown.ready == (state is State.READY)


def test_problems_have_reasons_or_at_least_components() -> None:
    parts = {
        series("gatecast_dependency_failing", component="queue"): 1.0,
        series("gatecast_dependency_failing", component="table"): 0.0,
    }
    counted = samples(gauges=parts, ready=0.0)
    shown = view({}, {"w:1": scrape(1.0, counted, queue="Connection refused"), "w:2": scrape(1.0, counted)})
    assert [worker.problems for worker in shown.workers] == [{"queue": "Connection refused"}, {"queue": ""}]


def test_unreachable_workers_are_shown_as_such() -> None:
    shown = view(
        {},
        {
            "w:1": Unreachable("Connection refused"),
            "w:2": scrape(1.0, samples({}, {series("gatecast_posts_in_flight"): 3})),
        },
    )
    lost, good = shown.workers
    assert (lost.state, lost.problems, lost.figures) == (State.UNREACHABLE, {"": "Connection refused"}, None)
    assert good.state is State.READY
    assert shown.ready == 1
    assert shown.total is not None
    assert shown.total.in_flight == 3


def test_without_a_reachable_worker_there_is_no_total() -> None:
    shown = view({}, {"w:1": Unreachable("Connection refused")})
    assert (shown.total, shown.ready, shown.in_progress, shown.broadcasts) == (None, 0, None, ())


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["10.0.0.1:9090"], ["10.0.0.1:9090"]),
        (["10.0.0.1:9090", "10.0.0.2:9090"], ["10.0.0.1", "10.0.0.2"]),
        (["localhost:1", "localhost:2"], [":1", ":2"]),
        (["[::1]:1", "[::2]:1"], ["[::1]", "[::2]"]),
        (["a:1", "b:2", "b:1"], ["a:1", "b:2", "b:1"]),
    ],
)
def test_names_are_shortened_to_what_distinguishes_workers(addresses: list[str], names: list[str]) -> None:
    shown = view({}, dict.fromkeys(addresses, scrape(1.0)))
    assert [worker.name for worker in shown.workers] == names


def test_broadcasts_of_all_workers_are_listed_oldest_first() -> None:
    now = {
        "a:1": scrape(1.0, None, broadcast("x", age_seconds=3.0), broadcast("y", age_seconds=1.0)),
        "b:1": scrape(1.0, None, broadcast("z", age_seconds=2.0)),
        "c:1": Scrape(1.0, samples(), {}, None),
    }
    shown = view({}, now)
    assert [(one.worker, one.broadcast.id) for one in shown.broadcasts] == [("a", "x"), ("b", "z"), ("a", "y")]
    assert shown.in_progress == 3


def test_the_rate_of_a_broadcast() -> None:
    before = scrape(
        1.0, None, broadcast("x", delivered=10), broadcast("x", part="p", delivered=50), broadcast("back", delivered=9)
    )
    now = scrape(
        3.0,
        None,
        broadcast("x", delivered=30),
        broadcast("x", part="p", delivered=50),
        broadcast("new", delivered=7),
        broadcast("back", delivered=2),  # received again
    )
    rates = {
        (one.broadcast.id, one.broadcast.part): one.per_second for one in view({"w:1": before}, {"w:1": now}).broadcasts
    }
    assert rates == {("x", ""): 10.0, ("x", "p"): 0.0, ("new", ""): None, ("back", ""): None}


def test_rates_are_separate_per_worker() -> None:
    before = {"a:1": scrape(1.0, None, broadcast("x", delivered=10)), "b:1": scrape(1.0)}
    now = {"a:1": scrape(2.0), "b:1": scrape(2.0, None, broadcast("x", delivered=30))}
    assert [one.per_second for one in view(before, now).broadcasts] == [None]


def test_the_settled_share_is_known_once_all_members_are_read() -> None:
    settled: dict[str, Any] = {"delivered": 60, "gone": 5, "expired": 4, "rejected": 3, "undelivered": 3}
    reading = broadcast(**settled, in_flight=5, waiting=10, read_ahead=10)
    assert (reading.settled, reading.share_settled) == (75, None)
    assert broadcast(**settled, in_flight=5, waiting=10, read_ahead=10, all_read=True).share_settled == 0.75
    assert broadcast(all_read=True).share_settled is None


def full(**gauges: float) -> frozenset[str]:
    named = {series(f"gatecast_{name}"): value for name, value in gauges.items()}
    return suspects(figures(compare(samples(), samples({}, named), 1.0)))


@pytest.mark.parametrize(
    ("gauges", "expected"),
    [
        ({}, set()),
        ({"post_rate_limit": 100.0, "post_rate_ceiling": 100.0}, set()),
        ({"post_rate_limit": 99.0, "post_rate_ceiling": 100.0}, {"rate_limit"}),
        ({"posts_in_flight": 255.0, "posts_in_flight_limit": 256.0}, set()),
        ({"posts_in_flight": 256.0, "posts_in_flight_limit": 256.0}, {"in_flight"}),
        ({"oldest_broadcast_age_seconds": 10.0}, set()),
        ({"oldest_broadcast_age_seconds": 11.0}, {"oldest_age_seconds"}),
    ],
)
def test_suspect_gauges(gauges: dict[str, float], expected: set[str]) -> None:
    assert full(**gauges) == expected


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({series("gatecast_deliveries_total", outcome="delivered"): 5.0}, set()),
        ({series("gatecast_deliveries_total", outcome="gone"): 5.0}, set()),
        ({series("gatecast_deliveries_total", outcome="expired"): 5.0}, set()),
        ({series("gatecast_deliveries_total", outcome="rejected"): 5.0}, {"missed", "success_share"}),
        ({series("gatecast_posts_total", status="200"): 5.0, series("gatecast_posts_total", status="410"): 5.0}, set()),
        ({series("gatecast_posts_total", status="500"): 5.0}, {"posts_5xx"}),
        ({series("gatecast_posts_total", status="error"): 5.0}, {"posts_without_response"}),
        ({series("gatecast_throttled_posts_total", kind="connection"): 5.0}, set()),
        ({series("gatecast_throttled_posts_total", kind="account"): 5.0}, {"throttled_by_account"}),
        ({series("process_cpu_seconds_total"): 0.8}, set()),
        ({series("process_cpu_seconds_total"): 0.95}, {"cores"}),
    ],
)
def test_suspect_rates(counters: dict[Series, float], expected: set[str]) -> None:
    assert suspects(figures(compare(samples(), samples(counters), 1.0))) == expected
    assert suspects(figures(compare(None, samples(counters), 0.0))) == set()


def test_a_suspect_figure_of_one_worker_is_suspect_in_the_total() -> None:
    slow = samples({}, {series("gatecast_oldest_broadcast_age_seconds"): 90.0})
    shown = view({}, {"a:1": scrape(1.0), "b:1": scrape(1.0, slow)})
    assert [worker.suspects for worker in shown.workers] == [set(), {"oldest_age_seconds"}]
    assert shown.suspects == {"oldest_age_seconds"}


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("gatecast_broadcast_duration_seconds", "completion_seconds"),
        ("gatecast_queue_lag_seconds", "queue_lag_seconds"),
        ("gatecast_post_duration_seconds", None),
    ],
)
def test_durations_above_the_objective_are_suspect(name: str, figure: str | None) -> None:
    for le, expected in (("10.0", set()), ("30.0", {figure} - {None})):
        observed = {series(f"{name}_bucket", le=bound): float(bound in (le, "+Inf")) for bound in ("5.0", le, "+Inf")}
        assert suspects(figures(compare(samples(), samples(observed), 1.0))) == expected


def test_waiting_dead_letters_are_suspect() -> None:
    waiting = {series("gatecast_queue_messages", queue="dead_letter", state="visible"): 1.0}
    assert suspects(figures(compare(None, samples({}, waiting), 0.0))) == {"dead_letters_queued"}


def test_the_dearest_rooms_of_all_workers_add_up() -> None:
    def costing(**units: int) -> Scrape:
        rooms = tuple(RoomCost(room, each) for room, each in units.items())
        return replace(scrape(1.0), in_progress=BroadcastsInProgress(dearest_rooms=rooms))

    shown = view({}, {"v:1": costing(a=5, b=4), "w:1": costing(b=3), "x:1": scrape(1.0)})
    assert shown.dearest_rooms == (RoomCost("b", 7), RoomCost("a", 5))


def test_billed_units_are_a_rate() -> None:
    before, after = (samples({series("gatecast_billed_messages_total"): n}) for n in (10.0, 40.0))
    assert figures(compare(before, after, 2.0)).billed == 15
