"""The probes through TLS, as on AWS: a proxy with a certificate stands between them and the emulator."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from deploy.verify.client import connected
from deploy.verify.function import handler
from deploy.verify.observation import Observation, Verdict
from deploy.verify.probes import clocks, limits, posts, routes
from deploy.verify.target import Durations, Events, Stage, Target
from deploy.verify.wire import Connection, Keys, NoResponse
from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS, REGION


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward until either side ends, then end the other one, too."""
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


@pytest.fixture
async def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Target]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    async with Gateway({"$connect": Route(handler), "echo": Route(handler, response=True)}) as gateway:
        forwarding: set[asyncio.Task[Any]] = set()

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            forwarding.add(task)
            try:
                behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                await asyncio.gather(pipe(reader, behind_writer), pipe(behind_reader, writer))
            finally:
                writer.transport.abort()

        proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=server_tls)
        host = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}{urlsplit(gateway.url).path}"
        nothing: Any = None
        stage = Stage(f"wss://{host}", f"https://{host}")
        try:
            yield Target(
                main=stage,
                authorized=stage,
                events=Events(nothing, ""),
                keys=lambda: Keys(CREDENTIALS.access_key_id, CREDENTIALS.secret_access_key),
                region=REGION,
                now=lambda: datetime.now(UTC),
                durations=Durations(idle_seconds=0.4, keep_alive_seconds=0.4, settle_seconds=0.2, hold_seconds=0.2),
            )
        finally:
            proxy.close()
            for task in forwarding:
                task.cancel()
            await asyncio.gather(*forwarding, return_exceptions=True)


@pytest.mark.parametrize(
    "probe",
    [posts.ids, posts.errors, posts.post_sizes, limits.slow_client, clocks.keep_alive, routes.order, routes.url_length],
)
async def test_a_probe_sees_the_same_through_tls(probe: Any, target: Target) -> None:
    observation: Observation = await probe(target)
    assert observation.verdict is Verdict.FITS, observation


async def test_a_server_with_another_certificate_gets_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    with pytest.raises(NoResponse, match="SSLCertVerificationError"):
        await Connection.open(target.main.endpoint)
    for reads in (True, False):
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connected(target, reads=reads):
                pass
