"""The dashboard *Overview*, to be opened first: the top row shows whether all is well, the rows below where to look."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, GOOD, SUSPECT, graph, quantiles, stat, table

_HEALTH: Final = (
    stat(
        "Workers ready",
        "Workers whose /readyz returns 200. At 0 nothing is delivered.",
        "sum(gatecast_ready) or vector(0)",
        unit=units.Number,
        runbook="gatecastnoworkerready",
        below=BAD,
        steps={1: GOOD},
    ),
    stat(
        "Workers not ready",
        "Workers that report not being ready, or that Prometheus cannot scrape. Normally 0, except just after a start.",
        "count(up) - (sum(gatecast_ready) or vector(0))",
        unit=units.Number,
        runbook="gatecastdependencyfailing",
        steps={1: SUSPECT},
    ),
    stat(
        "Alerts firing",
        "The table below lists them.",
        'count(ALERTS{alertname=~"Gatecast.*", alertstate="firing"}) or vector(0)',
        unit=units.Number,
        runbook="alerts",
        steps={1: BAD},
    ),
    stat(
        "Error budget burn, 1 h",
        "How many times faster than the objective allows the error budget was used up in the last hour. Up to 1 the "
        "objective is met.",
        'max(service:gatecast_slo_burn:ratio{window="1h"})',
        unit=units.Short,
        runbook="gatecastsloburnsfast",
        steps={1: SUSPECT, 14.4: BAD},
    ),
    stat(
        "Completion, p99",
        "99% of the broadcasts of the last 5 minutes took no longer, from publication to the last settled delivery.",
        "histogram_quantile(0.99, sum by (le) (rate(gatecast_broadcast_duration_seconds_bucket[5m]))) >= 0",
        unit=units.Seconds,
        runbook="gatecastsloburnsfast",
        steps={5: SUSPECT, 10: BAD},
    ),
    stat(
        "Delivery success rate",
        "The share of the deliveries of the last 5 minutes that reached their client. Gone clients do not count.",
        'sum(rate(gatecast_deliveries_total{outcome="delivered"}[5m]))'
        ' / (sum(rate(gatecast_deliveries_total{outcome!="gone"}[5m])) > 0)',
        unit=units.PercentUnit,
        runbook="gatecastdeliveriesmissed",
        below=BAD,
        steps={0.95: SUSPECT, 0.99: GOOD},
    ),
    stat(
        "Oldest broadcast",
        "Age of the oldest broadcast in progress, measured from publication.",
        "max(gatecast_oldest_broadcast_age_seconds)",
        unit=units.Seconds,
        runbook="gatecastbroadcasttooold",
        steps={60: SUSPECT, 300: BAD},
    ),
    stat(
        "Backlog",
        "Messages on the queue that no worker has received yet. If it stays high, the workers do not keep up.",
        'sum(max by (service) (gatecast_queue_messages{queue="main", state="visible"}))',
        unit=units.Short,
        runbook="gatecastqueuelag",
        steps={100: SUSPECT, 1000: BAD},
    ),
)

_SUMMARY: Final = (
    table(
        "Firing alerts",
        "Each alert has its own section in the runbook.",
        'ALERTS{alertname=~"Gatecast.*", alertstate="firing"}',
        runbook="alerts",
        width=6,
        hidden=["alertstate", "job", "instance", "window"],
    ),
    graph(
        "Deliveries",
        "Settled deliveries per second by outcome. Gone is no failure; undelivered and rejected ones are dead letters.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_deliveries_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="the-account-and-the-clients",
        width=6,
        stacked=True,
    ),
    graph(
        "Completion time",
        "Time from publication to the last settled delivery. Half of the broadcasts took no longer than p50, and so "
        "on. A client that does not read delays its broadcast by at least 30 s.",
        quantiles("gatecast_broadcast_duration_seconds"),
        unit=units.Seconds,
        runbook="gatecastsloburnsfast",
        width=6,
        limits={10: BAD},
    ),
    graph(
        "Error budget burn",
        "How many times faster than the objective allows the error budget is used up, by window. At 1 the budget just "
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
        "Time from publication until a worker starts a message: on the queue, and waiting for a place. Normally below "
        "1 s.",
        quantiles("gatecast_queue_lag_seconds"),
        unit=units.Seconds,
        runbook="gatecastqueuelag",
        limits={60: BAD},
    ),
    graph(
        "Backlog",
        "Messages on the queue, as SQS counts them: visible (not received yet), in flight (received by a worker) and "
        "delayed (remainders for slow members).",
        {"{{state}}": 'sum by (state) (max by (service, state) (gatecast_queue_messages{queue="main"}))'},
        unit=units.Short,
        runbook="gatecastplacestaken",
    ),
    graph(
        "Oldest broadcast in progress",
        "Age since publication, by task. A line that rises steadily is a broadcast that does not complete.",
        {"{{instance}}": "gatecast_oldest_broadcast_age_seconds"},
        unit=units.Seconds,
        runbook="gatecastbroadcasttooold",
        limits={300: BAD},
    ),
)

_ACCOUNT: Final = (
    graph(
        "Rate",
        "Posts per second with status 200, the workers' current rate limit, and its ceiling. A limit well below the "
        "ceiling means that the account throttles.",
        {
            "status 200": 'sum(rate(gatecast_posts_total{status="200"}[$__rate_interval]))',
            "limit": "sum(gatecast_post_rate_limit)",
            "ceiling": "sum(gatecast_post_rate_ceiling)",
        },
        unit=units.CountsPerSecond,
        runbook="gatecastthrottled",
    ),
    graph(
        "Posts with status 429",
        "Per second, by cause: the account's limit, which lowers the rate, or one connection's full buffer, which "
        "delays only that connection.",
        {"{{kind}}": "sum by (kind) (rate(gatecast_throttled_posts_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="gatecastthrottled",
        stacked=True,
    ),
    graph(
        "Posts in flight",
        "Posts in flight, and their limit. At the limit, responses are too slow for this rate: raise "
        "GATECAST_MAX_IN_FLIGHT.",
        {"in flight": "sum(gatecast_posts_in_flight)", "limit": "sum(gatecast_posts_in_flight_limit)"},
        unit=units.Short,
        runbook="the-account-and-the-clients",
    ),
)

_CLIENTS: Final = (
    graph(
        "Undelivered, rejected and expired",
        "Deliveries per second that were given up because the client does not read (undelivered), that the endpoint "
        "rejected (rejected), or that were too late to be sent (expired).",
        {
            "{{outcome}}": "sum by (outcome)"
            ' (rate(gatecast_deliveries_total{outcome=~"undelivered|rejected|expired"}[$__rate_interval]))'
        },
        unit=units.CountsPerSecond,
        runbook="gatecastdeliveriesmissed",
    ),
    graph(
        "Gone clients",
        "Deliveries with status 410, removed memberships, and connections with an expired token that were closed, had "
        "ended or could not be closed, per second; and the number of connections that stay in the table because "
        "nothing proves that they are gone.",
        {
            "gone": 'sum(rate(gatecast_deliveries_total{outcome="gone"}[$__rate_interval]))',
            "memberships reaped": "sum(rate(gatecast_memberships_reaped_total[$__rate_interval]))",
            "expired token: {{outcome}}": "sum by (outcome)"
            " (rate(gatecast_expired_connections_total[$__rate_interval]))",
            "unproven (number)": "sum(gatecast_unproven_gone)",
        },
        unit=units.Short,
        runbook="gatecastgoneunproven",
    ),
    graph(
        "Dead letters",
        "Dead letters written in the last 5 minutes, by reason, and the number that wait on the dead-letter queue.",
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
        "How late the event loop runs a timer, by task. Above 0.1 s the task has too little CPU.",
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
        "Resident memory by task. It does not grow with the size of rooms or the length of the queue.",
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
    about="The top row shows whether all is well; the rows below show where to look.",
    rows={
        "": (*_HEALTH, *_SUMMARY),
        "Queue": _QUEUE,
        "Account": _ACCOUNT,
        "Clients": _CLIENTS,
        "Tasks": _TASKS,
    },
)
