"""Numbers, dates and sentences as the reader's locale writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, format_datetime, format_skeleton, get_day_names
from babel.messages.pofile import read_po
from babel.numbers import format_decimal, format_percent
from babel.units import format_unit

NULL = "\N{EN DASH}"
_SIZES = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


@dataclass(frozen=True)
class Words:
    """How a locale says it.

    Attributes:
      name: of the locale, such as de_DE.
      zone: IANA zone in which moments are told.
    """

    name: str
    zone: str

    @cached_property
    def locale(self) -> Locale:
        """Babel's."""
        return Locale.parse(self.name)

    @cached_property
    def _catalog(self) -> dict[str, str]:
        path = files("pipelines.report") / "locales" / f"{self.locale.language}.po"
        if self.locale.language == "en":
            return {}
        with path.open("rb") as file:
            return {str(m.id): str(m.string) for m in read_po(file) if m.id and m.string}

    def say(self, text: str, **values: object) -> str:
        """The sentence in the reader's language, its {names} filled in; English where there is no translation."""
        said = self._catalog.get(text, text)
        return said.format(**values) if values else said

    def label(self, label: str) -> str:
        """The name of a KPI, of which what stands before ", p50" or ", mean" is translated by itself."""
        head, comma, tail = label.rpartition(", ")
        if comma and (tail == "mean" or tail[1:].isdigit()):
            return f"{self.say(head)}, {self.say(tail)}"
        return self.say(label)

    def sentence(self, sentence: str) -> str:
        """The sentence of a KPI, of which what stands before "; mean." and the like is translated by itself."""
        head, mark, tail = sentence.partition("; ")
        if not mark:
            return self.say(sentence)
        number = tail.split("th percentile")[0]
        said = self.say("{number}th percentile (nearest rank).", number=number) if number.isdigit() else self.say(tail)
        return f"{self.say(head)}; {said}"

    def value(self, value: Any, unit: str) -> str:
        """A value of a KPI or column; what is not known is a dash.

        Args:
          value: number, text, date or moment; None or NaN where it is not known.
          unit: count, number, seconds, rate, score, date, moment or text.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return NULL
        if unit == "count":
            return format_decimal(round(value), locale=self.locale)
        if unit == "number":
            return format_decimal(value, format="#,##0.0", locale=self.locale)
        if unit == "score":
            return format_decimal(value, format="0.00", locale=self.locale)
        if unit == "rate":
            return format_percent(value, format=self._percent("0.0"), locale=self.locale)
        if unit == "seconds":
            return self.duration(value)
        if unit == "date":
            return format_date(value, "medium", locale=self.locale)
        if unit == "moment":
            return self.moment(value)
        return str(value)

    def axis(self, value: float, unit: str) -> str:
        """A round value on an axis, as short as can be."""
        if unit == "rate":
            return format_percent(value, format=self._percent("0"), locale=self.locale)
        if unit == "seconds":
            return self.duration(value)
        pattern = "#,##0" if abs(value) >= 10 else "#,##0.##"
        return format_decimal(value, format=pattern, locale=self.locale)

    def _percent(self, digits: str) -> str:
        return self.locale.percent_formats[None].pattern.replace("#,##0", f"#,##{digits}", 1)

    def duration(self, seconds: float) -> str:
        """A duration in its two largest units."""
        rest = round(seconds)
        if 0 < seconds < 10:
            return self._unit(round(seconds, 1), "second")
        parts: list[str] = []
        for unit, size in _SIZES:
            count, left = divmod(rest, size)
            if count or (unit == "second" and not parts):
                parts.append(self._unit(count, unit))
            if parts and (len(parts) == 2 or not left):
                break
            rest = left
        return " ".join(parts[:2])

    def _unit(self, count: float, unit: str) -> str:
        # The narrow forms of some languages are letters that nobody reads as a time.
        length = "narrow" if self.locale.language == "en" else "short"
        return format_unit(count, f"duration-{unit}", length=length, locale=self.locale)  # type: ignore[arg-type]

    def change(self, value: float, before: float, unit: str) -> str:
        """How much more or less a value is than before: in per cent; rates in percentage points, scores as they are."""
        if math.isnan(value) or math.isnan(before) or (unit in ("count", "seconds") and before == 0):
            return NULL
        if unit == "rate":
            points = format_decimal(100 * (value - before), format="+0.0;-0.0", locale=self.locale)
            return self.say("{points} pp", points=points)
        if unit == "score":
            return format_decimal(value - before, format="+0.00;-0.00", locale=self.locale)
        pattern = self._percent("0")
        return format_percent(value / before - 1, format=f"+{pattern};-{pattern}", locale=self.locale)

    def range(self, low: float, high: float, unit: str) -> str:
        """From one value to another."""
        if math.isnan(low) or math.isnan(high):
            return NULL
        return self.say("{low} to {high}", low=self.value(low, unit), high=self.value(high, unit))

    def moment(self, moment: datetime) -> str:
        """A moment to the minute, in the zone of the report."""
        return format_datetime(moment, "short", tzinfo=ZoneInfo(self.zone), locale=self.locale)

    def instant(self, moment: datetime) -> datetime:
        """The local time of a moment, without a zone: for spreadsheets, which know none."""
        return moment.astimezone(UTC).astimezone(ZoneInfo(self.zone)).replace(tzinfo=None)

    def long_date(self, day: date) -> str:
        """A date with its weekday."""
        return format_date(day, "full", locale=self.locale)

    def short_date(self, day: date) -> str:
        """Day and month."""
        return format_skeleton("MMMd", datetime(day.year, day.month, day.day), locale=self.locale)

    def weekday(self, number: int, width: str = "wide") -> str:
        """The name of a weekday; 1 is Monday."""
        return str(get_day_names(width, locale=self.locale)[number - 1])  # type: ignore[arg-type]
