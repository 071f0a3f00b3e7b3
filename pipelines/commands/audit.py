"""`care-kpis audit`: the audit of a result that is there already."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.exits import AUDIT_FAILED
from pipelines.parameters import NamedPath
from transforms.errors import UserError

_HELP = """Audit a result that was published.

Every table, key, range and sum is held against its definition, and the volume against history, by Great Expectations.
The result stays as it is; Data Docs go into its folder audit/. The exit code is 0, also with warnings, or 3 where a
critical check failed. `care-kpis batch --audit` and `care-kpis daily` do the same before they publish.

\b
Example:
  care-kpis audit output
"""
_COLORS = {"passed": "green", "warning": "yellow", "failed": "bold red"}


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.pass_context
def audit(context: click.Context, output: Path) -> None:
    """Prints the verdict, and what does not hold."""
    from rich.console import Console
    from rich.text import Text

    from pipelines.audit.expectations import require_great_expectations
    from pipelines.audit.run import FOLDER, audit_result
    from sinks.output_folder import current_snapshot, number_of

    require_great_expectations()
    snapshot = current_snapshot(output)
    if snapshot is None:
        raise UserError(f"Expected the result of a run in {output}, but there is none: name its --output folder.")
    result = audit_result(snapshot, number_of(snapshot.name)[0], output / FOLDER)
    console = Console(highlight=False)
    verdict = Text(result.verdict, _COLORS[result.verdict])
    console.print(verdict, f"{len(result.outcomes):,} checks of commit {result.commit_id:,}")
    for outcome in result.problems:
        console.print(Text(f"{outcome.severity}: {outcome.told()}"))
    click.echo(f"Data Docs {result.docs / 'index.html'}")
    if result.verdict == "failed":
        context.exit(AUDIT_FAILED)
