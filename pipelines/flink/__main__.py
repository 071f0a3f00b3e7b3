"""`python -m pipelines.flink --input … --output …`: a batch run on a Flink cluster that lives as long as the run."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.cli import INTERRUPTED
from pipelines.cli import main as care_kpis
from pipelines.flink.cluster import TASK_MANAGER_HEAP, run_cluster
from pipelines.flink.jars import CACHE, FLINK_VERSION, fetch_jar, jar_in
from transforms.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches Flink, starts a cluster, runs `care-kpis batch` on it and ends the cluster.

    Args:
      arguments: our options, and those of `care-kpis batch`; None takes them from the process.

    Returns:
      Exit code, see pipelines.cli.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.flink",
        description="Runs care-kpis batch on a Flink cluster of its own; takes the options of care-kpis batch too.",
        allow_abbrev=False,
    )
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="Where Flink is kept.")
    parser.add_argument("--slots", type=int, default=2, help="Tasks that run at a time (default: %(default)s).")
    parser.add_argument("--heap", type=int, default=TASK_MANAGER_HEAP, help="MiB of the task manager's heap.")
    parser.add_argument("--stay", action="store_true", help="Keep the cluster after the run, until Ctrl-C.")
    ours, batch = parser.parse_known_args(arguments)
    # So that the cluster is ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not jar_in(ours.cache).exists():
            say(f"Fetching Flink {FLINK_VERSION} with Maven into {ours.cache} (once, 160 MB, about a minute)")
        jar = fetch_jar(ours.cache)
        began = time.monotonic()
        with run_cluster(jar, ours.slots, ours.heap) as cluster:
            say(f"Cluster  http://{cluster.master} (web UI), {ours.slots} slots, {time.monotonic() - began:.1f} s")
            code = care_kpis(["batch", *batch, *cluster.beam_args])
            if ours.stay and code != INTERRUPTED:
                say(f"Cluster  stays until Ctrl-C; runs on it take {' '.join(cluster.beam_args)}")
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
    except UserError as error:
        say(f"Error: {error}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    say("Cluster  ended")
    return code


def say(line: str) -> None:
    """Tells the person at the terminal; standard output is the summary's."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
