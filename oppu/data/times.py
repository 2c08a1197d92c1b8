"""ISO 8601 dates of any precision -> seconds since 1970 (UTC). A date without an offset counts as UTC."""

import re
from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR = re.compile(r"\d{4}")
_YEAR_AND_MONTH = re.compile(r"\d{4}-\d{2}")


def seconds_since_1970(text: str) -> float:
    """The time of `1985`, `1985-07`, `2018-03-02`, `2018-05-05T21:04:06` or `…Z`; a ValueError when it is none."""
    moment = datetime.fromisoformat(_completed(text.strip()))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds()


def _completed(text: str) -> str:
    if _YEAR.fullmatch(text):
        return f"{text}-01-01"
    if _YEAR_AND_MONTH.fullmatch(text):
        return f"{text}-01"
    return text
