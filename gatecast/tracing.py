"""Traces, by OpenTelemetry: from the publisher through the queue to the worker. Off, and free, until `enable`.

They need the extra, `gatecast[otel]`. Where to and how many is said by OpenTelemetry's own variables, such as
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER. A publisher's current span goes along with its message, in
the attributes that W3C's Trace Context names, whoever has made it. No span carries payloads, or errors' messages.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    _installed = False
else:
    _installed = True

ATTRIBUTES: Final = ("traceparent", "tracestate")
"""The message attributes that carry the context."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_SECONDS: Final = 2.0
_OFF: Final[AbstractContextManager[None]] = nullcontext()

_tracer: Any = None
_provider: Any = None


class NotInstalled(Exception):  # noqa: N818 - it says what is the case
    """Traces are asked for, and what makes them is missing; the message names the variable."""


def enable(service: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Make spans from now on, if a variable says where to. `service` is their name unless OTEL_SERVICE_NAME is set.

    A tracer provider that is there already (a Lambda layer's, for one) is used as it is. Raises NotInstalled.
    """
    global _tracer, _provider  # noqa: PLW0603 - a process has one tracer
    asked_by = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if asked_by is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise NotInstalled(f"{asked_by} is set, but what makes traces is missing: install gatecast[otel]") from None
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        name = environ.get("OTEL_SERVICE_NAME") or service
        _provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(_provider)
    _tracer = trace.get_tracer("gatecast")
    return True


def enabled() -> bool:
    return _tracer is not None


def span(name: str, **attributes: str | float) -> AbstractContextManager[None]:
    """A span within the current one, as long as the context lasts. Underscores in attributes' names are dots."""
    return _OFF if _tracer is None else _span(name, attributes, {})


def publishing(**attributes: str | float) -> AbstractContextManager[None]:
    """The span in which a message is put on the queue."""
    return _OFF if _tracer is None else _span("publish", attributes, {"kind": trace.SpanKind.PRODUCER})


def consuming(message_attributes: Mapping[str, str], sent_at_ms: int) -> AbstractContextManager[None]:
    """The span of all that is done for one message, within its publisher's; the time on the queue is one within it."""
    return _OFF if _tracer is None else _consuming(message_attributes, sent_at_ms)


def note(**attributes: str | float) -> None:
    """Say something about the current span."""
    if _tracer is not None:
        trace.get_current_span().set_attributes(_named(attributes))


def message_attributes() -> dict[str, Any]:
    """The current span's context, as SendMessage takes it; empty where there is no span."""
    if not _installed:
        return {}
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {name: {"DataType": "String", "StringValue": value} for name, value in carrier.items() if value}


def flush() -> None:
    """Send what has been made; two seconds at most, for nobody waits for a collector that hangs."""
    if _provider is not None:
        sending = threading.Thread(target=_provider.force_flush, daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)


@contextmanager
def _span(name: str, attributes: Mapping[str, str | float], options: dict[str, Any]) -> Iterator[None]:
    # Errors by their class alone: a message may quote what nobody should see.
    with _tracer.start_as_current_span(
        name, attributes=_named(attributes), record_exception=False, set_status_on_exception=False, **options
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


@contextmanager
def _consuming(message_attributes: Mapping[str, str], sent_at_ms: int) -> Iterator[None]:
    parent = TraceContextTextMapPropagator().extract(message_attributes)
    started = {"start_time": sent_at_ms * 1_000_000} if sent_at_ms else {}
    with _span(
        "broadcast", {"messaging_system": "aws_sqs"}, {"context": parent, "kind": trace.SpanKind.CONSUMER, **started}
    ):
        _tracer.start_span("receive", **started).end()
        yield


def _named(attributes: Mapping[str, str | float]) -> dict[str, str | float]:
    return {name.replace("_", "."): value for name, value in attributes.items()}
