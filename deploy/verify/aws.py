"""The target on AWS: the stack's addresses, and the reader's own credentials for `@connections`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deploy.verify.masking import Masker
from deploy.verify.probes.limits import ROUTE, STAGE
from deploy.verify.target import Events, Stage, Target
from deploy.verify.wire import Keys


def target(session: Any, outputs: Mapping[str, str], masker: Masker) -> Target:
    """The target of a deployed stack with these outputs."""
    credentials = session.get_credentials()

    def keys() -> Keys:
        frozen = credentials.get_frozen_credentials()
        masker.add(frozen.access_key, frozen.secret_key, frozen.token or "")
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    host, authorized = outputs["Host"], outputs["AuthorizedHost"]
    masker.add(host.partition(".")[0], authorized.partition(".")[0], outputs["QueueUrl"])
    return Target(
        main=_stage(host, "main"),
        authorized=_stage(authorized, "main"),
        limited={STAGE: _stage(host, "stage-limit"), ROUTE: _stage(host, "route-limit")},
        events=Events(session.client("sqs"), outputs["QueueUrl"]),
        keys=keys,
        region=session.region_name,
        now=lambda: datetime.now(UTC),
        masker=masker,
    )


def _stage(host: str, name: str) -> Stage:
    return Stage(f"wss://{host}/{name}", f"https://{host}/{name}")
