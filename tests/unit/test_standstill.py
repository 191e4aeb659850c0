"""When a broadcast is put back, and for how long."""

from worker.delivery.endpoint import EndpointHealth
from worker.standstill import Standstill


def failing(seconds: float, *, full: bool = True, start: float = 1_000.0) -> list[tuple[int, int]]:
    """(second, for how long) of every put-back while posts fail once a second."""
    endpoint, standstill = EndpointHealth(), Standstill()
    found = []
    for second in range(int(seconds)):
        endpoint.failed("status 503", start + second, first_attempt=False)
        if (put_back := standstill.put_back_seconds(start + second, endpoint, full=full)) is not None:
            found.append((second, put_back))
    return found


def test_after_a_minute_one_every_five_seconds_for_a_minute_at_least() -> None:
    assert failing(60) == []
    assert failing(80) == [(61, 60), (66, 60), (71, 60), (76, 60)]


def test_the_longer_it_lasts_the_longer_they_stay_outside() -> None:
    assert [seconds for _, seconds in failing(3_600)][-1] == 900


def test_nobody_is_put_back_while_others_can_be_received() -> None:
    assert failing(3_600, full=False) == []


def test_a_success_begins_anew() -> None:
    endpoint, standstill = EndpointHealth(), Standstill()
    for second in range(300):
        endpoint.failed("status 503", second, first_attempt=False)
        standstill.put_back_seconds(second, endpoint, full=True)
    endpoint.succeeded(300)
    later = []
    for second in range(301, 380):
        endpoint.failed("status 503", second, first_attempt=False)
        if (put_back := standstill.put_back_seconds(second, endpoint, full=True)) is not None:
            later.append((second, put_back))
    assert later[0] == (361, 60)


def test_without_failures_a_full_worker_is_only_busy() -> None:
    endpoint, standstill = EndpointHealth(), Standstill()
    assert [standstill.put_back_seconds(second, endpoint, full=True) for second in range(600)] == [None] * 600
