"""The dashboard *Dependencies*: SQS, DynamoDB, credentials, and the worker's own process."""

from typing import Final

from grafana_foundation_sdk.models import units

from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.panels import BAD, SUSPECT, distribution, graph, quantiles, states

_HEALTH: Final = (
    states(
        "Failing components",
        "Red while a component of /readyz fails on any task. The log has the reason: dependency.failing.",
        {"{{component}}": "max by (component) (gatecast_dependency_failing)"},
        runbook="gatecastdependencyfailing",
        width=12,
        names=("ok", "failing"),
        good=0,
    ),
    graph(
        "Failed calls by component",
        "Failed calls per second. All of them are retried until they succeed; a small number is normal.",
        {"{{component}}": "sum by (component) (rate(gatecast_dependency_failures_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=12,
    ),
    states(
        "Ready",
        "Green while /readyz returns 200, by task.",
        {"{{instance}}": "gatecast_ready"},
        runbook="gatecastnoworkerready",
        width=12,
        names=("not ready", "ready"),
        good=1,
    ),
    states(
        "Draining",
        "Red from SIGTERM to the end of the process, by task: a deployment, a scale-in or a Spot interruption.",
        {"{{instance}}": "gatecast_draining"},
        runbook="the-worker",
        width=12,
        names=("running", "draining"),
        good=0,
    ),
)

_CALLS: Final = (
    graph(
        "Calls by operation",
        "Calls per second to SQS and DynamoDB that got a response.",
        {"{{operation}}": "sum by (operation) (rate(gatecast_service_call_duration_seconds_count[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
        stacked=True,
    ),
    graph(
        "Failed calls by operation",
        "Calls per second to SQS and DynamoDB that returned an error or got no response.",
        {"{{operation}}": "sum by (operation) (rate(gatecast_service_call_errors_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
    ),
    graph(
        "Call duration, p99",
        "By operation. ReceiveMessage takes up to 5 s while the queue is empty, because it is a long poll.",
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
        "Malformed items of the table, counted each time one is read, by kind. The log names them: item.damaged.",
        {"{{item}}": "sum by (item) (rate(gatecast_damaged_items_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="sqs-dynamodb-credentials",
        width=6,
    ),
)

_LEASES: Final = (
    graph(
        "Lease extensions",
        "Lease extensions per second, by outcome. Failed ones are retried. After a lost lease another worker repeats "
        "up to 1,000 deliveries.",
        {"{{outcome}}": "sum by (outcome) (rate(gatecast_lease_extensions_total[$__rate_interval]))"},
        unit=units.CountsPerSecond,
        runbook="gatecastleaseslost",
    ),
    graph(
        "Time until credentials expire",
        "By task. Renewal starts 15 minutes before they expire. Empty if the credentials do not expire.",
        {"{{instance}}": "gatecast_credentials_expiry_timestamp_seconds - time()"},
        unit=units.Seconds,
        runbook="gatecastcredentialsexpire",
        limits={600: SUSPECT},
    ),
    graph(
        "Dead-letter queue",
        "Messages on the dead-letter queue, as SQS counts them.",
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
        "Open file descriptors as a share of the limit, by task. Each connection uses one.",
        {"{{instance}}": "process_open_fds / process_max_fds"},
        unit=units.PercentUnit,
        runbook="the-worker",
        width=6,
        limits={0.8: BAD},
    ),
    distribution(
        "Event loop lag",
        "How late the event loop runs a timer, over all tasks.",
        "gatecast_event_loop_lag_seconds",
        runbook="gatecasteventloopstalls",
        width=6,
    ),
    graph(
        "Event loop lag, percentiles",
        "How late the event loop runs a timer, over all tasks.",
        quantiles("gatecast_event_loop_lag_seconds"),
        unit=units.Seconds,
        runbook="gatecasteventloopstalls",
        width=6,
        limits={0.1: BAD},
    ),
    graph(
        "Garbage collections",
        "Per minute, by generation, over all tasks. A full collection (generation 2) blocks the event loop briefly.",
        {"generation {{generation}}": "60 * sum by (generation) (rate(python_gc_collections_total[$__rate_interval]))"},
        unit=units.Short,
        runbook="gatecasteventloopstalls",
        width=6,
    ),
    graph(
        "Uptime",
        "Time since the process started, by task. A sawtooth means that the task restarts repeatedly.",
        {"{{instance}}": "time() - process_start_time_seconds"},
        unit=units.Seconds,
        runbook="gatecastworkerrestarting",
        width=6,
    ),
    graph(
        "Versions",
        "Tasks by version; two versions during a deployment.",
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
    about="What the worker depends on: SQS, DynamoDB, credentials, and its own process.",
    rows={
        "Health": _HEALTH,
        "SQS and DynamoDB": _CALLS,
        "Leases, credentials, dead letters": _LEASES,
        "Processes": _PROCESS,
    },
)
