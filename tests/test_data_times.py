"""Dates of any precision."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oppu.data.times import seconds_since_1970


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970", 0.0),
        ("1970-02", 31 * 86400.0),
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:01:01", 61.0),
        ("1970-01-01 00:01:01", 61.0),
        ("1970-01-01T00:01:01Z", 61.0),
        ("1970-01-01T02:00:00+02:00", 0.0),
        ("1969-12-31T23:59:59.5", -0.5),
        (" 1970-01-02\n", 86400.0),
    ],
)
def test_a_date_of_any_precision_is_the_start_of_its_time_in_utc(text: str, seconds: float) -> None:
    assert seconds_since_1970(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "2018-13", "2018-02-30", "18-03-02", "02.03.2018", "1520000000", "2018-3"]
)
def test_what_is_no_iso_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month|day"):
        seconds_since_1970(text)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_written_moment_is_read_back(moment: datetime) -> None:
    assert seconds_since_1970(moment.isoformat()) == pytest.approx(moment.timestamp(), abs=1e-6)
