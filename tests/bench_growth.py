"""What an append costs with a long history, and what more events than fit into memory cost.

    python tests/bench_growth.py                         about five minutes on two cores
    python tests/bench_growth.py --large 40000000        with a run of 40 million events, some minutes more

Prints wall time, peak memory and the files that were written. Never asserts a time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_batch import EVENTS, ROOT, SETTINGS, Measured, care_kpis, generate

NEW_EVENTS = 20_000
GIANT = 1_000_000
"""Events of the one conversation of the skewed world."""


def append(inputs: Path, output: Path, config: Path) -> Measured:
    """An appending run."""
    return care_kpis("batch", "--append", "--input", inputs, "--output", output, "--config", config)


def took(said: str) -> float:
    """Seconds that the run says it took, after start-up."""
    return float(re.search(r"Took\s+([\d.]+) s", said).group(1))  # type: ignore[union-attr]


def parquet_files(output: Path) -> dict[str, int]:
    """Parquet files of the result by path, and the file that each is on disk."""
    root = (output / ".current").resolve()
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*.parquet")}


def one_day(folder: Path, day: str) -> Path:
    """The new events: one day right after the history."""
    target = folder / f"day-{day}"
    if not target.exists():
        care_kpis("generate", "--output", target, "--events", NEW_EVENTS, "--days", 1, "--start", day, "--seed", 77)
    return target


def skewed(folder: Path) -> Path:
    """Two million events, half of them in one conversation and nine tenths in one account."""
    target = folder / "skewed"
    if not target.exists():
        files = sorted(generate(folder, 2 * GIANT).glob("*.parquet"))
        events = pa.concat_tables([pq.read_table(path) for path in files])
        rng = np.random.default_rng(1)
        in_giant = np.arange(events.num_rows) < GIANT
        account = np.where(in_giant | (rng.random(events.num_rows) < 0.8), "giant", "small").astype(object)
        thread = np.where(in_giant, "giant", events["conversation_id"].to_numpy(zero_copy_only=False)).astype(object)
        for name, values in (("account_id", account), ("conversation_id", thread)):
            events = events.set_column(events.schema.get_field_index(name), name, pa.array(values, pa.string()))
        target.mkdir()
        pq.write_table(events, target / "events.parquet", row_group_size=131_072)
    return target


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the history")
    parser.add_argument("--large", type=int, default=0, help="events of a run that is larger than memory")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the events are kept")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "care.toml"
    config.write_text(SETTINGS, encoding="utf-8")
    output = folder / "grown"
    shutil.rmtree(output, ignore_errors=True)

    first = append(generate(folder, given.events), output, config)
    print(f"history of {given.events:,} events: {first.wall:.1f} s, peak {first.peak:.2f} GiB", flush=True)
    # The history is on disk by the time the next day comes.
    os.sync()
    for day in ("2026-04-01", "2026-04-02", "2026-04-03"):
        before = parquet_files(output)
        cost = append(one_day(folder, day), output, config)
        after = parquet_files(output)
        written = sum(before.get(path) != inode for path, inode in after.items())
        print(
            f"append of {NEW_EVENTS:,} events: {took(cost.said):.1f} s after start-up, {cost.wall:.1f} s in all, ",
            end="",
        )
        print(f"peak {cost.peak:.2f} GiB, {written} of {len(after)} Parquet files written", flush=True)
    packed = care_kpis("compact", output)
    print(f"compact: {packed.wall:.1f} s, peak {packed.peak:.2f} GiB")
    checked = care_kpis("check", output)
    print(f"check: {checked.wall:.1f} s, peak {checked.peak:.2f} GiB", flush=True)
    shutil.rmtree(output)

    giant = care_kpis("batch", "--input", skewed(folder), "--output", output, "--config", config)
    print(f"skewed, {2 * GIANT:,} events, half in one conversation: {giant.wall:.1f} s, peak {giant.peak:.2f} GiB")
    shutil.rmtree(output)
    if given.large:
        cost = care_kpis("batch", "--input", generate(folder, given.large), "--output", output, "--config", config)
        each = cost.wall / given.large * 1e6
        print(f"{given.large:,} events: {cost.wall:.1f} s, {each:.2f} µs an event, peak {cost.peak:.2f} GiB")
        left = [name for name in os.listdir(output / ".snapshots") if name.endswith(".tmp")]
        print(f"folders of unfinished work left: {len(left)}")
        shutil.rmtree(output)


if __name__ == "__main__":
    main()
