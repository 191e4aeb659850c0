"""`gatecast top` as a process, against servers that respond like workers."""

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gatecast.cli.top.fetch import address, poll_all, session
from gatecast.cli.top.view import Scrape, Unreachable

CHECKOUT = Path(__file__).parents[2]
BROADCAST = {
    "id": "news-1", "part": "", "target": "room", "age_seconds": 3.5, "running_seconds": 2.0, "delivered": 700,
    "gone": 10, "expired": 0, "rejected": 0, "undelivered": 0, "in_flight": 20, "waiting": 5, "read_ahead": 250,
    "all_read": False,
}  # fmt: skip


class FakeWorker:
    """Delivers 1,000 between two polls. It is not ready if it has `problems`."""

    def __init__(self, problems: dict[str, str] | None = None) -> None:
        self.problems = problems or {}
        self.delivered = 0
        self.url = ""
        self.polled = asyncio.Event()

    async def metrics(self, _: web.Request) -> web.Response:
        self.delivered += 1_000
        if self.delivered > 2_000:
            self.polled.set()
        lines = [
            "# TYPE gatecast_build_info gauge",
            'gatecast_build_info{version="1.2.3"} 1.0',
            "# TYPE gatecast_ready gauge",
            f"gatecast_ready {float(not self.problems)}",
            "# TYPE gatecast_dependency_failing gauge",
            *(
                f'gatecast_dependency_failing{{component="{part}"}} {float(part in self.problems)}'
                for part in ("queue", "table")
            ),
            "# TYPE gatecast_deliveries_total counter",
            f'gatecast_deliveries_total{{outcome="delivered"}} {self.delivered}',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def broadcasts(self, _: web.Request) -> web.Response:
        return web.json_response({"broadcasts": [BROADCAST], "total": 7})

    async def readyz(self, _: web.Request) -> web.Response:
        return web.json_response(self.problems, status=503)


@asynccontextmanager
async def serving(worker: FakeWorker, *paths: str) -> AsyncIterator[FakeWorker]:
    """Serve these paths on a free port; all others are 404."""
    app = web.Application()
    for path in paths or ("metrics", "broadcasts", "readyz"):
        app.router.add_get(f"/{path}", getattr(worker, path))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    worker.url = f"{host}:{port}"
    try:
        yield worker
    finally:
        await runner.cleanup()


async def start(*arguments: str, out: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gatecast.cli", "top", *arguments, cwd=CHECKOUT, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await start(*arguments)
    out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


async def test_a_snapshot_has_rates(tmp_path: Path) -> None:
    picture = tmp_path / "top.svg"
    async with serving(FakeWorker()) as worker:
        code, printed, errors = await run(worker.url, "--interval", "0.2", "--svg", str(picture))
    assert (code, errors) == (0, "")
    assert worker.delivered == 2_000
    assert printed.startswith(f" READY   {worker.url}")
    (delivered,) = (line.split()[2] for line in printed.splitlines() if "delivered /s" in line)
    assert int(delivered.replace(",", "")) > 0
    assert "news-1" in printed
    assert "Oldest of 7 in progress" in printed
    assert "news-1" in picture.read_text()


async def test_workers_that_are_not_ready_or_unreachable() -> None:
    failing = FakeWorker({"queue": "AccessDenied"})
    async with serving(failing), serving(FakeWorker()) as good:
        code, printed, errors = await run(
            "--once", "--interval", "0.1", f"http://{failing.url}/metrics", good.url, "127.0.0.1:1"
        )
    assert (code, errors) == (1, "")
    assert printed.startswith(" 1 OF 3 READY   3 workers")
    assert f":{failing.url.rpartition(':')[2]}  NOT READY    queue: AccessDenied" in printed
    assert re.search(r"^:1 +UNREACHABLE  Connection refused", printed, re.MULTILINE)


async def test_ctrl_c_ends_a_pipe_quietly() -> None:
    async with serving(FakeWorker()) as worker:
        process = await start(worker.url, "--interval", "0.1")
        await worker.polled.wait()
        process.send_signal(signal.SIGINT)
        out, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert out.count(b" READY ") >= 2
    assert b"\x1b" not in out


async def test_ctrl_c_leaves_the_last_view_on_a_terminal() -> None:
    outer, inner = pty.openpty()
    async with serving(FakeWorker()) as worker:
        process = await start(worker.url, "--interval", "0.1", out=inner)
        os.close(inner)
        reading = asyncio.create_task(asyncio.to_thread(_read_all, outer))
        await worker.polled.wait()
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        out = await reading
    os.close(outer)
    assert (process.returncode, errors) == (0, b"")
    during, _, after = out.rpartition(b"\x1b[?1049l")
    assert b"\x1b[?1049h" in during
    assert b"READY" in during
    assert b"READY" in after


def _read_all(terminal: int) -> bytes:
    read = b""
    while True:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # its other end is closed
            return read
        if not data:
            return read
        read += data


@pytest.mark.parametrize(
    "arguments",
    [["ftp://a"], ["a:port"], ["http://a/livez"], ["--interval", "0"], ["--interval", "nan"], ["--interval", "soon"]],
)
async def test_wrong_arguments(arguments: list[str]) -> None:
    code, printed, errors = await run(*arguments)
    assert (code, printed) == (2, "")
    assert "invalid" in errors
    assert errors.count("\n") == 1


async def test_views_as_json() -> None:
    async with serving(FakeWorker()) as worker, serving(FakeWorker({"queue": "AccessDenied"})) as failing:
        code, printed, errors = await run(
            worker.url, failing.url, "127.0.0.1:1", "--once", "--interval", "0.2", "--output", "json"
        )
    assert (code, errors) == (1, "")
    view = json.loads(printed)
    assert [each["state"] for each in view["workers"]] == ["ready", "not ready", "unreachable"]
    assert view["workers"][0]["figures"]["delivered"] > 0
    assert view["workers"][1]["problems"] == {"queue": "AccessDenied"}
    assert view["workers"][2]["figures"] is None
    assert view["total"]["post_seconds"] == {"p50": None, "p95": None, "p99": None}
    assert {"id": "news-1", "worker": view["workers"][0]["name"]}.items() <= view["broadcasts"][0].items()


async def test_ctrl_c_ends_json_quietly() -> None:
    async with serving(FakeWorker()) as worker:
        process = await start(worker.url, "--interval", "0.1", "--output", "json")
        await worker.polled.wait()
        process.send_signal(signal.SIGINT)
        out, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert all(json.loads(line)["ready"] == 1 for line in out.splitlines())
    assert out.count(b"\n") >= 2


async def test_an_image_that_cannot_be_saved(tmp_path: Path) -> None:
    code, _, errors = await run("127.0.0.1:1", "--interval", "0.1", "--svg", str(tmp_path))
    assert code == 1
    assert str(tmp_path) in errors
    assert "Traceback" not in errors


async def test_a_missing_dependency_is_named() -> None:
    code = "import sys; sys.modules['rich'] = None; from gatecast.cli.__main__ import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "top", cwd=CHECKOUT, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors == b"gatecast: rich is not installed: install gatecast with its extra, gatecast[cli]\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:9090"),
        ("worker-1:80", "http://worker-1:80"),
        ("http://worker-1:80/", "http://worker-1:80"),
        ("https://worker-1/metrics", "https://worker-1:9090"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert address(given) == expected


async def _polled(url: str) -> Scrape | Unreachable:
    async with session() as http:
        polls = await poll_all(http, [address(url)])
    return polls[url]


async def test_other_servers_are_reported_as_unreachable_workers() -> None:
    async with serving(FakeWorker(), "broadcasts") as other:
        assert await _polled(other.url) == Unreachable("/metrics returned 404")

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    strange = FakeWorker()
    strange.metrics = hello  # type: ignore[method-assign] # serve something else
    async with serving(strange):
        assert await _polled(strange.url) == Unreachable("the response is not in the Prometheus text format")


async def test_the_metrics_of_a_worker_without_the_broadcasts_endpoint_are_shown() -> None:
    async with serving(FakeWorker({"queue": "AccessDenied"}), "metrics") as worker:
        poll = await _polled(worker.url)
    assert isinstance(poll, Scrape)
    assert (poll.in_progress, poll.reasons) == (None, {})
    assert poll.samples.failing_components == ["queue"]


async def test_a_hanging_worker_times_out_and_does_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await released.wait()
        raise web.HTTPGone

    hanging = FakeWorker()
    hanging.metrics = hang  # type: ignore[method-assign] # never respond
    monkeypatch.setattr("gatecast.cli.top.fetch.TIMEOUT_SECONDS", 0.2)
    async with serving(hanging), serving(FakeWorker()) as good, session() as http:
        polls = await poll_all(http, [address(hanging.url), address(good.url)])
        released.set()
    assert polls[hanging.url] == Unreachable("no response within 0.2 s")
    assert isinstance(polls[good.url], Scrape)


async def test_a_truncated_response_counts_as_unreachable() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n# TYPE")
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        poll = await _polled(f"{host}:{port}")
    assert isinstance(poll, Unreachable)
