"""Runs the steps of publishing against a script or a model, in virtual time and without a network."""

from collections.abc import Callable, Iterable
from typing import Any

from gatecast.publisher.steps import END, Call, Next, Sleep, Steps


class VirtualTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_steps(
    steps: Steps[Any], perform: Callable[[Call], Any], messages: Iterable[Any] = (), time: VirtualTime | None = None
) -> Any:
    """What the steps return. `perform` makes their calls; a sleep advances `time`."""
    iterator = iter(messages)
    try:
        step = next(steps)
        while True:
            match step:
                case Next():
                    step = steps.send(next(iterator, END))
                case Sleep(seconds):
                    assert time is not None
                    time.now += seconds
                    step = steps.send(None)
                case Call():
                    try:
                        result = perform(step)
                    except Exception as error:  # noqa: BLE001 - as a driver does
                        step = steps.throw(error)
                    else:
                        step = steps.send(result)
    except StopIteration as end:
        return end.value


class ServiceError(Exception):
    """As botocore's ClientError."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class BotoCoreError(Exception):
    """As botocore's error of this name."""


class HTTPClientError(BotoCoreError):
    """As botocore's error of this name: no response."""


class NoCredentialsError(BotoCoreError):
    """As botocore's error of this name: nothing was sent."""


def accepted(call: Call) -> dict[str, Any]:
    """The response to a batch call that accepts all of its entries."""
    return {"Successful": [{"Id": entry["Id"]} for entry in call.arguments["Entries"]]}
