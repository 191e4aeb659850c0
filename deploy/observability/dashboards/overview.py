"""Is it healthy? What to open first: the top row answers that, and the rows below say where to look on."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, GOOD, SUSPECT, graph, quantiles, stat, table

_HEALTH: Final = (
    stat(
        "Workers ready",
        "Workers whose /readyz says 200. At 0 nothing is delivered.",
        "sum(gatecast_ready) or vector(0)",
        unit=units.Number,
        runbook="gatecastnoworkerready",
        below=BAD,
        steps={1: GOOD},
    ),
    stat(
        "Workers not ready",
        "Workers that say that they are not ready, or do not answer Prometheus. Well at 0, but for a moment after a "
        "start.",
        "count(up) - (sum(gatecast_ready) or vector(0))",
        unit=units.Number,
        runbook="gatecastpartintrouble",
        steps={1: SUSPECT},
    ),
    stat(
        "Alerts firing",
        "The table below has them.",
        'count(ALERTS{alertname=~"Gatecast.*", alertstate="firing"}) or vector(0)',
        unit=units.Number,
        runbook="alerts",
        steps={1: BAD},
    ),
    stat(
        "Error budget burn, 1 h",
        "How many times as fast as it may be the error budget was used up in the last hour. Up to 1 the objective is "
        "kept.",
        'max(service:gatecast_slo_burn:ratio{window="1h"})',
        unit=units.Short,
        runbook="gatecastsloburnsfast",
        steps={1: SUSPECT, 14.4: BAD},
    ),
    stat(
        "Completion, p99",
        "99 of 100 broadcasts took no longer, from published to the last delivery settled, in the last 5 minutes.",
        "histogram_quantile(0.99, sum by (le) (rate(gatecast_broadcast_duration_seconds_bucket[5m]))) >= 0",
        unit=units.Seconds,
        runbook="gatecastsloburnsfast",
        steps={5: SUSPECT, 10: BAD},
    ),
    stat(
        "Deliveries that succeed",
        "Of the deliveries that ended in the last 5 minutes, but for gone clients: the share that reached its client.",
        'sum(rate(gatecast_deliveries_total{outcome="delivered"}[5m]))'
        ' / (sum(rate(gatecast_deliveries_total{outcome!="gone"}[5m])) > 0)',
        unit=units.PercentUnit,
        runbook="gatecastdeliveriesmissed",
        below=BAD,
        steps={0.95: SUSPECT, 0.99: GOOD},
    ),
    stat(
        "Oldest broadcast",
        "Since it was published, of all that workers have in hand.",
        "max(gatecast_oldest_broadcast_age_seconds)",
        unit=units.Seconds,
        runbook="gatecastbroadcasttooold",
        steps={60: SUSPECT, 300: BAD},
    ),
    stat(
        "Backlog",
        "Messages on the queue that nobody works on yet. Where it stays, there is more to do than is done.",
        'sum(max by (service) (gatecast_queue_messages{queue="main", state="visible"}))',
        unit=units.Short,
        runbook="gatecastqueuelag",
        steps={100: SUSPECT, 1000: BAD},
    ),
)

_NEWS: Final = (
    table(
        "Alerts that are firing",
        "Each has a section of its name in the runbooks.",
        'ALERTS{alertname=~"Gatecast.*", alertstate="firing"}',
        runbook="alerts",
        width=6,
        hidden=["alertstate", "job", "instance", "window"],
    ),
    graph(
        "Deliveries",
        "Deliveries that ended, by outcome. Gone is no failure; undelivered and rejected ones are dead letters.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_deliveries_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-account-and-the-clients",
        width=6,
        stacked=True,
    ),
    graph(
        "Completion time",
        "From being published to the last delivery settled. Half of the broadcasts took no longer than p50, and so on. "
        "A client that does not read holds its broadcast up for at least 30 s.",
        quantiles("gatecast_broadcast_duration_seconds"),
        unit=units.Seconds,
        runbook="gatecastsloburnsfast",
        width=6,
        limits={10: BAD},
    ),
    graph(
        "Error budget burn",
        "How many times as fast as it may be the error budget is used up, over windows that end now. At 1 it just "
        "lasts.",
        {"{{window}}": "max by (window) (service:gatecast_slo_burn:ratio)"},
        unit=units.Short,
        runbook="gatecastsloburnsslowly",
        width=6,
        limits={1: SUSPECT, 14.4: BAD},
    ),
)

_QUEUE: Final = (
    graph(
        "Queue lag",
        "How long messages had waited, on the queue or for a place, when a worker began with them. Well within a "
        "second.",
        quantiles("gatecast_queue_lag_seconds"),
        unit=units.Seconds,
        runbook="gatecastqueuelag",
        limits={60: BAD},
    ),
    graph(
        "Backlog",
        "Messages on the queue, as SQS counts them: visible (nobody works on them yet), in flight (in hand of a "
        "worker) and delayed (remainders for slow members).",
        {"{{state}}": 'sum by (state) (max by (service, state) (gatecast_queue_messages{queue="main"}))'},
        unit=units.Short,
        runbook="gatecastslotstaken",
    ),
    graph(
        "Oldest broadcast in hand",
        "Since it was published, by task. A line that rises all the time is a broadcast that does not come to its end.",
        {"{{instance}}": "gatecast_oldest_broadcast_age_seconds"},
        unit=units.Seconds,
        runbook="gatecastbroadcasttooold",
        limits={300: BAD},
    ),
)

_ACCOUNT: Final = (
    graph(
        "Rate",
        "Posts answered 200, the limit that the workers have set themselves, and its ceiling. A limit well below the "
        "ceiling: the account throttles.",
        {
            "answered 200": 'sum(rate(gatecast_posts_total{status="200"}[$__rate_interval]))',
            "limit": "sum(gatecast_post_rate_limit)",
            "ceiling": "sum(gatecast_post_rate_ceiling)",
        },
        unit=units.CountsPerSecond,
        runbook="gatecastthrottled",
    ),
    graph(
        "Posts answered 429",
        "By whose limit it is taken for: the account's, which lowers the rate, or one connection's, which only makes "
        "that connection wait.",
        {"{{kind}}": "sum by (kind) (rate(gatecast_throttled_posts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="gatecastthrottled",
        stacked=True,
    ),
    graph(
        "Posts in flight",
        "Posts under way, and how many there may be. At the limit, answers are too slow for this rate: raise "
        "GATECAST_MAX_IN_FLIGHT.",
        {"in flight": "sum(gatecast_posts_in_flight)", "limit": "sum(gatecast_posts_in_flight_limit)"},
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
)

_CLIENTS: Final = (
    graph(
        "Clients that do not read, and refusals",
        "Deliveries that were given up (undelivered), refused for good (rejected) or not wanted any more (expired).",
        {
            "{{outcome}}": "sum by (outcome)"
            ' (rate(gatecast_deliveries_total{outcome=~"undelivered|rejected|expired"}[$__rate_interval]))'
        },
        unit=units.CountsPerSecond,
        runbook="gatecastdeliveriesmissed",
    ),
    graph(
        "Clients that are gone",
        "Deliveries answered 410, memberships removed for it, and connections left in the table because nothing proves "
        "that they are gone.",
        {
            "gone": 'sum(rate(gatecast_deliveries_total{outcome="gone"}[$__rate_interval]))',
            "memberships reaped": "sum(rate(gatecast_memberships_reaped_total[$__rate_interval]))",
            "unproven (number)": "sum(gatecast_unproven_gone)",
        },
        unit=units.Short,
        runbook="gatecastgoneunproven",
    ),
    graph(
        "Dead letters",
        "Written in the last 5 minutes, by reason, and how many wait to be sent again.",
        {
            "{{reason}}": "sum by (reason) (increase(gatecast_dead_letters_total[5m]))",
            "waiting": 'sum(max by (service) (gatecast_queue_messages{queue="dead_letter", state="visible"}))',
        },
        unit=units.Short,
        runbook="dead-letters",
    ),
)

_TASKS: Final = (
    graph(
        "Event loop lag, p99",
        "How late the loop runs a timer, by task. Above 0.1 s the task has too little CPU.",
        {
            "{{instance}}": "histogram_quantile(0.99,"
            " sum by (instance, le) (rate(gatecast_event_loop_lag_seconds_bucket[$__rate_interval])))"
        },
        unit=units.Seconds,
        runbook="gatecasteventloopstalls",
        limits={0.1: BAD},
    ),
    graph(
        "Memory",
        "Resident memory by task. It does not grow with rooms or with the queue.",
        {"{{instance}}": "process_resident_memory_bytes"},
        unit=units.BytesIEC,
        runbook="the-worker",
    ),
    graph(
        "CPU",
        "Cores in use, by task. The event loop can use one: near 1 the task is full.",
        {"{{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecasteventloopstalls",
        limits={0.9: SUSPECT},
    ),
)

OVERVIEW: Final = Board(
    name="overview",
    title="Overview",
    about="Is it healthy? The top row answers that.",
    rows={
        "": (*_HEALTH, *_NEWS),
        "The queue": _QUEUE,
        "The account": _ACCOUNT,
        "The clients": _CLIENTS,
        "The tasks": _TASKS,
    },
)
