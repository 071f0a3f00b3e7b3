"""Makes the parts of the documentation that are lists of what the code defines: `make docs`.

    python -m docs.make_reference

Tables, columns, KPIs and statistics are written where they are defined; here they become Markdown. tables.md is made
whole; in other pages only what stands between a pair of marks is replaced:

    <!-- begin kpis: made by `make docs` -->
    <!-- end kpis -->
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import duckdb

from sinks.duckdb import load_warehouse
from sinks.macros import MACROS
from sinks.parquet import MONTHS
from sinks.views import KPI_VALUES, VIEWS, WINDOWS, View
from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.schema import Column
from transforms.tables import KPI_CHANGES, KPI_TABLE, TABLES, Table

ROOT = Path(__file__).resolve().parents[1]
KPIS_VIEW = next(view for view in VIEWS if view.name == KPI_TABLE.name)
Types = dict[tuple[str, str], str]

_INTRODUCTION = """\
# The tables

Every run leaves these tables twice: as a folder of Parquet files each, and together in `care.duckdb`. There every
table, view and column carries its sentence as a comment:

```sql
SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'conversations';
```

Names end in what they hold: `_at` a moment in UTC, `_seconds` a duration, `_count` a number of things, `_rate` a share
from 0 to 1; `is_` begins a yes or no; `avg_`, `p50_`, `p90_` and `p95_` are a mean and percentiles. Null means that it
did not happen or does not apply; it is never written as 0.

This page is made from the code by `make docs`.
"""

_VIEWS = """\
## Views

Only in `care.duckdb`. The columns of those that begin with `kpis` are those of [`kpis`](#kpis) unless said otherwise:
first what names the window, then every KPI.
"""

_MACROS = """\
## Macros

Only in `care.duckdb`. Those with `from_at` and `to_at`, `kpis_beside_last_week` and `kpis_as_of` are tables to select
from: [cookbook.md](cookbook.md) has examples, [history.md](history.md) those of `kpis_as_of`. Parameters with `:=` may
be left out, and are given by name. The others are for percentiles over windows that you put together yourself:

```sql
SELECT channel, histogram_percentile(merge_histograms(list(reply_histogram)), 0.9) AS p90_reply_seconds
FROM kpi_statistics
WHERE basis = 'activity' AND grain = 'day' AND window_start < TIMESTAMPTZ '2026-01-08 00:00:00+00'
GROUP BY channel ORDER BY channel;
```
"""


def reference_pages() -> dict[Path, str]:
    """The pages that hold something made, as they should be.

    Returns:
      Path -> whole text of README.md, docs/kpis.md and docs/tables.md.
    """
    parts: dict[str, Callable[[], str]] = {
        "kpis": kpi_overview,
        "definitions": definition_table,
        "statistics": statistic_table,
    }
    pages = {ROOT / "docs" / "tables.md": tables_page()}
    for path in (ROOT / "README.md", ROOT / "docs" / "kpis.md"):
        text = path.read_text(encoding="utf-8")
        for name, made in parts.items():
            begin = f"<!-- begin {name}: made by `make docs` -->\n"
            marks = re.compile(f"(?<={re.escape(begin)}).*?(?=<!-- end {name} -->)", re.DOTALL)
            text = marks.sub(lambda _, made=made: f"\n{made()}\n", text)
        pages[path] = text
    return pages


def kpi_overview() -> str:
    """One row per KPI, a duration's mean and percentiles together."""
    rows, families = [], [[kpi] for kpi in KPIS if kpi.kind != "percentile"]
    for family in families:
        end = family[0].name.partition("_")[2]
        family += [kpi for kpi in KPIS if kpi.kind == "percentile" and kpi.name.partition("_")[2] == end]
        names = ", ".join(f"`{kpi.name}`" if kpi is family[0] else f"`{_rank(kpi)}_…`" for kpi in family)
        sentence = family[0].sentence.removesuffix("; mean.").removesuffix(".") + "."
        rows.append((family[0].label.removesuffix(", mean"), names, family[0].unit, sentence))
    return _table(("KPI", "column", "unit", "what it says"), rows)


def definition_table() -> str:
    """One row per column of `kpis`, with what it is made of."""
    return _table(
        ("column", "label", "unit", "made of", "sentence"),
        [(f"`{kpi.name}`", kpi.label, kpi.unit, _formula(kpi), kpi.sentence) for kpi in KPIS],
    )


def statistic_table() -> str:
    """One row per additive statistic."""
    return _table(
        ("statistic", "kind", "what is counted, and where it falls on the activity basis"),
        [(f"`{statistic.name}`", statistic.kind, statistic.sentence) for statistic in STATISTICS],
    )


def tables_page() -> str:
    """The whole of docs/tables.md."""
    types = _types()
    parts = [_INTRODUCTION, _contents()]
    parts += [_table_section(table, types) for table in TABLES]
    parts += [
        _windows_section(types),
        _VIEWS,
        *(_view_section(view, types) for view in VIEWS if view != KPIS_VIEW),
        _MACROS,
    ]
    parts.append(_table(("macro", "what it gives"), [(f"`{_call(m.name, m.signature)}`", m.sentence) for m in MACROS]))
    return "\n".join(parts)


def _formula(kpi: Kpi) -> str:
    if kpi.kind == "percentile":
        return f"{_rank(kpi).removeprefix('p')}th percentile of `{kpi.numerator}`"
    if kpi.kind == "running":
        return f"running sum of `{kpi.numerator}`"
    if kpi.denominator is None:
        return f"`{kpi.numerator}`"
    return f"`{kpi.numerator}` {'-' if kpi.kind == 'change' else '/'} `{kpi.denominator}`"


def _rank(kpi: Kpi) -> str:
    """How the name of a percentile begins: p90."""
    return kpi.name.partition("_")[0]


def _contents() -> str:
    tables = [(f"[`{table.name}`](#{table.name})", table.grain) for table in TABLES]
    views = [(f"[`{view.name}`](#{view.name})", view.sentence) for view in VIEWS if view != KPIS_VIEW]
    return _table(("table or view", "one row"), [*tables, *views])


def _table_section(table: Table, types: Types) -> str:
    """A published table: where it lies, its grain, key and columns."""
    is_kpis = table == KPI_TABLE
    month = MONTHS.get(table.name)
    folder = f"{month.rpartition('_')[0]}_month=YYYY-MM/" if month else ""
    lines = [f"## {table.name}\n", f"{table.grain} Key: {', '.join(f'`{name}`' for name in table.key)}.\n"]
    by_month = f", the month being that of `{month}` in UTC" if month else ""
    by_commit = ", one file for each commit that changed anything" if table == KPI_CHANGES else ""
    lines.append(f"Parquet: `{table.name}/{folder}*.parquet`{by_month}{by_commit}.\n")
    if is_kpis:
        lines.append(
            f"Parquet and the table `{KPI_VALUES}` hold the changes of backlog and waiting; the view `kpis` adds "
            "`backlog_count` and `waiting_count`, their running sums, on reading.\n"
        )
    lines.append(_columns(table.name, KPIS_VIEW.columns if is_kpis else table.columns, types))
    return "\n".join(lines)


def _windows_section(types: Types) -> str:
    text = f"## {WINDOWS.name}\n\n{WINDOWS.grain} Key: {', '.join(f'`{name}`' for name in WINDOWS.key)}. Only in "
    return f"{text}`care.duckdb`.\n\n{_columns(WINDOWS.name, WINDOWS.columns, types)}"


def _view_section(view: View, types: Types) -> str:
    """A view: its sentence, and the columns that are not as in `kpis`."""
    known = {column.name: column.description for column in KPIS_VIEW.columns}
    gone = [f"`{name}`" for name in known if name not in {column.name for column in view.columns}]
    own = [column for column in view.columns if known.get(column.name) != column.description]
    lines = [f"### {view.name}\n", f"{view.sentence}\n"]
    if gone and any(column.name == KPIS[-1].name for column in view.columns):
        lines.append(f"Without {', '.join(gone)}.\n")
    if own:
        lines.append(_columns(view.name, own, types))
    return "\n".join(lines)


def _columns(table: str, columns: Iterable[Column], types: Types) -> str:
    return _table(
        ("column", "type", "null", "meaning"),
        [(f"`{c.name}`", types[table, c.name], "yes" if c.nullable else "no", c.description) for c in columns],
    )


def _types() -> Types:
    """The type of every column as DuckDB shows it, from a warehouse without rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = load_warehouse(Path(folder) / "empty.duckdb", {table: table.schema.empty_table() for table in TABLES})
        with duckdb.connect(str(path), read_only=True) as warehouse:
            found = warehouse.execute("SELECT table_name, column_name, data_type FROM duckdb_columns()").fetchall()
    short = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ"}
    return {(table, column): short.get(kind, kind) for table, column, kind in found}


def _call(name: str, signature: str) -> str:
    return name + signature[: signature.index(")") + 1]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def main() -> None:
    """Writes the pages."""
    for path, text in reference_pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
