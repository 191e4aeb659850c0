"""The deploy script on ministack's CloudFormation: queues that were kept, and the settings of `@all`."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from deploy.ecs.__main__ import Deployment
from deploy.ecs.stacks import DeployError
from gatecast import table
from gatecast.room_settings import SettingsItem
from local.ministack import Ministack


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=("cloudformation", "dynamodb", "iam", "s3", "sqs")) as running:
        yield running


@pytest.fixture
def deployment(
    ministack: Ministack, aws: dict[str, str], unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.url)
    session = boto3.session.Session(region_name=aws["AWS_REGION"])
    made = Deployment(session, {"Name": unique_name}, poll_seconds=0.05)
    yield made
    made.destroy()


def with_queue(deployment: Deployment, kind: str) -> Deployment:
    """The same deployment with parameters of its own, as in a new run of the script."""
    made = Deployment(deployment._session, {"Name": deployment.name, "Queue": kind}, poll_seconds=0.05)
    made.deploy_one("data")
    return made


def test_a_queue_type_can_be_changed_back_once_the_kept_queues_are_gone(deployment: Deployment, sqs: Any) -> None:
    first = with_queue(deployment, "standard")
    sqs.send_message(QueueUrl=first.values["QueueUrl"], MessageBody="still needed")
    fifo = with_queue(deployment, "fifo")
    assert fifo.values["QueueUrl"].endswith("-broadcasts.fifo")
    with pytest.raises(DeployError, match=rf"a queue {deployment.name}-broadcasts exists .*(?s:.*)delete-queue"):
        with_queue(deployment, "standard")
    assert sqs.receive_message(QueueUrl=first.values["QueueUrl"])["Messages"][0]["Body"] == "still needed"

    deployment.destroy()
    with pytest.raises(DeployError, match="was kept, with its messages"):
        with_queue(deployment, "standard")

    for url in (first.values["QueueUrl"], first.values["DeadLetterQueueUrl"]):
        sqs.delete_queue(QueueUrl=url)
    again = with_queue(deployment, "standard")
    assert again.values["QueueUrl"] == first.values["QueueUrl"]


def test_settings_of_all_are_written_once(deployment: Deployment, dynamodb: Any) -> None:
    key = table.key(table.settings_pk("@all"), table.SETTINGS_SK)

    def settings() -> SettingsItem:
        return SettingsItem.from_item(dynamodb.get_item(TableName=deployment.values["TableName"], Key=key)["Item"])

    deployment.deploy_one("data")
    assert settings() == SettingsItem(shards=16, join_shards=16)
    dynamodb.put_item(
        TableName=deployment.values["TableName"], Item={**key, "shards": {"N": "40"}, "join_shards": {"N": "40"}}
    )
    deployment.deploy_one("data")
    assert settings() == SettingsItem(shards=40, join_shards=40)


def test_destroying_it_deletes_the_payloads_and_may_be_repeated(deployment: Deployment, s3: Any) -> None:
    deployment.deploy_one("data")
    bucket = deployment.values["PayloadBucket"]
    for number in range(3):
        s3.put_object(Bucket=bucket, Key=f"{number}/a b", Body=b"x")
    deployment.destroy()
    with pytest.raises(s3.exceptions.NoSuchBucket):
        s3.list_objects_v2(Bucket=bucket)
    deployment._empty(bucket)  # as after an interruption between the bucket and its stack
    deployment.destroy()
