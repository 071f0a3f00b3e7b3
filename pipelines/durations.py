"""Durations as people write them: "24h", "30d", "90m", "1.5s", "1h30m", or a number of seconds."""

from __future__ import annotations

import re
from decimal import Decimal

SECOND = 1_000_000
UNITS = {"d": 86_400 * SECOND, "h": 3_600 * SECOND, "m": 60 * SECOND, "s": SECOND}
"""Microseconds of each unit, in the order in which they are written."""

ALLOWED = 'a number of seconds or text such as "24h", "30d", "90m", "1.5s" or "1h30m" (units d, h, m, s)'
"""What may be written, for messages."""

MAX_DURATION = 47_847 * UNITS["d"]
"""The whole range of occurred_at, 1970 to 2101; longer silences cannot occur."""

_TEXT = re.compile(" *".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in UNITS))


def parse_duration(value: object) -> int:
    """A duration in microseconds; what is finer is cut off.

    Args:
      value: a number of seconds (int or float), or text.

    Raises:
      ValueError: it is none, or not more than zero and at most MAX_DURATION; the message says what is expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {ALLOWED}")
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if not value or match is None:
            raise ValueError(f"expected {ALLOWED}")
        exact = sum(
            (Decimal(n) * size for n, size in zip(match.groups(), UNITS.values(), strict=True) if n), Decimal(0)
        )
    else:
        exact = Decimal(repr(value)) * SECOND
    # NaN and infinity fail the first comparison, before int() would raise on them.
    if not exact.is_finite() or not 1 <= exact <= MAX_DURATION:
        raise ValueError("expected a duration of more than 0 seconds and at most 47847 days")
    return int(exact)


def format_duration(micros: int, separator: str = "") -> str:
    """The shortest text that parse_duration reads back as the same whole microseconds: 5_400_000_000 is "1h30m".

    One day is "24h", as care teams say it; from two on they are days.

    Args:
      micros: microseconds, at least 0.
      separator: what stands between the parts.
    """
    if micros == UNITS["d"]:
        return "24h"
    parts = []
    rest = micros
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if rest or not parts:
        parts.append(f"{format(Decimal(rest) / SECOND, 'f')}s")
    return separator.join(parts)
