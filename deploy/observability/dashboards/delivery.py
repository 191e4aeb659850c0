"""How are broadcasts delivered? From the post and its answer up to the broadcast."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, SUSPECT, distribution, graph, quantiles

_POSTS: Final = (
    graph(
        "Posts by status",
        "Attempts by the HTTP status that came back, or error where none came.",
        {"{{status}}": "sum by (status) (rate(gatecast_posts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-account-and-the-clients",
        stacked=True,
    ),
    distribution(
        "Answer time",
        "From a post to its answer. API Gateway answers in 5 to 15 ms or so; what is near 10 s has timed out.",
        "gatecast_post_duration_seconds",
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Answer time, percentiles",
        "From a post to its answer.",
        quantiles("gatecast_post_duration_seconds"),
        unit=units.Seconds,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Posts that fail",
        "The share of posts that got no answer, or 5xx. They are tried again; where all fail, one a second.",
        {
            "no answer": 'sum(rate(gatecast_posts_total{status="error"}[$__rate_interval]))'
            " / sum(rate(gatecast_posts_total[$__rate_interval]))",
            "5xx": '(sum(rate(gatecast_posts_total{status=~"5.."}[$__rate_interval])) or vector(0))'
            " / sum(rate(gatecast_posts_total[$__rate_interval]))",
        },
        unit=units.PercentUnit,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Posts a delivery",
        "Attempts for each delivery that ended. 1 where everything succeeds at once; more where much is tried again.",
        {
            "posts": "sum(rate(gatecast_posts_total[$__rate_interval]))"
            " / sum(rate(gatecast_deliveries_total[$__rate_interval]))"
        },
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Connections that do not read",
        "Connections that returned 429 and have not yet taken what waits for them, by task. While the account "
        "throttles they are many and change fast.",
        {"{{instance}}": "gatecast_connections_stalled"},
        unit=units.Short,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Slow clients given up",
        "Connections given up per minute because their clients do not read, by what became of them.",
        {"{{outcome}}": "60 * sum by (outcome) (rate(gatecast_slow_clients_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="gatecastslowclientsgivenup",
    ),
    graph(
        "Reference posts",
        "Posts per second to made-up connections. They are sent only while nothing else tells what a failure means.",
        {"{{instance}}": "rate(gatecast_reference_posts_total[$__rate_interval])"},
        unit=units.CountsPerSecond,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Waiting to be tried again",
        "Deliveries that wait for a retry, or in the line of a connection that does not read, by task. A few are "
        "normal.",
        {"{{instance}}": "gatecast_deliveries_waiting"},
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
)

_PACE: Final = (
    graph(
        "In flight and connections",
        "Posts under way, keep-alive connections to @connections that are open, and the limit of both.",
        {
            "in flight": "sum(gatecast_posts_in_flight)",
            "connections": "sum(gatecast_http_connections)",
            "limit": "sum(gatecast_posts_in_flight_limit)",
        },
        unit=units.Short,
        runbook="the-account-and-the-clients",
        width=6,
    ),
    graph(
        "Rate limit",
        "What each task allows itself, as a share of its ceiling. It comes down when the account throttles and goes up "
        "again by a fiftieth of the ceiling a second.",
        {"{{instance}}": "gatecast_post_rate_limit / gatecast_post_rate_ceiling"},
        unit=units.PercentUnit,
        runbook="gatecastthrottled",
        width=6,
        most=1,
        limits={0.5: SUSPECT},
    ),
    graph(
        "Rate cuts",
        "How often a task has lowered its limit, a minute.",
        {"{{instance}}": "60 * rate(gatecast_post_rate_cuts_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecastthrottled",
        width=6,
    ),
    graph(
        "Share of posts throttled",
        "Of all posts, answered 429. While the account throttles, a few in a hundred are what finding its rate costs.",
        {
            "{{kind}}": "sum by (kind) (rate(gatecast_throttled_posts_total[$__rate_interval]))"
            " / on () group_left () sum(rate(gatecast_posts_total[$__rate_interval]))"
        },
        unit=units.PercentUnit,
        runbook="gatecastthrottled",
        width=6,
        limits={0.05: SUSPECT},
    ),
)

_BROADCASTS: Final = (
    graph(
        "Broadcasts",
        "Queue messages by what became of them. Split ones go on as parts, released ones at another worker; duplicates "
        "are recognised and dropped.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_broadcasts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-worker",
        stacked=True,
    ),
    graph(
        "Places taken",
        "Broadcasts that hold a place, as a share of the places of each task. At 100% nothing more is received.",
        {"{{instance}}": "gatecast_broadcasts_in_progress / gatecast_broadcasts_in_progress_limit"},
        unit=units.PercentUnit,
        runbook="gatecastslotstaken",
        most=1,
        limits={0.8: SUSPECT},
    ),
    distribution(
        "Completion time",
        "From being published to the last delivery settled. What takes more than 30 s has waited for clients that do "
        "not read, or was sent again.",
        "gatecast_broadcast_duration_seconds",
        runbook="gatecastsloburnsfast",
    ),
    distribution(
        "Queue lag",
        "How long messages had waited, on the queue or for a place, when a worker began with them.",
        "gatecast_queue_lag_seconds",
        runbook="gatecastqueuelag",
    ),
    graph(
        "Remainders",
        "Broadcasts a minute that left their slow members to a broadcast of their own, so that they hold up nobody.",
        {"remainders": "60 * sum(rate(gatecast_remainders_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Checkpoints",
        "Written a second. A broadcast writes one after 500 deliveries or a second; without them its deliveries stop.",
        {"{{instance}}": "rate(gatecast_checkpoints_total[$__rate_interval])"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
    ),
    graph(
        "Parked and waiting",
        "Broadcasts that only wait for single connections, and received ones that wait for a place because their room "
        "or kind holds its share.",
        {"parked": "sum(gatecast_broadcasts_parked)", "waiting": "sum(gatecast_broadcasts_waiting)"},
        unit=units.Short,
        runbook="gatecastbroadcastswaiting",
        width=12,
    ),
    graph(
        "Deferred",
        "Queue messages per minute sent back for a while, because too many of their kind wait already.",
        {"{{instance}}": "60 * rate(gatecast_broadcasts_deferred_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecastbroadcastswaiting",
        width=12,
    ),
)

_ENDINGS: Final = (
    graph(
        "Delivered",
        "By task: work is shared evenly where there is enough of it.",
        {"{{instance}}": 'rate(gatecast_deliveries_total{outcome="delivered"}[$__rate_interval])'},
        unit=units.CountsPerSecond,
        runbook="the-worker",
        stacked=True,
    ),
    graph(
        "Not delivered",
        "The share of deliveries that ended in each other way.",
        {
            "{{outcome}}": 'sum by (outcome) (rate(gatecast_deliveries_total{outcome!="delivered"}[$__rate_interval]))'
            " / on () group_left () sum(rate(gatecast_deliveries_total[$__rate_interval]))"
        },
        unit=units.PercentUnit,
        runbook="gatecastdeliveriesmissed",
        limits={0.01: BAD},
    ),
    graph(
        "Gone, not removed",
        "Connections answered 410 that stay in the table because nothing else succeeds, by task.",
        {"{{instance}}": "gatecast_unproven_gone"},
        unit=units.Short,
        runbook="gatecastgoneunproven",
    ),
)

DELIVERY: Final = Board(
    name="delivery",
    title="Delivery",
    about="How broadcasts are delivered: posts and their answers, the account's rate, broadcasts and their ends.",
    rows={"Posts": _POSTS, "Pace": _PACE, "Broadcasts": _BROADCASTS, "How deliveries end": _ENDINGS},
)
