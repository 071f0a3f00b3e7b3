"""`care-kpis daily`: the day's new files into the result, audited, published, reported and delivered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pipelines.daily.days import Inputs, days_between, days_to_do
from pipelines.daily.delivery import Message, NotDelivered, Target
from pipelines.daily.state import Day, State, load_state, locked
from pipelines.exits import NO_FILES, NOT_DELIVERED
from pipelines.options import BatchOptions
from pipelines.progress import Progress
from pipelines.report.period import first_instant
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.report.build import Written

LOOK_BACK = 7
"""Days before whose files are looked at again."""

_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class DeliveryFailed(UserError):
    """Everything was published and written, but a report did not reach its readers."""

    exit_code = NOT_DELIVERED


class NoFiles(UserError):
    """There are no files for the day, and that was asked to be an error."""

    exit_code = NO_FILES


@dataclass(frozen=True)
class DailyOptions:
    """The run of a day, as asked for.

    Attributes:
      batch: the run that takes the files; its inputs may name {date}.
      reports: folder for the reports.
      locale: of the reports.
      day: the day; None: yesterday, in the zone of the settings.
      backfill: first and last day to make up for; None: none.
      targets: ways to readers, by name.
      require_files: a day without files is an error.
    """

    batch: BatchOptions
    reports: Path
    locale: str
    day: date | None = None
    backfill: tuple[date, date] | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    require_files: bool = False


def run_daily(options: DailyOptions, tell: Callable[[str], None], progress: Progress, now: datetime) -> None:
    """Does what is to be done for a day, and for the days that were missed.

    Args:
      options: what is asked for.
      tell: is told what was done, a line at a time.
      progress: is told how far the run is.
      now: the present moment.

    Raises:
      UserError: wrong use or input, a failed audit, a held lock, no files (if asked), or a delivery that failed.
    """
    today = now.astimezone(ZoneInfo(options.batch.settings.timezone)).date()
    day = options.day or (options.backfill[1] if options.backfill else today - timedelta(days=1))
    if day >= today:
        raise UserError(f"Expected a day that is over, got {day} on {today}: name an earlier one, or leave it out.")
    with locked(options.batch.output):
        _Run(options, load_state(options.batch.output), tell, progress).go(day)


@dataclass
class _Run:
    options: DailyOptions
    state: State
    tell: Callable[[str], None]
    progress: Progress
    written: dict[date, Written] = field(default_factory=dict)

    def go(self, day: date) -> None:
        """Takes files, then reports on the days that have theirs, then delivers what is owed."""
        options = self.options
        days, given_up = days_to_do(day, self.state.last, self.state.missing)
        if options.backfill is not None:
            days, given_up = days_between(*options.backfill), []
        if given_up:
            first, last = given_up[0], given_up[-1]
            self.tell(f"Not caught up with: {first} to {last} is too long ago; --backfill {first}..{last} does it.")
            for one in given_up:
                self.state.days.pop(one, None)
        patterns = self._take(days)
        ready = self._ready(days, patterns)
        for one in days:
            if one not in ready:
                self.state.days.setdefault(one, Day())
                self.tell(f"No files for {one} ({', '.join(options.batch.inputs)}).")
        self.state.save(options.batch.output)
        for one in ready:
            self._report(one)
        self._deliver()
        if options.require_files and day not in ready:
            raise NoFiles(
                f"Expected files for {day}, but {', '.join(options.batch.inputs)} has none: see to the export."
            )

    def _take(self, days: Sequence[date]) -> dict[date, tuple[str, ...]]:
        """Adds what is new to the result.

        Returns:
          The patterns that have files, by day.
        """
        inputs = Inputs(self.options.batch.inputs)
        patterns = {day: found for day in days if (found := inputs.of(day))}
        earlier = [one for one in self._days_before(days[-1]) if one not in patterns] if inputs.is_dated else []
        looked_at = {**{day: found for day in earlier if (found := inputs.of(day))}, **patterns}
        if not looked_at:
            return {}
        zone = self.options.batch.settings.timezone
        over = (first_instant(max(looked_at) + timedelta(days=1), zone) - _EPOCH) // _MICROSECOND
        named = tuple(dict.fromkeys(pattern for found in looked_at.values() for pattern in found))
        batch = replace(self.options.batch, inputs=named, append=True, passed=over)
        # Beam takes a second to import.
        from pipelines.batch import run
        from pipelines.cycle import NothingNew

        summary = run(batch, self.progress)
        if isinstance(summary, NothingNew) and inputs.is_dated and self._is_before(over):
            # The files of quiet days may be the same, without any event: time has passed all the same.
            summary = run(replace(batch, settings=replace(batch.settings, as_of=over)), self.progress)
        if isinstance(summary, NothingNew):
            self.tell("Files    nothing was new: the result is as it was.")
            return patterns
        self.tell(
            f"Commit   {summary.commit_id:,}: {summary.rows_read_count:,} rows read, {summary.events_kept_count:,} "
            f"kept, {summary.dead_letter_count:,} dead letters, {summary.exact_duplicate_count:,} exact duplicates"
        )
        for note in summary.notes:
            self.tell(f"Note: {note}")
        return patterns

    def _days_before(self, last: date) -> list[date]:
        """The days shortly before that were done: another file of theirs may have come since."""
        if self.options.backfill is not None:
            return []
        return [day for day in days_between(last - timedelta(days=LOOK_BACK), last) if day in self.state.days]

    def _as_of(self) -> datetime | None:
        """The moment that the result is as of; None where there is no result, or no event."""
        from pipelines.report.warehouse import Filters, open_warehouse
        from sinks.output_folder import current_snapshot

        if current_snapshot(self.options.batch.output) is None:
            return None
        warehouse = open_warehouse(self.options.batch.output, Filters())
        warehouse.connection.close()
        return warehouse.run["as_of"]

    def _is_before(self, over: int) -> bool:
        """Whether the result is as of a moment before this one (microseconds), and nobody said as of which."""
        as_of = self._as_of()
        given = self.options.batch.settings.as_of
        return given is None and (as_of is None or (as_of - _EPOCH) // _MICROSECOND < over)

    def _ready(self, days: Sequence[date], patterns: Mapping[date, Sequence[str]]) -> list[date]:
        """The days that can be reported on: their files are in; where files are not named by day, time has passed."""
        if Inputs(self.options.batch.inputs).is_dated:
            return [day for day in days if day in patterns]
        as_of, zone = self._as_of(), self.options.batch.settings.timezone
        return [day for day in days if as_of is not None and as_of >= first_instant(day + timedelta(days=1), zone)]

    def _report(self, day: date) -> None:
        """Writes the report on a day; what is to be delivered of it is owed from then on."""
        from pipelines.report.build import write_report

        options = self.options
        self.progress.stage("Writing the report")
        written = write_report(options.batch.output, options.reports, day=day, locale=options.locale)
        self.written[day] = written
        known = self.state.days.setdefault(day, Day())
        # What a backfill makes up for is nobody's news.
        targets = () if options.backfill is not None else options.targets
        owed = [name for name in targets if name not in known.delivered and name not in known.owed]
        self.state.days[day] = replace(known, commit_id=written.commit_id, owed=[*known.owed, *owed])
        self.state.save(options.batch.output)
        self.tell(f"Report   {written.paths[-1]}")

    def _deliver(self) -> None:
        """Delivers what is owed, of earlier runs too; what was delivered is noted at once."""
        from pipelines.report.build import write_report

        options, failed = self.options, []
        for day, known in sorted(self.state.days.items()):
            targets = {name: options.targets[name] for name in known.owed if name in options.targets}
            if not targets:
                continue
            written = self.written.get(day) or write_report(
                options.batch.output, options.reports, day=day, locale=options.locale
            )
            title = f"{written.text.splitlines()[0]}: {day}"
            message = Message(day, title, written.text, written.paths, written.commit_id, written.audit)
            for name, target in targets.items():
                try:
                    target.send(message)
                except NotDelivered as error:
                    failed.append(f"{name.replace('_', ' ')} of {day}: {error}")
                    continue
                known.owed.remove(name)
                known.delivered.append(name)
                self.state.save(options.batch.output)
                self.tell(f"Sent     {day} by {name.replace('_', ' ')}")
        if failed:
            raise DeliveryFailed(
                f"Expected every report to reach its readers, but {'; '.join(failed)}. The result is published and the "
                "reports are written: run again to deliver what is owed."
            )
