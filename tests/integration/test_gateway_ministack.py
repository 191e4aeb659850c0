"""The stand-ins for SQS and DynamoDB, and the processes they run in."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatecast.room_settings import RoomSettings, SettingsItem
from gatecast.table import SETTINGS_SK, key, settings_pk
from local.ministack import Ministack, interpreter
from local.processes import Process, ProcessFailed
from local.resources import Queues, create_queues, create_table, write_room_settings


def test_table_has_the_keys_and_the_time_to_live_of_the_contract(dynamodb: Any, table: str) -> None:
    description = dynamodb.describe_table(TableName=table)["Table"]
    assert {key["AttributeName"]: key["KeyType"] for key in description["KeySchema"]} == {"pk": "HASH", "sk": "RANGE"}
    ttl = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "expires_at")


def test_creating_resources_twice_changes_nothing(sqs: Any, dynamodb: Any, table: str, unique_name: str) -> None:
    assert create_table(dynamodb, table) == table
    assert create_queues(sqs, unique_name) == create_queues(sqs, unique_name)
    assert create_queues(sqs, unique_name, fifo=True) == create_queues(sqs, unique_name, fifo=True)


def test_room_settings_are_added_to_those_that_there_are(dynamodb: Any, table: str) -> None:
    for settings in ({"history_seconds": 60, "presence": 10}, {"presence": 20}, {"shards": 2}):
        write_room_settings(dynamodb, table, settings)
    write_room_settings(dynamodb, table, {"history_seconds": 0}, name="chat/*")
    found = {
        name: dynamodb.get_item(TableName=table, Key=key(settings_pk(name), SETTINGS_SK))["Item"]
        for name in ("*", "chat/*")
    }
    assert RoomSettings.from_items(map(SettingsItem.from_item, found.values())) == RoomSettings(2, 1, 60, 20)
    reversed_ = [found["chat/*"], found["*"]]
    assert RoomSettings.from_items(map(SettingsItem.from_item, reversed_)) == RoomSettings(2, 1, 0, 20)


@pytest.mark.parametrize("kind", ["queues", "fifo_queues"])
def test_queue_redrives_to_its_dead_letter_queue(request: pytest.FixtureRequest, sqs: Any, kind: str) -> None:
    queues: Queues = request.getfixturevalue(kind)
    attributes = sqs.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["All"])["Attributes"]
    assert '"maxReceiveCount": "1000"' in attributes["RedrivePolicy"]
    assert "dead-letter" in attributes["RedrivePolicy"]
    assert queues.url.endswith(".fifo") == queues.dead_letter_url.endswith(".fifo") == (kind == "fifo_queues")


@pytest.mark.parametrize("kind", ["queues", "fifo_queues"])
def test_both_queues_take_messages_of_one_mebibyte(request: pytest.FixtureRequest, sqs: Any, kind: str) -> None:
    for url in request.getfixturevalue(kind):
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert attributes["MaximumMessageSize"] == str(1024 * 1024)


def test_listens_on_the_loopback_address_only(ministack: Ministack) -> None:
    listening = Path(f"/proc/{ministack.process.pid}/net/tcp")
    if not listening.exists():
        pytest.skip("needs /proc")
    port = f"{int(ministack.url.rpartition(':')[2]):04X}"
    addresses = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in addresses if address.endswith(f":{port}")] == [f"0100007F:{port}"]


def test_missing_executable_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_MINISTACK", "/nowhere/ministack")
    with pytest.raises(FileNotFoundError, match="GATECAST_MINISTACK"):
        interpreter()


def test_failed_start_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ministack", "python"):
        broken = tmp_path / name
        broken.write_text("#!/bin/sh\necho out of order\nexit 3\n")
        broken.chmod(0o755)
    monkeypatch.setenv("GATECAST_MINISTACK", str(tmp_path / "ministack"))
    with pytest.raises(ProcessFailed, match=r"exit code 3.*\n.*out of order"):
        Ministack.start(log=tmp_path / "log")


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    child = Process.start([sys.executable, "-c", script], environment=os.environ, log=tmp_path / "log")
    while "up" not in child.log_tail():
        assert child.exit_code is None
    assert child.stop(grace_seconds=0.1) == -9


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib; from local.processes import Process;"
        f"child = Process.start(['sleep', '60'], environment=os.environ, log=pathlib.Path({str(tmp_path / 'log')!r}));"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert parent.returncode == -9
    child = Path(f"/proc/{int(parent.stdout)}")
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        pass
