"""Check of the account's quota that bounds all deliveries: the requests of all its APIs in a Region."""

from collections.abc import Mapping
from typing import Any, Final

from gatecast.cli.doctor.findings import Finding, ok, skipped, warning
from gatecast.cli.failures import Cause, explain

_RATE: Final = "GATECAST_MAX_POSTS_PER_SECOND"
_DEFAULT_RATE: Final = 10_000


def check(apigateway: Any, environ: Mapping[str, str]) -> Finding:
    """Raises an error that is none of the SDK's."""
    try:
        throttle = apigateway.get_account().get("throttleSettings", {})
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        if problem.cause is Cause.DENIED:
            return skipped("quotas", "apigateway:GET on /account is not allowed", "look at Service Quotas yourself")
        return skipped("quotas", problem.what, problem.remedy)
    rate, burst = float(throttle.get("rateLimit", 0)), int(throttle.get("burstLimit", 0))
    text = environ.get(_RATE, "")
    ceiling = int(text) if text.isascii() and text.isdecimal() else _DEFAULT_RATE
    if rate < ceiling:
        return warning(
            "quotas",
            f"the account allows {rate:,.0f} requests per second to all APIs of the Region, a worker up to {ceiling:,}",
            f"ask for a higher rate in Service Quotas, or lower {_RATE}; workers follow the account's rate either way",
        )
    return ok("quotas", f"{rate:,.0f} requests per second, {burst:,} at once, to all APIs of the Region")
