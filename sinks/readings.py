"""Both copies of a result, Parquet and DuckDB, opened side by side in one DuckDB session that writes nothing."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.catalog import name_of
from sinks.macros import MACROS
from sinks.manifest import Manifest
from sinks.output_folder import WAREHOUSE
from sinks.sql import sql_text
from transforms.tables import KPI_CHANGES, TABLES, Table

MEMORY_LIMIT = "2GB"
"""What DuckDB may use before it goes on in temporary files."""

UNREADABLE = (duckdb.Error, pa.ArrowException, OSError)
"""What reading a damaged file may raise."""

_OF_HISTOGRAMS = ("bucket_seconds",)


class Reading:
    """The tables of a snapshot, from either copy; a context manager.

    In the session each table has a view of its own name, over the Parquet files where they can be used, else over the
    warehouse; `of_parquet` and `of_warehouse` name the copies apart.

    Attributes:
      snapshot: the folder.
      files: the Parquet files of each table, by its name.
      unusable: why a copy of a table cannot be used: by "parquet" or "duckdb", and the table's name.
      columns: what is not as it should be with the columns of a copy that can be read.
    """

    def __init__(self, snapshot: Path, manifest: Manifest | None, damage: Mapping[str, str]) -> None:
        """Opens a snapshot.

        Args:
          snapshot: the folder.
          manifest: names its files; None takes those that are there.
          damage: files that must not be used, and why.
        """
        self.snapshot = snapshot
        self.files: dict[str, list[Path]] = {}
        self.unusable: dict[tuple[str, str], str] = {}
        self.columns: list[str] = []
        self._stack = ExitStack()
        spill = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="care-kpis-"))
        config = {"memory_limit": MEMORY_LIMIT, "temp_directory": spill, "autoinstall_known_extensions": False}
        self._session = self._stack.enter_context(duckdb.connect(config=config))
        self._session.execute("SET TimeZone = 'UTC'")
        for macro in MACROS:
            if macro.name in _OF_HISTOGRAMS:
                self._session.execute(f"CREATE MACRO {macro.name}{macro.signature}")
        self._attach(damage.get(WAREHOUSE))
        for spec in TABLES:
            files = (
                sorted((snapshot / spec.name).rglob("*.parquet"))
                if manifest is None
                else [snapshot / path for path in manifest.of_table(spec.name)]
            )
            self.files[spec.name] = files
            self._session.register(_empty(spec), spec.schema.empty_table())
            self._open_parquet(spec, any(str(file.relative_to(snapshot)) in damage for file in files))
            self._open_warehouse(spec)
            for copy, source in (("parquet", self.of_parquet(spec)), ("duckdb", self.of_warehouse(spec))):
                if (copy, spec.name) not in self.unusable:
                    self._session.execute(f"CREATE VIEW {spec.name} AS FROM {source}")
                    break

    def __enter__(self) -> Reading:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the session and removes its temporary files."""
        self._stack.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that a query gives."""
        return self._session.execute(sql).fetchall()

    def row(self, sql: str) -> dict[str, Any]:
        """The one row that a query gives, by column."""
        cursor = self._session.execute(sql)
        values = cursor.fetchone()
        assert values is not None and cursor.description is not None
        return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}

    def arrow(self, sql: str) -> pa.Table:
        """The rows that a query gives, as an Arrow table."""
        return self._session.sql(sql).to_arrow_table()

    def of_parquet(self, spec: Table) -> str:
        """SQL name of a table as its Parquet files have it."""
        return f"parquet_{spec.name}"

    def of_warehouse(self, spec: Table) -> str:
        """SQL name of a table as the warehouse has it."""
        return f"warehouse.{name_of(spec)}"

    def why_not(self, spec: Table) -> str | None:
        """Why neither copy of a table can be used; None where one can."""
        reasons = [self.unusable.get((copy, spec.name)) for copy in ("parquet", "duckdb")]
        return None if None in reasons else " and ".join(str(reason) for reason in reasons)

    def _attach(self, damage: str | None) -> None:
        """Opens the warehouse; where that fails none of its tables can be used."""
        self._closed = None if damage is None else f"{WAREHOUSE} is damaged"
        file = self.snapshot / WAREHOUSE
        if self._closed is None and not file.is_file():
            self._closed = f"{WAREHOUSE} is not there"
        if self._closed is None:
            try:
                self._session.execute(f"ATTACH {sql_text(str(file))} AS warehouse (READ_ONLY)")
            except UNREADABLE as error:
                self._closed = f"{WAREHOUSE} cannot be opened ({first_line(error)})"
                self.columns.append(self._closed)

    def _open_warehouse(self, spec: Table) -> None:
        if self._closed is not None:
            self.unusable["duckdb", spec.name] = self._closed
            return
        try:
            types = self._types(self.of_warehouse(spec))
        except UNREADABLE as error:
            self._refuse("duckdb", spec, f"{spec.name} in {WAREHOUSE} cannot be read ({first_line(error)})")
            return
        expected = self._types(_empty(spec))
        if types != expected:
            self._refuse("duckdb", spec, f"{spec.name} in {WAREHOUSE} {_difference(types, expected)}")

    def _open_parquet(self, spec: Table, is_damaged: bool) -> None:
        files = self.files[spec.name]
        if is_damaged or not files:
            why = "are damaged" if is_damaged else "are not there"
            self.unusable["parquet", spec.name] = f"Parquet files of {spec.name} {why}"
            return
        expected = {field.name: field.type for field in spec.schema}
        for file in files:
            name = file.relative_to(self.snapshot)
            try:
                types = {field.name: field.type for field in pq.read_schema(file)}
            except UNREADABLE as error:
                self._refuse("parquet", spec, f"{name} cannot be read ({first_line(error)})")
                return
            # Files of kpi_changes outlive the version that wrote them: they may lack a KPI of today, or have one more.
            if spec == KPI_CHANGES:
                types = {**expected, **{column: kind for column, kind in types.items() if column in expected}}
            if types != expected:
                self._refuse("parquet", spec, f"{name} {_difference(types, expected)}")
                return
        listed = ", ".join(sql_text(glob.escape(str(file))) for file in files)
        rows = f"FROM read_parquet([{listed}], hive_partitioning = false, union_by_name = {spec == KPI_CHANGES})"
        if spec == KPI_CHANGES:
            rows = f"FROM {_empty(spec)} UNION ALL BY NAME {rows}"
        columns = ", ".join(f"CAST({name} AS {kind}) AS {name}" for name, kind in self._types(_empty(spec)).items())
        self._session.execute(f"CREATE VIEW {self.of_parquet(spec)} AS SELECT {columns} FROM ({rows})")

    def _types(self, source: str) -> dict[str, str]:
        """The columns of a table or view, and their types."""
        return dict(self.rows(f"SELECT column_name, column_type FROM (DESCRIBE {source})"))

    def _refuse(self, copy: str, spec: Table, why: str) -> None:
        self.unusable[copy, spec.name] = why
        self.columns.append(why)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _empty(spec: Table) -> str:
    """SQL name of a table without rows that has the columns and types that it should have."""
    return f"no_{spec.name}"


def _difference(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """How columns differ from those that a table has."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing:
        return f"has no column {missing[0]}"
    if unknown:
        return f"has a column {unknown[0]}, which this version does not know"
    name = next((name for name in expected if found[name] != expected[name]), None)
    if name is None:
        return "has its columns in another order"
    return f"has {found[name]} in column {name} instead of {expected[name]}"
