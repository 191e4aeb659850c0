"""The limit on open files is raised where that is allowed, and otherwise the error names the variable."""

import resource

import pytest

from worker import service
from worker.observe.connection_guard import MAX_CONNECTIONS
from worker.open_files import RESERVED_FILES, require_open_files
from worker.settings import ConfigurationError

UNLIMITED = resource.RLIM_INFINITY


class Limits:
    """The system's limits. `allowed` is how far the soft limit can be raised, whatever the hard limit says."""

    def __init__(self, soft: int, hard: int, allowed: int) -> None:
        self.soft, self.hard, self._allowed = soft, hard, allowed

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if limits[0] > self._allowed or (self.hard != UNLIMITED and limits[0] > self.hard):
            raise ValueError("not allowed to raise maximum limit")
        self.soft, self.hard = limits


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Limits:
    limits = Limits(*request.param)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    return limits


@pytest.mark.parametrize("system", [(1_024, 4_096, 10**6), (UNLIMITED, UNLIMITED, 0)], indirect=True)
def test_a_sufficient_limit_is_left_alone(system: Limits) -> None:
    before = system.soft
    require_open_files(1_024 - RESERVED_FILES)
    assert system.soft == before


@pytest.mark.parametrize("system", [(1_024, 65_536, 10**6), (1_024, UNLIMITED, 10**6)], indirect=True)
def test_the_soft_limit_is_raised_as_far_as_necessary(system: Limits) -> None:
    hard = system.hard
    require_open_files(10_000)
    assert (system.soft, system.hard) == (10_000 + RESERVED_FILES, hard)


@pytest.mark.parametrize(
    ("system", "limit"),
    [((1_024, 4_096, 10**6), 4_096), ((1_024, UNLIMITED, 2_000), 1_024), ((64, 64, 64), 64)],
    indirect=["system"],
)
def test_otherwise_the_error_names_the_variable_and_the_limit(system: Limits, limit: int) -> None:
    message = (
        f"^GATECAST_MAX_IN_FLIGHT is 10000, .* {10_000 + RESERVED_FILES} .* limit is {limit}: expected .* at most "
    )
    with pytest.raises(ConfigurationError, match=message + str(max(0, limit - RESERVED_FILES))):
        require_open_files(10_000)
    assert system.soft in (limit, 1_024)


def test_the_reserve_covers_all_other_connections() -> None:
    assert RESERVED_FILES >= 2 * service._MAX_CONNECTIONS + 2 * MAX_CONNECTIONS + 64
