"""For how long the links to payloads work, and how their URLs name the bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.broadcast import Reference
from gatecast.references import LINK_SECONDS, addressing_style, link_seconds, to_link

NOW = 1_700_000_000.75
REFERENCE = Reference(bucket="payloads", key="a", bytes=5, content_type="text/plain")


@pytest.mark.parametrize(
    ("message_expires_at_ms", "credentials_expire_at", "seconds"),
    [
        (None, None, LINK_SECONDS),
        (None, NOW + 7_200, LINK_SECONDS),
        (None, NOW + 600.9, 600),
        ((NOW + 90.5) * 1000, NOW + 600, 90),
        ((NOW - 1) * 1000, None, 1),
        (None, NOW - 1, 1),
    ],
)
def test_a_link_ends_with_the_hour_the_message_or_the_credentials(
    message_expires_at_ms: float | None, credentials_expire_at: float | None, seconds: int
) -> None:
    assert link_seconds(NOW, message_expires_at_ms, credentials_expire_at) == seconds


@given(st.floats(1_700_000_000, 1_800_000_000), st.integers(1, LINK_SECONDS), st.floats(0, 5))
def test_a_link_never_promises_more_than_the_url_that_is_signed_later(
    made_at: float, seconds: int, later: float
) -> None:
    """S3 counts from the second in which the URL was signed."""
    link = to_link(REFERENCE, "https://s3/a", made_at=made_at, seconds=seconds)
    assert link.expires_at_ms <= (int(made_at + later) + seconds) * 1000


@pytest.mark.parametrize(
    ("endpoint", "style"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "virtual"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "virtual"),
        ("http://127.0.0.1:4566", "path"),
        ("http://ministack:4566", "path"),
    ],
)
def test_only_aws_has_a_host_name_for_each_bucket(endpoint: str, style: str) -> None:
    assert addressing_style(endpoint) == style
