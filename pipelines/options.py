"""What a batch run is asked to do, and the Apache Beam options that may stand beside our own.

Beam is imported inside the functions that need it (it takes a second), so that `care-kpis --help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from transforms.errors import UserError
from transforms.settings import Settings

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

DEFAULT_RUNNER = "FnApiRunner"
"""Always named: Beam's own default picks a runner by what it finds on the machine, and may try to download one."""

OWN_OPTIONS = (
    "--input",
    "--output",
    "--config",
    "--timezone",
    "--as-of",
    "--format",
    "--source",
    "--max-dead-letter-rate",
    "--append",
    "--grown-files",
    "--audit",
)
"""Options of `care-kpis batch`, for suggestions."""

FLINK_JOB_OPTIONS = (
    "allow_non_restored_state",
    "auto_balance_write_files_sharding_enabled",
    "auto_watermark_interval",
    "checkpoint_timeout_millis",
    "checkpointing_interval",
    "checkpointing_mode",
    "disable_metrics",
    "execution_mode_for_batch",
    "execution_retry_delay",
    "externalized_checkpoints_enabled",
    "fail_on_checkpointing_errors",
    "faster_copy",
    "finish_bundle_before_checkpointing",
    "flink_conf_dir",
    "latency_tracking_interval",
    "max_bundle_size",
    "max_bundle_time_mills",
    "min_pause_between_checkpoints",
    "num_concurrent_checkpoints",
    "number_of_execution_retries",
    "object_reuse",
    "operator_chaining",
    "re_iterable_group_by_key_result",
    "report_checkpoint_duration",
    "retain_externalized_checkpoints_on_cancellation",
    "savepoint_path",
    "shutdown_sources_after_idle_ms",
    "state_backend",
    "state_backend_factory",
    "state_backend_storage_path",
)
"""Options of Flink's job server: Beam's Python side learns them from the server only once it runs.

From Beam's own table of Flink options, less those that its Python side knows (a server may know more).
"""


@dataclass(frozen=True)
class BatchOptions:
    """One batch run, as asked for.

    Attributes:
      inputs: files, folders or glob patterns, in the order given.
      output: folder that the results go to.
      settings: settings in force.
      format: file format (ndjson, csv, parquet, arrow); None: told by content and name.
      source: whose event format it is (an adapter's name); None: the contract's own.
      max_dead_letter_rate: share of the rows read, 0 to 1, above which the run fails.
      append: add what is new to the result in the output folder, instead of making it anew.
      grown_files: what an appending run does with a file that has grown since it was taken.
      beam_args: Beam's options as they were typed, for parse_beam_options.
      audit: audit the result before it is published.
      passed: moment that time has passed at least where there are new files, microseconds since the epoch.
    """

    inputs: tuple[str, ...]
    output: Path
    settings: Settings
    format: str | None = None
    source: str | None = None
    max_dead_letter_rate: float = 0.10
    append: bool = False
    grown_files: Literal["leave", "reread"] = "leave"
    beam_args: tuple[str, ...] = ()
    audit: bool = False
    passed: int | None = None


def package_version() -> str:
    """Version of this package as installed; "unknown" in a copy that is not installed."""
    try:
        return importlib.metadata.version("care-kpis")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def source_settings(source: str | None) -> Mapping[str, Any]:
    """What a source implies, in the shape of care.toml; nothing for the contract's own events.

    Args:
      source: an adapter's name, or None.

    Raises:
      UserError: there is no adapter of this name.
    """
    if source is None:
        return {}
    from transforms.adapters import ADAPTERS

    if source not in ADAPTERS:
        hint = _did_you_mean(source.lower(), {name: name for name in ADAPTERS}) or "."
        allowed = ", ".join(sorted(ADAPTERS))
        raise UserError(f"--source: expected one of {allowed}, or no --source for care events, got {source!r}{hint}")
    return {"default": ADAPTERS[source].settings}


def source_notes(source: str | None) -> list[str]:
    """What a reader of the results should keep in mind about the source."""
    if source is None:
        return []
    from transforms.adapters import ADAPTERS

    return [ADAPTERS[source].description]


def split_arguments(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands on the command line beside our own options: further inputs, then Beam's options.

    A shell turns `--input data/*.ndjson` into `--input data/a.ndjson data/b.ndjson`, so words in front of the first
    option that is not ours are inputs too.

    Args:
      arguments: what is left once our own options are taken out, in order.

    Returns:
      Inputs, and Beam's options (not checked yet).
    """
    inputs = tuple(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    return inputs, tuple(arguments[len(inputs) :])


def parse_beam_options(args: Sequence[str]) -> PipelineOptions:
    """Beam's options, checked; unless said otherwise FnApiRunner in memory, in one process, without the main session.

    Args:
      args: options as typed, such as ["--runner=FlinkRunner", "--flink_master", "localhost:8081"].

    Raises:
      UserError: an option that neither Beam nor care-kpis knows, a value that Beam refuses, an unknown runner.
    """
    quieten_beam()
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    parser = _beam_parser(PipelineOptions)
    known, unknown = parser.parse_known_args(list(args))
    if unknown:
        raise _unknown_argument(unknown, [option for action in parser._actions for option in action.option_strings])
    if known.runner is not None:
        _check_runner(known.runner, StandardOptions.KNOWN_RUNNER_NAMES)
    defaults = [
        f"--runner={DEFAULT_RUNNER}",
        "--no_save_main_session",
        "--direct_running_mode=in_memory",
        "--direct_num_workers=1",
    ]
    # The last one of an option wins.
    return PipelineOptions([*defaults, *args])


def quieten_beam() -> None:
    """Keeps Beam from warning that Google's BigQuery client is missing, and from logging the tracebacks of failures.

    Nothing here uses BigQuery, and what fails is raised and said once.
    """
    logging.getLogger().addFilter(_is_worth_saying)
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    # (A cluster's errors come here from portable_runner, which raises the last one too.)
    return not str(record.msg).startswith("apitools not found") and record.module != "portable_runner"


class _BeamOptionParser(argparse.ArgumentParser):
    """Takes what Beam's option classes declare; a value that is refused is the user's error, not the end."""

    def add_value_provider_argument(self, *names: str, **declared: Any) -> None:
        """Beam's way to declare an option whose value may come late."""
        self.add_argument(*names, **declared)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"Beam option: {message}; see Beam's pipeline options for what is allowed.")


def _beam_parser(root: type[PipelineOptions]) -> _BeamOptionParser:
    """A parser of all options that Beam knows now (option classes count once their module is imported)."""
    # A module that was loaded twice (as __main__ too) declares its options twice.
    parser = _BeamOptionParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    pending: list[Any] = root.__subclasses__()
    seen: set[Any] = set()
    while pending:
        options = pending.pop(0)
        if options not in seen:
            seen.add(options)
            pending += options.__subclasses__()
            if "_add_argparse_args" in vars(options):
                options._add_argparse_args(parser)
    for name in FLINK_JOB_OPTIONS:
        if f"--{name}" not in parser._option_string_actions:
            # Flags and valued options alike: only the job server knows which is which.
            parser.add_argument(f"--{name}", nargs="?")
    return parser


def _check_runner(runner: str, known: Sequence[str]) -> None:
    names = {name.lower(): name for name in known}
    names |= {name.removesuffix("runner"): full for name, full in names.items()}
    if "." in runner or runner.lower() in names:
        return
    raise UserError(
        f"--runner: expected one of {', '.join(known)}, or the dotted path of a class, "
        f"got {runner!r}{_did_you_mean(runner.lower(), names) or '.'}"
    )


def _unknown_argument(unknown: Sequence[str], beam_options: Sequence[str]) -> UserError:
    """The error for what neither Beam nor we know: the first option of it, else the first word."""
    for argument in unknown:
        if argument.startswith("-"):
            option = argument.partition("=")[0]
            # "--as_of" and "--Flink-Master" are one dash or one capital away from what was meant.
            spellings = {_bare(name): name for name in (*beam_options, *OWN_OPTIONS)}
            hint = _did_you_mean(_bare(option), spellings)
            return UserError(
                f"Unknown option {option}{hint or ': neither care-kpis nor Beam has it.'} "
                "See care-kpis batch --help for what there is."
            )
    return UserError(
        f"Expected an option, got {unknown[0]!r}; if it is an input, put it right behind --input, "
        "or put a pattern in quotes: --input 'data/*.ndjson'."
    )


def _bare(option: str) -> str:
    return option.strip("-").replace("-", "_").lower()


def _did_you_mean(word: str, spellings: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(word, spellings, n=1)
    return f"; did you mean {spellings[close[0]]}?" if close else ""
