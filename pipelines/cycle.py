"""A cycle: rows to read, and the result, if any, that they are added to. Every run is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.growth import Plan, State, before_of, check_settings, load_state, plan_files
from pipelines.options import BatchOptions
from pipelines.sources.files import InputFile
from pipelines.work_folder import Counts
from sinks.publish import Snapshot
from transforms.before import Before
from transforms.errors import UserError
from transforms.settings import Settings

ROWS_A_SHARD = 1_400_000
"""Rows that are paired together in memory; two shards are under way at a time."""

FEW_ROWS = 200_000
"""Fewer rows than this are one shard."""

_MANY_KEYS = 20
"""New rows look up at most about so many old ones each; where the history is shorter, all of it."""


@dataclass(frozen=True)
class NothingNew:
    """An appending run that found nothing to add.

    Attributes:
      notes: sentences for the user.
    """

    notes: tuple[str, ...]


@dataclass(frozen=True)
class Growth:
    """What an appending run begins with.

    Attributes:
      plan: what of the files named is to be read.
      state: what the result before remembers; None: there is none.
      before: the result before, as the transforms see it.
    """

    plan: Plan
    state: State | None
    before: Before | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the files named."""
        notes = []
        if self.plan.taken_already:
            count = len(self.plan.taken_already)
            shown = ", ".join(self.plan.taken_already[:3]) + (", …" if count > 3 else "")
            notes.append(f"{count:,} of the files were taken already (by content): {shown}.")
        if self.plan.grown:
            notes.append(
                f"these files have grown since they were taken and were left alone: {', '.join(self.plan.grown)}; "
                "--grown-files=reread takes their new rows."
            )
        return tuple(notes)


def begin_growth(options: BatchOptions, snapshot: Snapshot, files: Sequence[InputFile]) -> Growth | NothingNew:
    """Looks what an appending run has to do.

    Raises:
      UserError: the result in the output folder cannot be added to.
    """
    if options.source is not None:
        raise UserError(
            f"Expected care events for --append, got --source {options.source}: its threads may reach from one file "
            "into another, so give all its files to a run without --append."
        )
    state = load_state(snapshot.previous, options.output)
    plan = plan_files(files, state, snapshot.commit_id, options.grown_files)
    if state is None:
        return Growth(plan, None, None)
    if state.stream is not None:
        raise UserError(
            f"Expected a result of files in {options.output}, but it is a stream's: go on with care-kpis stream, which "
            "takes files too (--input), or append into another output folder."
        )
    check_settings(state, options.settings)
    assert snapshot.previous is not None
    snapshot.require_previous_files()
    growth = Growth(plan, state, before_of(snapshot.previous, state, frozenset(t.source for t in plan.replaced)))
    given = options.settings.as_of
    if not plan.files and (given is None or given == state.as_of):
        return NothingNew((*growth.notes, "nothing was new: the result is as it was."))
    return growth


@dataclass(frozen=True)
class Cycle:
    """One try at a cycle.

    Attributes:
      options: of the run.
      settings: of the run; as_of may have been found by a try before.
      files: what to read.
      rows: about how many rows they have.
      growth: what is kept and added to; None: the result is made anew, and none can be added to it.
      everything: every key is looked at.
    """

    options: BatchOptions
    settings: Settings
    files: Sequence[InputFile]
    rows: int
    growth: Growth | None = None
    everything: bool = False

    @property
    def state(self) -> State | None:
        """What the result before remembers."""
        return None if self.growth is None else self.growth.state

    @property
    def passed(self) -> int | None:
        """The moment that time has passed at least, microseconds: as asked, but not before the as_of there was."""
        if self.options.passed is None:
            return None
        return latest_of([self.options.passed, None if self.state is None else self.state.as_of])

    @property
    def before(self) -> Before | None:
        """The result before, as the transforms see it."""
        before = None if self.growth is None else self.growth.before
        if before is None or self.state is None:
            return None
        # Where as_of may go back (it was given before, and is not any more), time undoes what it did.
        given, was = self.settings.as_of, self.state.as_of
        back = given < was if given is not None and was is not None else was != self.state.latest
        goes_back = was is not None and back and (given is not None or self.passed is None)
        return replace(before, everything=self.everything or goes_back)

    @property
    def shards(self) -> int:
        """Number of shards."""
        rows = self.rows
        if self.state is not None:
            old = self.state.row_count
            rows += old if self.before is not None and self.before.everything else min(old, _MANY_KEYS * rows)
        return shard_count(rows)

    def as_of(self, latest_read: int | None) -> int | None:
        """The moment up to which time has passed, given the latest occurred_at of the rows read (microseconds)."""
        if self.settings.as_of is not None:
            return self.settings.as_of
        return latest_of([latest_read, None if self.state is None else self.state.latest, self.passed])

    def latest(self, counts: Counts) -> int | None:
        """The latest occurred_at of all events kept, microseconds; None where there is none.

        Raises:
          LookupError: the latest one is no more, and only a look at every key tells which one it is now.
        """
        was = None if self.state is None else self.state.latest
        if was is None or self.before is None or self.before.everything:
            return counts.latest_kept
        if counts.was_latest == was and (counts.latest_kept is None or counts.latest_kept < was):
            raise LookupError("the latest event was replaced")
        return latest_of([was, counts.latest_kept])

    def again(self, counts: Counts) -> Cycle | None:
        """The next try, where this one took the wrong as_of: the latest event was a copy that lost to an older one."""
        try:
            latest = self.latest(counts)
        except LookupError:
            return replace(self, everything=True)
        as_of = latest_of([latest, self.passed])
        if self.settings.as_of is not None or as_of == self.as_of(counts.latest_read):
            return None
        return replace(self, settings=replace(self.settings, as_of=as_of))


def shard_count(rows: int) -> int:
    """Number of shards: one for little, else an even number, for two are under way at a time."""
    return 1 if rows < FEW_ROWS else 2 * -(-rows // (2 * ROWS_A_SHARD))


def latest_of(times: Iterable[int | None]) -> int | None:
    """The latest of some times; None where there is none."""
    return max((time for time in times if time is not None), default=None)
