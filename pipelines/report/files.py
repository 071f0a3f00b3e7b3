"""Files of a report: CSV, workbook, and how each takes its place whole."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import xlsxwriter

from pipelines.report.sheets import Sheet
from pipelines.report.words import Words
from transforms.errors import UserError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FORMATS = {
    "count": "#,##0",
    "number": "#,##0.0",
    "seconds": "#,##0.0",
    "rate": "0.0%",
    "score": "0.00",
    "date": "yyyy-mm-dd",
    "moment": "yyyy-mm-dd hh:mm:ss",
}
CSV_HEAD = ("table", "row", "key", "column", "unit", "value")


def plain_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def is_known(value: Any) -> bool:
    """Neither None nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def as_csv(sheets: Sequence[Sheet]) -> bytes:
    """All tables in one, a line for each value: table, row from 1, key of the row, column, unit, value.

    Moments are in UTC, durations in seconds, rates from 0 to 1; what is not known is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for sheet in sheets:
        for number, row in enumerate(sheet.rows):
            key = " | ".join(_csv_value(value) for value in row[: sheet.keys])
            for place in range(sheet.keys, len(row)):
                unit, value = sheet.unit(number, place), row[place]
                if unit == "count" and is_known(value):
                    value = int(value)
                shown = plain_text(_csv_value(value)) if isinstance(value, str) else _csv_value(value)
                writer.writerow((sheet.name, number + 1, plain_text(key), sheet.columns[place].name, unit, shown))
    # With a byte order mark, by which spreadsheets know that it is UTF-8.
    return b"\xef\xbb\xbf" + file.getvalue().encode()


def _csv_value(value: Any) -> str:
    if not is_known(value):
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)


def as_workbook(sheets: Sequence[Sheet], words: Words, made_at: datetime) -> bytes:
    """A workbook with a sheet for each table; durations are in seconds, moments in the zone of the report.

    Args:
      sheets: the tables.
      words: the reader's language.
      made_at: when the numbers were made; the same numbers give the same bytes.
    """
    file = io.BytesIO()
    book = xlsxwriter.Workbook(file, {"in_memory": True})
    book.set_properties({"created": made_at.astimezone(UTC).replace(tzinfo=None)})
    head = book.add_format({"bold": True, "bottom": 1, "text_wrap": True, "valign": "top"})
    formats = {unit: book.add_format({"num_format": pattern}) for unit, pattern in _FORMATS.items()}
    for sheet in sheets:
        page = book.add_worksheet(sheet.name)
        page.freeze_panes(1, sheet.keys)
        for place, column in enumerate(sheet.columns):
            seconds = f" ({words.say('seconds')})" if column.unit == "seconds" else ""
            page.write_string(0, place, column.label + seconds, head)
            page.set_column(place, place, 24 if place < sheet.keys or column.unit == "text" else 16)
        for number, row in enumerate(sheet.rows):
            for place, value in enumerate(row):
                unit = sheet.unit(number, place)
                if not is_known(value):
                    continue
                if isinstance(value, datetime):
                    page.write_datetime(number + 1, place, words.instant(value), formats["moment"])
                elif isinstance(value, date):
                    page.write_datetime(number + 1, place, value, formats["date"])
                elif isinstance(value, str):
                    page.write_string(number + 1, place, _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", value)[:32_767])
                else:
                    page.write_number(number + 1, place, value, formats.get(unit))
    book.close()
    return file.getvalue()


def write_files(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Writes files, each of which is the old one or the new one at every moment.

    Args:
      folder: made where it is not there.
      contents: bytes by file name; the last one is put in place last.

    Raises:
      UserError: the folder cannot be written.
    """
    waiting: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=".report-", suffix=".tmp", dir=folder)
            waiting.append((temporary, folder / name))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # As any file that a program makes; those of mkstemp are for their owner only.
            os.chmod(temporary, 0o666 & ~_umask())
        for temporary, path in waiting:
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"Expected to write the report into {folder}, but the system says {error.strerror or error!r}: free some "
            "space or name another folder by --reports."
        ) from error
    finally:
        for temporary, _ in waiting:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return [path for _, path in waiting]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
