"""`python -m worker`: exit code 0 after a drain, 2 for a wrong configuration, 1 for anything else."""

import signal
import sys

# Until the service installs its own handlers nothing has been received, so a stop signal simply ends the process.
for _signal in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_signal, lambda *_: sys.exit(0))

import os  # noqa: E402 - slow imports come after the handlers
from collections.abc import Mapping  # noqa: E402

import structlog  # noqa: E402
import uvloop  # noqa: E402

from gatecast import tracing  # noqa: E402
from gatecast.variables import unknown_variables  # noqa: E402
from worker.aws.session import find_session  # noqa: E402
from worker.observe import log  # noqa: E402
from worker.observe.admin_server import PortInUse  # noqa: E402
from worker.open_files import require_open_files  # noqa: E402
from worker.service import serve  # noqa: E402
from worker.settings import ConfigurationError, Settings, insecure_endpoints  # noqa: E402


def main() -> int:
    try:
        settings = Settings.from_environ(os.environ)
        require_open_files(settings.max_in_flight)
        session = find_session(os.environ)
        tracing.enable("gatecast-worker")
        log.configure(settings.log_level, settings.log_format)
        _warn(os.environ)
        uvloop.run(serve(settings, session))
    except (ConfigurationError, tracing.NotInstalled) as error:
        print(error, file=sys.stderr)  # noqa: T201 - read by a person
        return 2
    except PortInUse as error:
        structlog.get_logger().error("worker.failed", reason=str(error))
        return 1
    except Exception:  # noqa: BLE001 - the outermost handler
        structlog.get_logger().exception("worker.failed")
        return 1
    finally:
        tracing.flush()
    return 0


def _warn(environ: Mapping[str, str]) -> None:
    """Log what is probably a mistake in the configuration, but may be intended."""
    for name, nearest in unknown_variables(environ).items():
        structlog.get_logger().warning("setting.unknown", variable=name, nearest=nearest)
    for name in insecure_endpoints(environ):
        reason = "http:// sends the session token in clear text to an address that may be public"
        structlog.get_logger().warning("setting.insecure", variable=name, reason=reason)


if __name__ == "__main__":
    sys.exit(main())
