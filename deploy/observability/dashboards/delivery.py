"""The dashboard *Delivery*: from posts and their responses up to broadcasts."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, SUSPECT, distribution, graph, quantiles

_POSTS: Final = (
    graph(
        "Posts by status",
        "Attempts per second by HTTP status, or error if there was no response.",
        {"{{status}}": "sum by (status) (rate(gatecast_posts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-account-and-the-clients",
        stacked=True,
    ),
    distribution(
        "Response time",
        "Time from a post to its response. API Gateway responds in about 5 to 15 ms; posts near 10 s have timed out.",
        "gatecast_post_duration_seconds",
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Response time, percentiles",
        "Time from a post to its response.",
        quantiles("gatecast_post_duration_seconds"),
        unit=units.Seconds,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Posts that fail",
        "The share of posts that got no response, or 5xx. They are retried. If every post fails, each worker only "
        "sends probe posts, at most 50 per second.",
        {
            "no response": 'sum(rate(gatecast_posts_total{status="error"}[$__rate_interval]))'
            " / sum(rate(gatecast_posts_total[$__rate_interval]))",
            "5xx": '(sum(rate(gatecast_posts_total{status=~"5.."}[$__rate_interval])) or vector(0))'
            " / sum(rate(gatecast_posts_total[$__rate_interval]))",
        },
        unit=units.PercentUnit,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Posts per delivery",
        "Attempts per settled delivery. 1 if every post succeeds at once; higher the more posts are retried.",
        {
            "posts": "sum(rate(gatecast_posts_total[$__rate_interval]))"
            " / sum(rate(gatecast_deliveries_total[$__rate_interval]))"
        },
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
    graph(
        "Connections that do not read",
        "Connections that returned 429 and have not yet accepted what waits for them, by task. While the account "
        "throttles, their number is high and changes fast.",
        {"{{instance}}": "gatecast_connections_stalled"},
        unit=units.Short,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Slow clients given up",
        "Connections given up per minute because their clients do not read: closed, kept open, or failed to close.",
        {"{{outcome}}": "60 * sum by (outcome) (rate(gatecast_slow_clients_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="gatecastslowclientsgivenup",
    ),
    graph(
        "Reference posts",
        "Posts per second to made-up connections. They are sent only if no other posts show the cause of a failure.",
        {"{{instance}}": "rate(gatecast_reference_posts_total[$__rate_interval])"},
        unit=units.CountsPerSecond,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Waiting for retry",
        "Deliveries that wait for a retry, or in the line of a connection that does not read, by task. A small number "
        "is normal.",
        {"{{instance}}": "gatecast_deliveries_waiting"},
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
)

_RATE: Final = (
    graph(
        "In flight and connections",
        "Posts in flight, open keep-alive connections to @connections, and the limit of both (GATECAST_MAX_IN_FLIGHT).",
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
        "The rate limit of each task, as a share of its ceiling (GATECAST_MAX_POSTS_PER_SECOND). The task lowers it "
        "when the account throttles, and raises it again step by step.",
        {"{{instance}}": "gatecast_post_rate_limit / gatecast_post_rate_ceiling"},
        unit=units.PercentUnit,
        runbook="gatecastthrottled",
        width=6,
        maximum=1,
        limits={0.5: SUSPECT},
    ),
    graph(
        "Rate cuts",
        "Reductions of the rate limit per minute, by task.",
        {"{{instance}}": "60 * rate(gatecast_post_rate_cuts_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecastthrottled",
        width=6,
    ),
    graph(
        "Share of posts throttled",
        "The share of posts with status 429, by cause. While the account throttles, a few percent are normal: they are "
        "the cost of finding the granted rate.",
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
        "Queue messages per second, by outcome. Split broadcasts continue as parts, released ones on another worker; "
        "duplicates are acknowledged without a post.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_broadcasts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-worker",
        stacked=True,
    ),
    graph(
        "Places in use",
        "Broadcasts that hold a place, as a share of the places of each task (GATECAST_MAX_BROADCASTS). At 100% "
        "nothing more is received.",
        {"{{instance}}": "gatecast_broadcasts_in_progress / gatecast_broadcasts_in_progress_limit"},
        unit=units.PercentUnit,
        runbook="gatecastplacestaken",
        maximum=1,
        limits={0.8: SUSPECT},
    ),
    distribution(
        "Completion time",
        "Time from publication to the last settled delivery. Broadcasts above 30 s have waited for clients that do not "
        "read, or are dead letters that were sent again.",
        "gatecast_broadcast_duration_seconds",
        runbook="gatecastsloburnsfast",
    ),
    distribution(
        "Queue lag",
        "Time from publication until a worker starts a message: on the queue, and waiting for a place.",
        "gatecast_queue_lag_seconds",
        runbook="gatecastqueuelag",
    ),
    graph(
        "Remainders",
        "Remainders per minute: slow members of a broadcast, moved to a broadcast of their own so that they delay no "
        "others.",
        {"remainders": "60 * sum(rate(gatecast_remainders_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="clients-that-do-not-read",
    ),
    graph(
        "Checkpoints",
        "Checkpoints written per second, by task. A broadcast writes one after 500 deliveries or one second; if it "
        "cannot, its deliveries stop.",
        {"{{instance}}": "rate(gatecast_checkpoints_total[$__rate_interval])"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
    ),
    graph(
        "Messages of rooms with history",
        "Messages appended to rooms' histories per second. Those without their payload are missing for clients that "
        "read them again; those that the table rejected as a whole have no offset.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_history_messages_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
    ),
    graph(
        "Transactions of histories",
        "Transactions per second, and those of them that were repeated because another worker appended to the same "
        "room first. Many repetitions: the room's messages are spread over many workers.",
        {
            "transactions": "sum(rate(gatecast_history_transactions_total[$__rate_interval]))",
            "repeated": "sum(rate(gatecast_history_conflicts_total[$__rate_interval]))",
        },
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
    ),
    graph(
        "Time to append",
        "From when a message can get its offset until it has one, with the wait for earlier transactions of its room. "
        "Members are read after that.",
        quantiles("gatecast_history_append_duration_seconds"),
        unit=units.Seconds,
        runbook="sqs-dynamodb-credentials",
    ),
    graph(
        "Parked and waiting",
        "Parked: broadcasts that wait only for single connections. Waiting: received broadcasts that wait for a place "
        "because their room or kind holds its share of the places.",
        {"parked": "sum(gatecast_broadcasts_parked)", "waiting": "sum(gatecast_broadcasts_waiting)"},
        unit=units.Short,
        runbook="gatecastbroadcastswaiting",
        width=12,
    ),
    graph(
        "Deferred",
        "Queue messages per minute returned to the queue with a delay, because too many of their kind wait already.",
        {"{{instance}}": "60 * rate(gatecast_broadcasts_deferred_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecastbroadcastswaiting",
        width=12,
    ),
)

_OUTCOMES: Final = (
    graph(
        "Delivered",
        "Successful deliveries per second, by task. Under load, the tasks share the work evenly.",
        {"{{instance}}": 'rate(gatecast_deliveries_total{outcome="delivered"}[$__rate_interval])'},
        unit=units.CountsPerSecond,
        runbook="the-worker",
        stacked=True,
    ),
    graph(
        "Not delivered",
        "The share of deliveries with any other outcome.",
        {
            "{{outcome}}": 'sum by (outcome) (rate(gatecast_deliveries_total{outcome!="delivered"}[$__rate_interval]))'
            " / on () group_left () sum(rate(gatecast_deliveries_total[$__rate_interval]))"
        },
        unit=units.PercentUnit,
        runbook="gatecastdeliveriesmissed",
        limits={0.01: BAD},
    ),
    graph(
        "Gone but not removed",
        "Connections that returned 410 but stay in the table because no other post has succeeded, by task.",
        {"{{instance}}": "gatecast_unproven_gone"},
        unit=units.Short,
        runbook="gatecastgoneunproven",
    ),
)

_COSTS: Final = (
    graph(
        "Billed messages",
        "Units of 32 KB of the posts that returned 200, per second, by task: nearly all of what API Gateway bills for "
        "deliveries. /broadcasts of a worker shows the dearest rooms.",
        {"{{instance}}": "rate(gatecast_billed_messages_total[$__rate_interval])"},
        unit=units.CountsPerSecond,
        runbook="the-account-and-the-clients",
        stacked=True,
        width=12,
    ),
    graph(
        "Receipts",
        "Receipts sent per minute, by task. A broadcast with a receipt is acknowledged only after that.",
        {"{{instance}}": "60 * rate(gatecast_receipts_total[$__rate_interval])"},
        unit=units.Short,
        runbook="sqs-dynamodb-credentials",
        width=12,
    ),
)

DELIVERY: Final = Board(
    name="delivery",
    title="Delivery",
    about="How broadcasts are delivered: posts and responses, the account's rate, broadcasts, outcomes, costs.",
    rows={
        "Posts": _POSTS,
        "Rate": _RATE,
        "Broadcasts": _BROADCASTS,
        "Delivery outcomes": _OUTCOMES,
        "Costs and receipts": _COSTS,
    },
)
