"""What an audit costs, beside the run whose result it audits.

    python tests/bench_audit.py                        about two minutes on two cores
    python tests/bench_audit.py --events 14500000      1.6 million conversations

Prints wall time, processor time and peak memory. Never asserts a time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import duckdb
from bench_batch import EVENTS, ROOT, SETTINGS, Measured, care_kpis, generate

FEW = 20_000


def show(what: str, cost: Measured) -> None:
    """One line."""
    print(f"  {what:<18}{cost.wall:5.1f} s, CPU {cost.cpu:5.1f} s, peak {cost.peak:.2f} GiB", flush=True)


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the larger result")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the events are kept")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config, output = folder / "care.toml", folder / "audited"
    config.write_text(SETTINGS, encoding="utf-8")
    for events in (FEW, given.events):
        shutil.rmtree(output, ignore_errors=True)
        arguments = ("batch", "--input", generate(folder, events), "--output", output, "--config", config)
        plain = care_kpis(*arguments)
        with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
            found = warehouse.sql("SELECT count(*) FROM conversations").fetchall()[0][0]
        print(f"{events:,} events, {found:,} conversations")
        show("batch", plain)
        show("batch --audit", care_kpis(*arguments, "--audit"))
        show("audit", care_kpis("audit", output))
        show("check", care_kpis("check", output))
    shutil.rmtree(output)


if __name__ == "__main__":
    main()
