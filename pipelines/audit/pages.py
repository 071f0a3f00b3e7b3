"""Data Docs that ask for nothing: the pages of Great Expectations made self-contained, and a first page of our own.

As they come, the pages fetch styles and scripts from elsewhere, tell a server of each reader, show values as HTML, and
have a first page that is empty without all that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from pipelines.audit.results import AuditResult, Outcome

_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: 'self' file:; "
    "font-src 'self' file:; style-src 'unsafe-inline' 'self' file:\">"
)
_STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { border: 1px solid #ccc; padding: .25rem .5rem; }
td, th { text-align: left; vertical-align: top; } nav img, .modal, .navbar-toggler, footer { display: none; }
.row { display: block; } ul { padding-left: 1.2rem; } .text-success { color: #176f3d; } .text-danger { color: #b3261e; }
.badge { background: #eee; border-radius: .2rem; padding: 0 .3rem; } pre { white-space: pre-wrap; }
</style>"""
_REMOTE = (
    re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<link\b[^>]*https?://[^>]*>", re.IGNORECASE),
    re.compile(r"<img\b[^>]*https?://[^>]*>", re.IGNORECASE),
    re.compile(r"<iframe\b.*?</iframe>", re.DOTALL | re.IGNORECASE),
)
_HEAD = re.compile(r"<head\b[^>]*>", re.IGNORECASE)
_VERDICTS = {
    "passed": "Passed: every check holds.",
    "warning": "Published with warnings.",
    "failed": "Failed: this result was not published.",
}


def make_self_contained(docs: Path) -> None:
    """Takes out of every page what asks a server for something, and forbids the browser to do so, or to run a script.

    Args:
      docs: folder of a site that Great Expectations wrote.
    """
    for path in docs.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        for remote in _REMOTE:
            page = remote.sub("", page)
        page = _HEAD.sub(lambda match: f"{match[0]}{_POLICY}{_STYLE}", page, count=1)
        path.write_text(page, encoding="utf-8")
    for picture in (docs / "static" / "images").glob("*"):
        picture.unlink()


def write_first_page(result: AuditResult) -> None:
    """Writes index.html of an audit: its verdict, what does not hold and in which rows, and a link for each suite."""
    suites = Counter(outcome.check.partition(":")[0] for outcome in result.outcomes)
    broken = Counter(outcome.check.partition(":")[0] for outcome in result.problems)
    lines = "".join(
        f"<tr><td>{_link(result.docs, suite)}</td><td>{count:,}</td><td>{broken[suite]:,}</td></tr>"
        for suite, count in suites.items()
    )
    at = result.audited_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_POLICY}{_STYLE}'
        f"<title>Audit of commit {result.commit_id}</title></head><body><h1>Audit of commit {result.commit_id:,}</h1>"
        f"<p><strong>{_VERDICTS[result.verdict]}</strong> {len(result.outcomes):,} checks, {at}.</p>"
        f"{''.join(map(_problem, result.problems))}"
        f"<h2>Suites</h2><table><tr><th>Suite</th><th>Checks</th><th>Do not hold</th></tr>{lines}</table>"
        "</body></html>\n"
    )
    (result.docs / "index.html").write_text(page, encoding="utf-8")


def _problem(outcome: Outcome) -> str:
    count = "" if outcome.count is None else f", {outcome.count:,} rows"
    return (
        f"<h2>{escape(outcome.check)} ({outcome.severity}{count})</h2><p>{escape(outcome.sentence)}</p>"
        f"{_listed(outcome.rows)}"
    )


def _listed(rows: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(row)}</li>' for row in rows)}</ul>" if rows else ""


def _link(docs: Path, suite: str) -> str:
    found = sorted((docs / "validations" / suite).rglob("*.html"))
    return f'<a href="{quote(str(found[-1].relative_to(docs)))}">{escape(suite)}</a>' if found else escape(suite)
