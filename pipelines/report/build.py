"""A report from a published result: chosen, read, worded, drawn and written."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipelines.report.contents import make_sheets
from pipelines.report.data import gather
from pipelines.report.files import as_csv, as_workbook, write_files
from pipelines.report.page import render_page
from pipelines.report.period import Grain, Period, period_of
from pipelines.report.pictures import make_pictures
from pipelines.report.text import short_text
from pipelines.report.warehouse import Filters, Warehouse, open_warehouse
from pipelines.report.words import Words
from transforms.errors import UserError

DEFAULT_LOCALE = "en_GB"
_NAMES = {"day": r"\d{4}-\d\d-\d\d", "week": r"\d{4}-W\d\d", "month": r"\d{4}-\d\d"}


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
      period: what it is about.
      fell: there was data.
      text: the short text.
      paths: its files; the HTML page is the last one.
      commit_id: number of the commit that it was made of.
      audit: passed, warning, or none where no audit is on record.
    """

    period: Period
    fell: bool
    text: str
    paths: Sequence[Path]
    commit_id: int
    audit: str


def write_report(
    output: Path,
    reports: Path,
    *,
    grain: Grain = "day",
    day: date | None = None,
    filters: Filters | None = None,
    locale: str = DEFAULT_LOCALE,
) -> Written:
    """Writes the report on a day, week or month. The same result gives the same bytes, however often it is asked.

    Args:
      output: the folder that a run wrote; it is only read.
      reports: folder for the files, made where it is not there.
      grain: of the period.
      day: a day of the period; None: of the latest complete one.
      filters: which accounts and channels; None: all.
      locale: en_GB, de_DE or zh_CN.

    Raises:
      UserError: there is no result, no complete period, or no room for the files.
    """
    filters = filters or Filters()
    warehouse = open_warehouse(output, filters)
    with warehouse.connection:
        period = _period(warehouse, output, grain, day)
        choice = _choice(filters)
        data = gather(warehouse, period, filters, _commit_before(reports, period, choice))
    words = Words(locale, warehouse.zone)
    stem = f"care-kpis-{period.name}{choice}{'' if locale == DEFAULT_LOCALE else f'-{locale}'}"
    sheets, page = make_sheets(data, words), f"{stem}.html"
    text = short_text(data, words, page)
    html = render_page(data, words, sheets, make_pictures(data, words), stem)
    contents = {
        f"{stem}.csv": as_csv(list(sheets.values())),
        f"{stem}.xlsx": as_workbook(list(sheets.values()), words, data.run["committed_at"]),
        f"{stem}.txt": text.encode(),
        page: html.encode(),
    }
    audit = "none" if data.audit is None else data.audit.verdict
    paths = write_files(reports, contents)
    return Written(period, data.fell, text, paths, int(data.run["commit_id"]), audit)


def _period(warehouse: Warehouse, output: Path, grain: Grain, day: date | None) -> Period:
    if day is not None:
        if not 1970 <= day.year <= 2101:
            raise UserError(f"Expected a day from 1970 to 2101, got {day}: correct --date or --month.")
        return period_of(day, grain, warehouse.zone)
    latest = warehouse.latest(grain)
    if latest is None:
        raise UserError(
            f"Expected a {grain} that is complete in {output}, but there is none yet: name one, by --date or --month."
        )
    return latest


def _choice(filters: Filters) -> str:
    """What tells the files of one choice of accounts and channels from another; nothing where all are meant."""
    if filters == Filters():
        return ""
    names = "-".join(sorted({*filters.accounts, *filters.channels}))
    safe = re.sub(r"[^a-z0-9]+", "-", names.lower()).strip("-")[:40]
    return f"-{safe or 'some'}-{hashlib.sha256(filters.as_json().encode()).hexdigest()[:6]}"


def _commit_before(reports: Path, period: Period, choice: str) -> int | None:
    """The commit that the latest report on an earlier period of the same kind and choice was made of."""
    pattern = re.compile(rf"care-kpis-({_NAMES[period.grain]}){re.escape(choice)}(?:-[a-z]+_[A-Z]+)?\.csv")
    found = [(match[1], path) for path in reports.glob("care-kpis-*.csv") if (match := pattern.fullmatch(path.name))]
    for name, path in sorted(found, reverse=True):
        if name < period.name:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("table") == "report" and row.get("key") == "commit_id" and str(row["value"]).isdigit():
                        return int(row["value"])
    return None
