"""OpenTelemetry traces from the publisher through the queue to the worker. Disabled, and free, until `enable`.

They need the extra `gatecast[otel]`. OpenTelemetry's own variables configure the exporter and the sampling, for example
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER. The publisher's current span, whichever library created it, is
propagated in the message attributes defined by W3C Trace Context. Spans contain neither payloads nor error messages.
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
"""The message attributes that propagate the context."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_SECONDS: Final = 2.0
_OFF: Final[AbstractContextManager[None]] = nullcontext()

_tracer: Any = None
_provider: Any = None


class NotInstalled(Exception):
    """Traces are configured, but OpenTelemetry is not installed. The message names the variable."""


def enable(service: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Start tracing if a variable names an OTLP endpoint. `service` is the default of OTEL_SERVICE_NAME.

    Whether tracing is enabled. An existing tracer provider (for example of a Lambda layer) is used unchanged. Raises
    NotInstalled.
    """
    global _tracer, _provider  # noqa: PLW0603 - a process has one tracer
    variable = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if variable is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise NotInstalled(f"{variable} is set, but OpenTelemetry is not installed: install gatecast[otel]") from None
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
    """A child of the current span, for the length of the context. Underscores in attributes' names become dots."""
    return _OFF if _tracer is None else _span(name, attributes, {})


def publishing(**attributes: str | float) -> AbstractContextManager[None]:
    """The producer span of sending a message to the queue."""
    return _OFF if _tracer is None else _span("publish", attributes, {"kind": trace.SpanKind.PRODUCER})


def consuming(message_attributes: Mapping[str, str], sent_at_ms: int) -> AbstractContextManager[None]:
    """The consumer span of processing one message, a child of the publisher's; its child is the time on the queue."""
    return _OFF if _tracer is None else _consuming(message_attributes, sent_at_ms)


def set_attributes(**attributes: str | float) -> None:
    """Set attributes of the current span."""
    if _tracer is not None:
        trace.get_current_span().set_attributes(_named(attributes))


def message_attributes() -> dict[str, Any]:
    """The current span's context as message attributes of SendMessage; empty without a span."""
    if not _installed:
        return {}
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {name: {"DataType": "String", "StringValue": value} for name, value in carrier.items() if value}


def flush() -> None:
    """Export finished spans. Waits at most two seconds, so that an unresponsive collector blocks nothing."""
    if _provider is not None:
        sending = threading.Thread(target=_provider.force_flush, daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)


@contextmanager
def _span(name: str, attributes: Mapping[str, str | float], options: dict[str, Any]) -> Iterator[None]:
    # Only the error's class: its message may contain sensitive data.
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
