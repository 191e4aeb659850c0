"""`python -m deploy.ecs deploy|destroy PARAMETERS`: deploys all of Gatecast to an AWS account, or removes it.

PARAMETERS is a TOML file of names and values: Region, CheckZones, HttpApi, and any parameters of the templates beside
this file.
A stack's outputs are the parameters of the same names of later stacks. Idempotent: resources that are up to date are
left unchanged. Exit codes: 0 success; 1 failure, with the reason on standard error; 2 wrong arguments.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from deploy.ecs import artifacts
from deploy.ecs.parameters import check, read_parameters
from deploy.ecs.placement import place
from deploy.ecs.stacks import POLL_SECONDS, DeployError, Stacks

ORDER: Final = ("foundation", "account", "data", "api", "network", "observe", "worker", "events", "http")
"""In this order, each stack needs only the outputs of earlier ones."""
BUCKETS: Final = {"foundation": "CodeBucket", "data": "PayloadBucket"}
"""The output of a stack that names its bucket, which can be removed only when it is empty."""
KEPT: Final = "account"
"""The stack that `destroy` keeps: all APIs of the account share it."""
SHARDS_OF_ALL: Final = 16

_RETRIES: Final = Config(retries={"mode": "standard", "total_max_attempts": 10})
_NOT_SIGNED_IN: Final = {"ExpiredToken", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch"}


class Deployment:
    """One deployment of Gatecast in one Region. `values` are the parameters of the file."""

    def __init__(self, session: Any, values: Mapping[str, str], *, poll_seconds: float = POLL_SECONDS) -> None:
        self._session = session
        self.name = values.get("Name", "gatecast")
        self.stacks = Stacks(session.client("cloudformation"), self.name, say=say, poll_seconds=poll_seconds)
        self.values = dict(values)
        """The parameters of the file, and the outputs of deployed stacks; the former take precedence."""

    def deploy(self) -> None:
        """Deploy all stacks. Raises DeployError, and the SDK's exceptions."""
        self.place()
        for name in ORDER:
            self.deploy_one(name)
        say(f"\nClients connect to {self.values['WebSocketUrl']}")
        if url := self.values.get("HttpApiUrl"):
            say(f"Backends publish to {url}")

    def deploy_one(self, name: str) -> None:
        """Deploy one stack. Those before it in ORDER must have been deployed."""
        match name:
            case "account" if self._session.client("apigateway").get_account().get("cloudwatchRoleArn"):
                return  # it is set already, perhaps for other APIs: leave it unchanged
            case "data":
                self._check_queue_names()
            case "network" if self.values.get("VpcId"):
                return  # the worker runs in an existing VPC
            case "http" if self.values.get("HttpApi", "no") == "no":
                self.stacks.destroy("http")  # if it was deployed before
                return
            case "events" if not self.values.get("EventPattern"):
                self.stacks.destroy("events")  # if there was a pattern before
                return
            case "api":
                self.values["CodeKey"] = self._code()
            case "worker":
                self._create_service_role()
                self.values["Image"] = self.values.get("Image") or self._image()
        try:
            self.values = {**self.stacks.deploy(name, self.values), **self.values}
        except DeployError as error:
            reasons = self._stop_reasons() if name == "worker" else ()
            raise DeployError("\n".join([str(error), *reasons])) from None
        if name == "data":
            self._write_settings_of_all()

    def _check_queue_names(self) -> None:
        """Raise DeployError if the queues to create have the names of queues that were kept when the type changed.

        CloudFormation could not create them, and such a queue may have messages that are still needed.
        """
        kind, status = self.values.get("Queue", "standard"), self.stacks.status("data")
        current = self.stacks.outputs("data").get("QueueName", "")
        if status is not None and (not current or current.endswith(".fifo") == (kind == "fifo")):
            return  # they are the stack's own
        sqs, suffix = self._session.client("sqs"), ".fifo" if kind == "fifo" else ""
        for queue in (f"{self.name}-broadcasts{suffix}", f"{self.name}-dead-letters{suffix}"):
            with contextlib.suppress(sqs.exceptions.QueueDoesNotExist):
                url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
                raise DeployError(
                    f"Queue = {kind}: a queue {queue} exists that is no part of this deployment. It was kept, with its"
                    " messages, when the type was changed before, or is of somebody else; the new queue needs its name."
                    " When its messages are not needed any more, delete it, wait a minute, and deploy again:\n"
                    f"  aws sqs get-queue-attributes --queue-url {url} --attribute-names ApproximateNumberOfMessages\n"
                    f"  aws sqs delete-queue --queue-url {url}"
                )

    def place(self) -> None:
        """Choose or check where the tasks run. Raises DeployError."""
        deployed = self.stacks.outputs("network").get("SubnetIds", "")
        ec2, region = self._session.client("ec2"), self._session.region_name
        subnets = deployed.split(",") if deployed else []
        self.values |= place(ec2, region, self.values, subnets, say=say)

    def _write_settings_of_all(self) -> None:
        """Spread `@all` over shards before its first member: one partition takes 500 connects per second.

        Never overwrites settings. Once there is an API there may be members, and workers that have read the settings
        less than 30 s ago: then `shards` must grow before `join_shards`, which is up to the operator.
        """
        dynamodb, table = self._session.client("dynamodb"), self.values["TableName"]
        key = {"pk": {"S": "settings#@all"}, "sk": {"S": "room"}}
        if self.stacks.status("api") is None:
            shards = {"N": str(SHARDS_OF_ALL)}
            item = {**key, "shards": shards, "join_shards": shards}
            with contextlib.suppress(dynamodb.exceptions.ConditionalCheckFailedException):
                dynamodb.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(pk)")
        elif "Item" not in dynamodb.get_item(TableName=table, Key=key):
            say(
                "data: @all has one shard, which takes 500 connects per second; docs/deploy.md, Quotas: how to add some"
            )

    def destroy(self) -> None:
        """Remove everything, including the contents of the queues, the table and the buckets."""
        outputs = {name: self.stacks.outputs(name) for name in BUCKETS}
        for name in reversed(ORDER):
            if bucket := outputs.get(name, {}).get(BUCKETS.get(name, "")):
                self._empty(bucket)
            if name != KEPT:
                self.stacks.destroy(name)

    def _code(self) -> str:
        s3, bucket = self._session.client("s3"), self.values["CodeBucket"]
        return artifacts.upload_routes(s3, bucket, self._architecture, say=say)

    def _image(self) -> str:
        name, uri = self.values["RepositoryName"], self.values["RepositoryUri"]
        return artifacts.push_image(self._session.client("ecr"), name, uri, self._architecture, say=say)

    def _create_service_role(self) -> None:
        """Create ECS's service-linked role. ECS creates it with the account's first cluster, too late for that one."""
        iam = self._session.client("iam")
        with contextlib.suppress(iam.exceptions.InvalidInputException):  # it exists
            iam.create_service_linked_role(AWSServiceName="ecs.amazonaws.com")

    @property
    def _architecture(self) -> str:
        return self.values.get("Architecture", "arm64")

    def _empty(self, bucket: str) -> None:
        """Delete all objects of the bucket, if it still exists. Raises DeployError."""
        s3 = self._session.client("s3")
        with contextlib.suppress(s3.exceptions.NoSuchBucket):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                if objects := [{"Key": each["Key"]} for each in page.get("Contents", [])]:
                    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                    for error in deleted.get("Errors", ()):
                        raise DeployError(f"{bucket}: {error['Key']} cannot be deleted: {error.get('Message', '')}")

    def _stop_reasons(self) -> Sequence[str]:
        """Lines with ECS's reasons for recently stopped tasks of the worker: missing image, wrong architecture, …"""
        ecs, cluster = self._session.client("ecs"), self.values.get("Cluster") or self.name
        try:
            arns = ecs.list_tasks(cluster=cluster, family=f"{self.name}-worker", desiredStatus="STOPPED")["taskArns"]
            tasks = ecs.describe_tasks(cluster=cluster, tasks=arns[:3])["tasks"] if arns else []
        except ClientError:
            return ()
        lines = [_stop_reason(task) for task in tasks]
        return [*lines, f"  log: /{self.name}/worker"] if lines else ()


def _stop_reason(task: Mapping[str, Any]) -> str:
    codes = [f"{each['name']} exited with {each['exitCode']}" for each in task["containers"] if "exitCode" in each]
    return "; ".join([f"  task {task['taskArn'].rpartition('/')[2]}: {task.get('stoppedReason', '')}", *codes])


def deploy(session: Any, values: Mapping[str, str]) -> None:
    deployment = Deployment(session, values)
    check(values, {name: deployment.stacks.parameters(name) for name in ORDER})
    deployment.deploy()


def destroy(session: Any, values: Mapping[str, str], *, confirmed: bool) -> None:
    deployment = Deployment(session, values)
    if not confirmed:
        say(f"This removes {deployment.name} in {session.region_name}: API, workers, table, queues, dead letters, and")
        say("large payloads.")
        say("This cannot be undone.")
        if input(f"Type {deployment.name} to continue: ") != deployment.name:
            raise DeployError("Nothing was removed")
    deployment.destroy()


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - output for a person


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.ecs", description=__doc__)
    parser.add_argument("command", choices=["deploy", "destroy"])
    parser.add_argument("parameters", type=Path, help="a TOML file like deploy/ecs/parameters.example.toml")
    parser.add_argument("--yes", action="store_true", help="destroy without confirmation")
    options = parser.parse_args(arguments)
    try:
        _run(options.command, read_parameters(options.parameters), confirmed=options.yes)
    except DeployError as error:
        return _failed(str(error))
    except NoCredentialsError:
        return _failed("No AWS credentials: sign in (`aws sso login`, `aws configure`) or set AWS_PROFILE")
    except ClientError as error:
        if error.response["Error"]["Code"] in _NOT_SIGNED_IN:
            return _failed(f"AWS rejects the credentials: {error.response['Error']['Message']}. Sign in again")
        return _failed(str(error))
    except BotoCoreError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return _failed("Interrupted. CloudFormation continues what it has started; run this again to resume")
    return 0


def _run(command: str, values: Mapping[str, str], *, confirmed: bool) -> None:
    core = botocore.session.get_session()
    core.set_default_client_config(_RETRIES)  # AWS throttles calls; a deployment makes hundreds of them
    session = boto3.session.Session(botocore_session=core, region_name=values.get("Region"))
    if session.region_name is None:
        raise DeployError("No Region: set Region in the parameters")
    identity = session.client("sts").get_caller_identity()
    say(f"Account {identity['Account']}, Region {session.region_name}, as {identity['Arn'].rpartition('/')[2]}")
    if command == "deploy":
        deploy(session, values)
    else:
        destroy(session, values, confirmed=confirmed)


def _failed(reason: str) -> int:
    print(reason, file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
