"""What a warehouse is made of before it has rows: tables, macros and views, each with its sentence as a comment."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
import pyarrow as pa

from sinks.macros import MACROS
from sinks.sql import sql_text
from sinks.views import KPI_VALUES, VIEWS
from transforms.schema import TIMESTAMP, Column
from transforms.tables import KPI_DEFINITIONS, KPI_TABLE, RUNS, Table

_INDEXED = (KPI_DEFINITIONS.name, RUNS.name)
"""Tables with a primary key. Of the others, some have a key with null in it, which DuckDB does not take; on
conversations and turns an index takes longer than loading them (1.6 M and 3.4 M rows: 6 s more than 3 s)."""

_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    TIMESTAMP: "TIMESTAMPTZ",
}


def define(warehouse: duckdb.DuckDBPyConnection, tables: Iterable[Table]) -> None:
    """Makes tables without rows, and all macros and views, with their comments.

    Args:
      warehouse: a database without any of them.
      tables: those that the views need, at least.
    """
    for spec in tables:
        name = name_of(spec)
        columns = [f"{c.name} {_type(c.type)}{'' if c.nullable else ' NOT NULL'}" for c in spec.columns]
        key = [f"PRIMARY KEY ({', '.join(spec.key)})"] if name in _INDEXED else []
        warehouse.execute(f"CREATE TABLE {name} ({', '.join(columns + key)})")
        note = "" if key else ", unique without being an index"
        sentence = f"{spec.grain} Key: {', '.join(spec.key)}{note}."
        for statement in _comments("TABLE", name, sentence, spec.columns):
            warehouse.execute(statement)
    for statement in _statements():
        warehouse.execute(statement)


def name_of(spec: Table) -> str:
    """Name of a table in the warehouse; `kpis` is the view over its stored part."""
    return KPI_VALUES if spec == KPI_TABLE else spec.name


def _statements() -> list[str]:
    """SQL that makes all macros and views with their comments, once the tables are there."""
    out = []
    for macro in MACROS:
        out.append(f"CREATE MACRO {macro.name}{macro.signature}")
        out.append(f"COMMENT ON {macro.kind} {macro.name} IS {sql_text(macro.sentence)}")
    for view in VIEWS:
        out.append(f"CREATE VIEW {view.name} AS {view.query}")
        out += _comments("VIEW", view.name, view.sentence, view.columns)
    return out


def _comments(kind: str, name: str, sentence: str, columns: tuple[Column, ...]) -> list[str]:
    """SQL that puts the sentences of a TABLE or VIEW and of its columns where a reader finds them."""
    return [
        f"COMMENT ON {kind} {name} IS {sql_text(sentence)}",
        *(f"COMMENT ON COLUMN {name}.{column.name} IS {sql_text(column.description)}" for column in columns),
    ]


def _type(kind: pa.DataType) -> str:
    """The DuckDB type of a column."""
    return _TYPES.get(kind) or "STRUCT(bucket SMALLINT, count INTEGER)[]"
