"""docs/cookbook.md: how many questions, that each answer is shown, and that Parquet reads alike everywhere."""

from __future__ import annotations

import re

import pytest
from test_docs import PAGES, CodeBlock, code_blocks, named, printed

from sinks.credit import CREDITED
from sinks.macros import MACROS

__all__ = ["printed"]

PAGE = "docs/cookbook.md"
QUERIES = code_blocks("sql", PAGE)


@pytest.mark.parametrize("block", named(QUERIES))
def test_every_question_has_its_answer(block: CodeBlock) -> None:
    """The answer stands below the query; that it is the right one is seen where all queries run."""
    assert block.following is not None and block.following.startswith("┌")


def test_what_analysts_ask_is_there() -> None:
    """Some twenty questions, with every macro of a period among them, and the queue."""
    assert len(QUERIES) >= 20
    text = "".join(block.text for block in QUERIES)
    for macro in MACROS:
        if "from_at" in macro.signature or macro.name in ("kpis_beside_last_week", "instant_of", "local_time"):
            assert f"{macro.name}(" in text, macro.name
    assert "waiting_now" in text and all(f"kpis_by_{word}(" in text for word in CREDITED)


@pytest.mark.usefixtures("printed")
def test_parquet_reads_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """pandas, Polars and DuckDB print the same of the same folder."""
    blocks = code_blocks("python", PAGE)
    libraries = [re.findall(r"^import (\w+)", block.text, re.MULTILINE) for block in blocks]
    assert libraries == [["pandas"], ["polars"], ["duckdb"]] and "Polars" in PAGES[PAGE]
    answers = []
    for block in blocks:
        exec(block.text, {})
        answers.append(capsys.readouterr().out)
    assert answers[0].startswith("{'app': ") and answers == [answers[0]] * 3
