"""Durations: what may be written, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.durations import MAX_DURATION, format_duration, parse_duration
from transforms.settings import DAY, HOUR

MINUTE = HOUR // 60
SECOND = MINUTE // 60


@pytest.mark.parametrize(
    ("said", "micros"),
    [
        ("24h", DAY),
        ("30d", 30 * DAY),
        ("90m", 90 * MINUTE),
        ("1.5s", 3 * SECOND // 2),
        ("1h30m", 90 * MINUTE),
        ("1h 30m", 90 * MINUTE),
        ("1d12h30m0.5s", 36 * HOUR + 30 * MINUTE + SECOND // 2),
        (86_400, DAY),
        (0.25, SECOND // 4),
        (0.1, SECOND // 10),
        ("0.0000019s", 1),
        ("47847d", MAX_DURATION),
    ],
)
def test_durations_that_may_be_written(said: object, micros: int) -> None:
    """Numbers are seconds, texts carry units; what is finer than a microsecond is cut off."""
    assert parse_duration(said) == micros


@pytest.mark.parametrize(
    "said",
    ["", " ", "24", "24 h", "h", "24H", "1m1h", "1h1h", "1y", "-1d", "+1d", "1e3s", ".5s", "1.s", "٣d", "0s", "0d",
     "0.0000001s", "47848d", True, None, [1], 0, -1, 1e-7, float("nan"), float("inf"), 1e300, 10**400],
)  # fmt: skip
def test_durations_that_may_not_be_written(said: object) -> None:
    """Everything else is refused with what is expected."""
    with pytest.raises(ValueError, match=r"expected a (number of seconds|duration)"):
        parse_duration(said)


@given(st.integers(1, MAX_DURATION), st.sampled_from(["", " "]))
def test_durations_are_read_back_as_they_were(micros: int, separator: str) -> None:
    """Formatting and parsing lose nothing."""
    assert parse_duration(format_duration(micros, separator)) == micros


@pytest.mark.parametrize(
    ("micros", "text"), [(DAY, "24h"), (2 * DAY, "2d"), (90 * MINUTE, "1h30m"), (1, "0.000001s"), (0, "0s")]
)
def test_durations_read_well(micros: int, text: str) -> None:
    """The shortest text is taken."""
    assert format_duration(micros) == text
