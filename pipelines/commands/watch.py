"""`care-kpis watch`: a running stream in the terminal."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath

_HELP = """Watch a running stream.

Shows events per second, the lag of each partition, how far the watermark is behind, today's KPIs per channel, and who
waits longest; Ctrl-C ends it. It only reads, and may go on while the stream is stopped and started again. Without a
terminal it prints once.

\b
Examples:
  care-kpis watch output
  care-kpis watch output --once
  care-kpis watch output --json
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it once, as a JSON object.")
def watch(output: Path, once: bool, as_json: bool) -> None:
    """Shows what a stream does."""
    from pipelines.watch.terminal import print_json, print_once, show_live

    if as_json:
        print_json(output)
    elif once:
        print_once(output)
    else:
        show_live(output)
