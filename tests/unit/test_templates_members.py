"""The template of the worker, for members in a table of the operator's own: permissions and environment."""

import json
from typing import Any

import pytest

from tests.templates import Template
from worker.members_setting import MembersSource

TABLE = "arn:aws:dynamodb:us-east-1:000000000000:table/connections"
QUEUE = "arn:aws:sqs:us-east-1:000000000000:gone"
MEMBERS = json.dumps({"table": "connections", "pk": "room", "pk_value": "{room}", "sk": "id"})


def permissions(**parameters: str) -> set[tuple[str, str]]:
    template = Template("worker", {"Members": MEMBERS, "MembersTableArn": TABLE, **parameters})
    statements = template.properties("MembersPolicy")["PolicyDocument"]["Statement"]
    return {(statement["Action"], statement["Resource"]) for statement in statements}


def environment(**parameters: str) -> dict[str, Any]:
    template = Template("worker", parameters)
    containers = template.properties("Task")["ContainerDefinitions"]
    return {each["Name"]: each["Value"] for each in containers[0]["Environment"]}


def test_without_a_table_there_is_neither_a_permission_nor_a_variable() -> None:
    assert "MembersPolicy" not in Template("worker").resources
    assert "GATECAST_MEMBERS" not in environment()


def test_a_table_or_an_index_is_read_and_gone_items_are_deleted_or_sent() -> None:
    checks = ("dynamodb:DescribeTable", TABLE)
    deletes = ("dynamodb:DeleteItem", TABLE)
    assert permissions() == {checks, ("dynamodb:Query", TABLE), deletes}
    assert permissions(MembersIndex="byRoom") == {checks, ("dynamodb:Query", f"{TABLE}/index/byRoom"), deletes}
    assert permissions(MembersQueueArn=QUEUE) == {checks, ("dynamodb:Query", TABLE), ("sqs:SendMessage", QUEUE)}


def test_the_worker_gets_the_setting_as_it_is() -> None:
    variables = environment(Members=MEMBERS, MembersTableArn=TABLE)
    assert variables["GATECAST_MEMBERS"] == MEMBERS
    assert MembersSource.parse(variables["GATECAST_MEMBERS"]).table == "connections"


@pytest.mark.parametrize(
    "given", [{"Members": MEMBERS}, {"MembersTableArn": TABLE}, {"Members": MEMBERS, "MembersTableArn": TABLE}, {}]
)
def test_the_setting_and_the_table_need_each_other(given: dict[str, str]) -> None:
    template = Template("worker", given)
    [assertion] = template.source["Rules"]["MembersNeedTheirTable"]["Assertions"]
    assert template.holds(assertion["Assert"]) is (len(given) != 1)
