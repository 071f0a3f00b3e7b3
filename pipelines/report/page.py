"""The HTML page: one file with its style and charts in it, which asks for nothing else."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from pipelines.report import text
from pipelines.report.comparison import is_settled
from pipelines.report.contents import before_word
from pipelines.report.data import ReportData
from pipelines.report.pictures import MOST_CHANNELS, Picture
from pipelines.report.sheets import Sheet
from pipelines.report.words import Words

_TEMPLATES = ("report.html", "report.css")


def render_page(
    data: ReportData, words: Words, sheets: dict[str, Sheet], pictures: dict[str, list[Picture]], stem: str
) -> str:
    """The page.

    Args:
      data: what it says.
      words: the reader's language.
      sheets: its tables by name.
      pictures: its charts by section.
      stem: name of the report's files without their endings.
    """
    folder = files("pipelines.report") / "templates"
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in _TEMPLATES}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(_=words.say, label=words.label, value=words.value)
    return environment.get_template("report.html").render(
        data=data,
        lang=words.locale.language,
        period=text.period_words(data, words),
        notices=text.notices(data, words),
        cards=[_card(one, data, words) for one in text.headline(data)],
        unusual=[text.unusual_sentence(one, words) for one in data.unusual],
        restated=text.restated_sentence(data, words),
        audit=text.audit_sentence(data, words),
        before=before_word(data, words),
        sheets=sheets,
        pictures={name: [(p.title, p.note, Markup(p.svg)) for p in found] for name, found in pictures.items()},
        cell=partial(_cell, words=words),
        more_channels=max(0, len(data.channels) - MOST_CHANNELS),
        stem=stem,
    )


def _card(one: Any, data: ReportData, words: Words) -> dict[str, Any]:
    unit = one.kpi.unit
    marked = [u for u in data.unusual if u.kpi == one.kpi]
    mark = ""
    if marked and data.period.grain == "day":
        mark = words.say("unusually high") if marked[0].is_high else words.say("unusually low")
    usual = words.range(one.low, one.high, unit)
    return {
        "label": words.label(one.kpi.label),
        "value": words.value(one.value, unit),
        "changes": text.changes(one, data, words),
        "range": words.say("normal: {range}", range=usual) if any(c.isdigit() for c in usual) else "",
        "mark": mark,
        "is_settled": not data.fell or is_settled(one.kpi.name, data.period.end_at, data.run["as_of"]),
    }


def _cell(sheet: Sheet, row: int, column: int, words: Words) -> str:
    return words.value(sheet.rows[row][column], sheet.unit(row, column))
