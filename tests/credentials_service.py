"""A test double of the ECS credentials endpoint: it returns the credentials that a test sets."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from aiohttp import web


def credentials(*, expire_in: timedelta, **others: Any) -> dict[str, Any]:
    return {
        "AccessKeyId": "issued",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": (datetime.now(UTC) + expire_in).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **others,
    }


GOOD = timedelta(hours=6)
ABOUT_TO_EXPIRE = timedelta(minutes=5)
"""The SDK refreshes such credentials before every call."""
EXPIRED = timedelta(minutes=-5)


class CredentialsService:
    """Responds with `body` and `status`. Use `serving`; `environment` points the SDK at it."""

    def __init__(self) -> None:
        self.body = ""
        self.status = 200
        self.requests = 0
        self.environment: dict[str, str] = {}

    def hand_out(self, expire_in: timedelta, **others: Any) -> None:
        self.body = json.dumps(credentials(expire_in=expire_in, **others))
        self.status = 200

    async def _get(self, _: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(text=self.body, status=self.status, content_type="application/json")

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator[Self]:
        service = cls()
        app = web.Application()
        app.router.add_get("/credentials", service._get)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        service.environment = {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{host}:{port}/credentials",
        }
        try:
            yield service
        finally:
            await runner.cleanup()
