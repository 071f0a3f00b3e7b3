"""What questions of a large result cost: every view, every query of docs/cookbook.md, and a daily report.

    python tests/bench_warehouse.py                        1.6 million conversations, about three minutes on two cores
    python tests/bench_warehouse.py --events 1000000

Prints wall time of each. Never asserts a time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
from bench_audit import care_kpis, show
from bench_batch import ROOT, SETTINGS, generate

sys.path.insert(0, str(ROOT))

from sinks.views import VIEWS

EVENTS = 14_500_000
DAY = "2026-02-10"
"""In the middle of what is generated."""


def questions() -> Iterator[tuple[str, str]]:
    """The heading and the text of every query of the cookbook."""
    page = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
    for part in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        for query in re.findall(r"^```sql\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            yield part.splitlines()[0], query


def ask(warehouse: duckdb.DuckDBPyConnection, what: str, query: str) -> None:
    """One query, the second time that it is asked, and its rows."""
    for _ in range(2):
        began = time.perf_counter()
        rows = warehouse.sql(query).fetchall()
        seconds = time.perf_counter() - began
    print(f"  {seconds:6.2f} s  {len(rows):>9,} rows  {what}", flush=True)


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the result")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the events are kept")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config, output, reports = folder / "care.toml", folder / "asked", folder / "reports"
    config.write_text(SETTINGS, encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    care_kpis("batch", "--input", generate(folder, given.events), "--output", output, "--config", config)
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        found = warehouse.sql("SELECT count(*) FROM conversations").fetchall()[0][0]
        print(f"{given.events:,} events, {found:,} conversations, DuckDB {duckdb.__version__}")
        for view in VIEWS:
            # A series without holes is asked for of a while, as is every other one.
            some = (
                f" WHERE window_start >= '{DAY}' AND window_start < '2026-02-17'" if view.name == "kpis_dense" else ""
            )
            ask(warehouse, f"view {view.name}", f"FROM {view.name}{some}")
        for what, query in questions():
            ask(warehouse, what, query)
    show("report of a day", care_kpis("report", output, "--date", DAY, "--reports", reports))
    show("report of a month", care_kpis("report", output, "--month", DAY[:7], "--reports", reports))
    shutil.rmtree(output)
    shutil.rmtree(reports)


if __name__ == "__main__":
    main()
