"""`python -m worker`: exit code 0 after a drain, 2 for a wrong configuration, 1 for anything else."""

import os
import sys

import structlog
import uvloop

from gatecast import tracing
from worker import log
from worker.aws.session import find_session
from worker.service import serve
from worker.settings import InvalidSettings, Settings


def main() -> int:
    try:
        settings = Settings.from_environ(os.environ)
        session = find_session(os.environ)
        tracing.enable("gatecast-worker")
        log.configure(settings.log_level, settings.log_format)
        uvloop.run(serve(settings, session))
    except (InvalidSettings, tracing.NotInstalled) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a person reads this
        return 2
    except Exception:  # noqa: BLE001 - the last one to hear of it
        structlog.get_logger().exception("worker.failed")
        return 1
    finally:
        tracing.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
