"""How fast the batch run is, in whole processes from start to published tables.

    make bench                                 everything, about ten minutes on two cores
    python tests/bench_batch.py --rounds 1 --events 3000000

Prints the machine, the versions, and every figure as a ratio measured in the same run: against hand-written DuckDB SQL
that makes the same tables from the same files, and against the same logic row at a time in Beam. Never asserts a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample"
EVENTS = 11_270_000
CURVE = (1_000_000, 3_000_000)
ROWS_SAMPLE = 200_000
LIBRARIES = ("apache-beam", "pyarrow", "duckdb", "numpy", "pandas")
SETTINGS = """timezone = "Europe/Berlin"
[channel.whatsapp]
split_threads = true
[channel.facebook]
split_threads = true
"""


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds, CPU seconds, peak resident memory in GiB, what it printed."""

    wall: float
    cpu: float
    peak: float
    said: str


def measure(*command: object) -> Measured:
    """Runs a command to its end."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{text}")
    return Measured(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, text)


def care_kpis(*words: object) -> Measured:
    """One command of the project in a process of its own."""
    return measure(sys.executable, "-c", "import sys; from pipelines.cli import command; sys.exit(command())", *words)


def batch(inputs: Path, output: Path, config: Path) -> Measured:
    """The project's own command, into an empty folder."""
    shutil.rmtree(output, ignore_errors=True)
    return care_kpis("batch", "--input", inputs, "--output", output, "--config", config)


def duckdb_sql(inputs: Path, output: Path) -> Measured:
    """The same tables by SQL, into an empty folder."""
    shutil.rmtree(output, ignore_errors=True)
    return measure(sys.executable, ROOT / "tests" / "bench_duckdb.py", inputs, output)


def generate(folder: Path, events: int) -> Path:
    """The events, made once."""
    target = folder / f"events-{events}"
    if not target.exists():
        code = "from fixtures.generate import main; import sys; sys.exit(main())"
        files = max(1, events // 1_400_000)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        made = measure(sys.executable, "-c", code, partial, "--events", events, "--seed", 1, "--files", files)
        partial.rename(target)
        print(f"generated {events:,} events in {made.wall:.1f} s, {made.peak:.2f} GiB", flush=True)
    return target


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{middle(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the main comparison")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs, in turn")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the events are kept")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "care.toml"
    config.write_text(SETTINGS, encoding="utf-8")
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"{platform.machine()}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in LIBRARIES), flush=True)

    inputs = generate(folder, given.events)
    batch(inputs, folder / "ours", config)
    ours, theirs = [], []
    for _ in range(given.rounds):
        ours.append(batch(inputs, folder / "ours", config))
        theirs.append(duckdb_sql(inputs, folder / "theirs"))
    ratios = [a.wall / b.wall for a, b in zip(ours, theirs, strict=True)]
    print(f"\n{given.events:,} events, {given.rounds} rounds in turn")
    for name, side in (("batch run", ours), ("DuckDB SQL", theirs)):
        peak, cpu = max(m.peak for m in side), middle([m.cpu for m in side])
        rate = given.events / middle([m.wall for m in side]) / 1e6
        wall = spread([m.wall for m in side])
        print(f"  {name:11s} {wall}, CPU {cpu:.1f} s, peak {peak:.2f} GiB, {rate:.2f} M events/s")
    print(f"  ratio       {middle(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the wall time of DuckDB SQL")
    stages = re.search(r"Took .*?\((.*?)\)", re.sub(r"\s+", " ", ours[-1].said))
    print(f"  stages      {stages.group(1) if stages else '?'}")

    print("\nrows and time")
    for events in (*(n for n in CURVE if n < given.events), given.events):
        if events == given.events:
            wall, peak = middle([m.wall for m in ours]), max(m.peak for m in ours)
        else:
            some = [batch(generate(folder, events), folder / "ours", config) for _ in range(given.rounds)]
            wall, peak = middle([m.wall for m in some]), max(m.peak for m in some)
        print(f"  {events:>12,} events  {wall:6.1f} s  {wall / events * 1e6:5.2f} µs an event  {peak:.2f} GiB")

    few = generate(folder, ROWS_SAMPLE)
    row = measure(sys.executable, ROOT / "tests" / "bench_rows.py", few, folder / "rows")
    seconds = float(re.search(r"seconds: ([\d.]+)", row.said).group(1))  # type: ignore[union-attr]
    each, own = seconds / ROWS_SAMPLE * 1e6, middle([m.wall for m in ours]) / given.events * 1e6
    print(f"\nrow at a time in Beam, {ROWS_SAMPLE:,} events: {each:.0f} µs an event, batch run {own:.2f}", end="")
    print(f" ({each / own:.0f} times faster)")

    small = [batch(SAMPLE / "events.ndjson", folder / "small", SAMPLE / "care.toml") for _ in range(3)]
    print(f"sample of 2,000 events, from the command to the printed table: {spread([m.wall for m in small])}")
    shutil.rmtree(folder / "ours", ignore_errors=True)
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    print(f"peak of the benchmark itself {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
