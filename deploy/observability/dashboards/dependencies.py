"""What the worker stands on: SQS, DynamoDB, credentials, and its own process."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, SUSPECT, distribution, graph, quantiles, states

_TROUBLE: Final = (
    states(
        "Trouble by part",
        "Red while a part fails at any task, as /readyz names it. The log has the reason: dependency.failing.",
        {"{{component}}": "max by (component) (gatecast_dependency_failing)"},
        runbook="gatecastpartintrouble",
        width=12,
        names=("well", "trouble"),
        good=0,
    ),
    graph(
        "Failed calls by part",
        "All are tried again, without end. A few are normal.",
        {"{{component}}": "sum by (component) (rate(gatecast_dependency_failures_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=12,
    ),
    states(
        "Ready",
        "Green while /readyz says 200, by task.",
        {"{{instance}}": "gatecast_ready"},
        runbook="gatecastnoworkerready",
        width=12,
        names=("not ready", "ready"),
        good=1,
    ),
    states(
        "Draining",
        "Red from SIGTERM to the end of the process, by task: a deployment, a scale-in, Spot.",
        {"{{instance}}": "gatecast_draining"},
        runbook="the-worker",
        width=12,
        names=("running", "draining"),
        good=0,
    ),
)

_CALLS: Final = (
    graph(
        "Calls",
        "Calls to SQS and DynamoDB that were answered, by operation.",
        {"{{operation}}": "sum by (operation) (rate(gatecast_service_call_duration_seconds_count[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
        stacked=True,
    ),
    graph(
        "Calls that failed",
        "Calls that were refused or got no answer, by operation.",
        {"{{operation}}": "sum by (operation) (rate(gatecast_service_call_errors_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
    ),
    graph(
        "Time of a call, p99",
        "By operation. ReceiveMessage takes up to 5 s where the queue is empty: it is a long poll.",
        {
            "{{operation}}": "histogram_quantile(0.99,"
            " sum by (operation, le) (rate(gatecast_service_call_duration_seconds_bucket[$__rate_interval])))"
        },
        unit=units.Seconds,
        runbook="sqs-dynamodb-credentials",
        width=6,
    ),
    graph(
        "Damaged items",
        "Items of the table that could not be read, each time, by kind. The log names them: item.damaged.",
        {"{{item}}": "sum by (item) (rate(gatecast_damaged_items_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
    ),
)

_LEASES: Final = (
    graph(
        "Lease extensions",
        "By outcome. Failed ones are tried again. A lost lease: another worker repeats up to 1,000 deliveries.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_lease_extensions_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="gatecastleaseslost",
    ),
    graph(
        "Credentials expire in",
        "By task. They are renewed from 15 minutes before their end on. Nothing here: they do not expire.",
        {"{{instance}}": "gatecast_credentials_expiry_timestamp_seconds - time()"},
        unit=units.Seconds,
        runbook="gatecastcredentialsexpire",
        limits={600: SUSPECT},
    ),
    graph(
        "Dead-letter queue",
        "Messages on it, as SQS counts them.",
        {"{{state}}": 'sum by (state) (max by (service, state) (gatecast_queue_messages{queue="dead_letter"}))'},
        unit=units.Short,
        runbook="gatecastdeadletterswaiting",
        limits={100: SUSPECT},
    ),
)

_PROCESS: Final = (
    graph(
        "Memory",
        "Resident memory by task.",
        {"{{instance}}": "process_resident_memory_bytes"},
        unit=units.BytesIEC,
        runbook="the-worker",
        width=6,
    ),
    graph(
        "CPU",
        "Cores in use, by task. The event loop can use one.",
        {"{{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"},
        unit=units.Short,
        runbook="gatecasteventloopstalls",
        width=6,
        limits={0.9: SUSPECT},
    ),
    graph(
        "Open files",
        "By task, as a share of how many there may be: connections are files.",
        {"{{instance}}": "process_open_fds / process_max_fds"},
        unit=units.PercentUnit,
        runbook="the-worker",
        width=6,
        limits={0.8: BAD},
    ),
    distribution(
        "Event loop lag",
        "How late the loop runs a timer, over all tasks.",
        "gatecast_event_loop_lag_seconds",
        runbook="gatecasteventloopstalls",
        width=6,
    ),
    graph(
        "Event loop lag, percentiles",
        "How late the loop runs a timer, over all tasks.",
        quantiles("gatecast_event_loop_lag_seconds"),
        unit=units.Seconds,
        runbook="gatecasteventloopstalls",
        width=6,
        limits={0.1: BAD},
    ),
    graph(
        "Garbage collections",
        "A minute, by generation, over all tasks. A full one (2) stops the loop for a moment.",
        {"generation {{generation}}": "60 * sum by (generation) (rate(python_gc_collections_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="gatecasteventloopstalls",
        width=6,
    ),
    graph(
        "Running for",
        "By task. A saw's teeth: it starts again and again.",
        {"{{instance}}": "time() - process_start_time_seconds"},
        unit=units.Seconds,
        runbook="gatecastworkerrestarting",
        width=6,
    ),
    graph(
        "Versions",
        "Tasks by version: two of them while a deployment goes on.",
        {"{{version}}": "sum by (version) (gatecast_build_info)"},
        unit=units.Short,
        runbook="the-worker",
        width=6,
        stacked=True,
    ),
)

DEPENDENCIES: Final = Board(
    name="dependencies",
    title="Dependencies",
    about="What the worker stands on: SQS, DynamoDB, credentials, and its own process.",
    rows={
        "Trouble": _TROUBLE,
        "SQS and DynamoDB": _CALLS,
        "Leases, credentials, dead letters": _LEASES,
        "The processes": _PROCESS,
    },
)
