"""The demo itself, small: everything is delivered, gone clients are reaped, and KEEP=1 leaves the system running."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from websockets.sync.client import connect

from local.demo.system import running
from local.processes import ProcessFailed

ROOT = Path(__file__).parents[2]


@contextmanager
def demo(**settings: str) -> Iterator[subprocess.Popen[str]]:
    # the user's own AWS configuration must have no effect
    environment = {**os.environ, "AWS_PROFILE": "nobody", "AWS_SESSION_TOKEN": "theirs", "COLUMNS": "200", **settings}
    process = subprocess.Popen(
        [sys.executable, "-m", "local.demo"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def read_until(output: IO[str], text: str) -> str:
    read = ""
    while text not in read:
        line = output.readline()
        assert line, read
        read += line
    return read


def test_no_delivery_is_missing_and_the_system_can_be_kept_running() -> None:
    with demo(CLIENTS="60", ROOMS="4", MESSAGES="30", KEEP="1") as process:
        assert process.stdout
        shown = read_until(process.stdout, "GATECAST_CONNECTIONS_ENDPOINT")
        rows = dict(re.findall(r"│ ([a-z0-9 ,-]+?) +│ +([^│]+?) │", shown))
        assert (rows["broadcasts"], rows["missing"], rows["received by others"]) == ("32", "0", "0")
        assert rows["deliveries expected"] == rows["deliveries received"]
        assert rows["gone connections reaped"] == "6 of 6"
        assert rows["large payload fetched"] == "10 of 10"
        (url,) = set(re.findall(r"ws://127\.0\.0\.1:\d+/local", shown))
        with connect(url) as client:
            client.send('{"action":"join","room":"lobby"}')
            assert json.loads(client.recv(10))["type"] == "ok"
            client.send('{"action":"publish","room":"lobby","data":"hello"}')
            received = {client.recv(10), client.recv(10)}
            assert "hello" in received
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


def test_an_invalid_setting_ends_the_demo_with_one_line() -> None:
    with demo(CLIENTS="many") as process:
        assert process.stderr
        assert process.stderr.read() == "CLIENTS=many: must be a whole number from 10 to 10,000\n"
        assert process.wait() == 2


async def test_a_worker_that_dies_is_reported_with_its_log() -> None:
    with running() as system:
        system.worker.process.kill()
        with pytest.raises(ProcessFailed, match=r"the worker ended \(exit code -9(.|\n)*worker\.started"):
            await system.watch()
    for log in system.directory.iterdir():
        log.unlink()
    system.directory.rmdir()
