"""Options: what stands beside our own on the command line, and what a misspelt one is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.pipeline import Pipeline
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.cli import batch
from pipelines.options import (
    FLINK_JOB_OPTIONS,
    OWN_OPTIONS,
    BatchOptions,
    package_version,
    parse_beam_options,
    quieten_beam,
    source_settings,
    split_arguments,
)
from pipelines.settings import load_settings, settings_record
from transforms.adapters import ADAPTERS
from transforms.errors import UserError
from transforms.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "inputs", "beam_args"),
    [
        ((), (), ()),
        (("b.csv", "c.csv"), ("b.csv", "c.csv"), ()),
        (("--runner=X",), (), ("--runner=X",)),
        (("b.csv", "--runner", "X", "--streaming"), ("b.csv",), ("--runner", "X", "--streaming")),
    ],
)
def test_words_before_the_first_option_are_inputs(
    arguments: Sequence[str], inputs: Sequence[str], beam_args: Sequence[str]
) -> None:
    """A pattern that the shell took apart still gives all its files."""
    assert split_arguments(arguments) == (inputs, beam_args)


def test_without_options_it_is_the_fn_api_runner_in_memory() -> None:
    """The runner is always named: Beam's own choice depends on the machine."""
    options = parse_beam_options([])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(SetupOptions).save_main_session is False
    direct = options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("in_memory", 1)
    assert isinstance(Pipeline(options=options).runner, FnApiRunner)


def test_beams_options_are_taken_as_typed() -> None:
    """Values apart or behind =, flags, options of Flink's job server, and the last of two wins."""
    options = parse_beam_options(
        "--runner=FlinkRunner --flink_master localhost:8081 --parallelism=2 --save_main_session "
        "--checkpointing_interval=2000 --externalized_checkpoints_enabled --runner=PortableRunner".split()
    )
    assert options.view_as(StandardOptions).runner == "PortableRunner"
    assert options.view_as(SetupOptions).save_main_session is True
    flink = options.view_as(FlinkRunnerOptions)
    assert (flink.flink_master, flink.parallelism) == ("localhost:8081", 2)
    kept = options.get_all_options(drop_default=True, retain_unknown_options=True)
    assert kept["checkpointing_interval"] == "2000"
    assert kept["externalized_checkpoints_enabled"] is True


@pytest.mark.parametrize("runner", ["FnApiRunner", "fnapirunner", "flink", "some.module.Runner"])
def test_runners_that_beam_would_find(runner: str) -> None:
    """Beam takes a name in any case, without its ending, or a dotted path."""
    assert parse_beam_options([f"--runner={runner}"]).view_as(StandardOptions).runner == runner


@pytest.mark.parametrize(
    ("beam_args", "told"),
    [
        (["--flnk_master=x"], "Unknown option --flnk_master; did you mean --flink_master?"),
        (["--Flink-Master", "x"], "Unknown option --Flink-Master; did you mean --flink_master?"),
        (["--checkpoint_interval=1"], "Unknown option --checkpoint_interval; did you mean --checkpointing_interval?"),
        (["--timezon", "UTC"], "Unknown option --timezon; did you mean --timezone?"),
        (["--as_of=2026-01-01T00:00:00Z"], "Unknown option --as_of; did you mean --as-of?"),
        (["--qqqq"], "Unknown option --qqqq: neither care-kpis nor Beam has it. See care-kpis batch --help"),
        (["-x"], "Unknown option -x: neither care-kpis nor Beam has it."),
        (["--streaming", "b.csv"], "Expected an option, got 'b.csv'; if it is an input, put it right behind --input"),
        (["--runner=Flunk"], "got 'Flunk'; did you mean FlinkRunner?"),
        (["--runner="], "--runner: expected one of "),
        (["--runner"], "Beam option: argument --runner: expected one argument"),
        (["--parallelism=two"], "Beam option: argument --parallelism: invalid int value: 'two'"),
        (["--flink_version=0.1"], "Beam option: argument --flink_version: invalid choice: '0.1'"),
    ],
)
def test_wrong_options_are_errors_with_a_suggestion(beam_args: list[str], told: str) -> None:
    """Beam itself would ignore what it does not know."""
    with pytest.raises(UserError) as raised:
        parse_beam_options(beam_args)
    assert told in str(raised.value)


def test_option_classes_of_the_users_own_count() -> None:
    """An option that a loaded module declares is known."""

    class HouseOptions(PipelineOptions):
        """Options of a house."""

        @classmethod
        def _add_argparse_args(cls, parser) -> None:  # type: ignore[no-untyped-def]
            parser.add_argument("--house_option")
            parser.add_value_provider_argument("--house_value")

    options = parse_beam_options(["--house_option=3", "--house_value=4"])
    assert options.view_as(HouseOptions).house_option == "3"


def test_own_options_are_those_of_the_command() -> None:
    """The names that suggestions come from are the names that the command has, and none is Beam's."""
    assert {name for option in batch.params for name in option.opts} == set(OWN_OPTIONS)
    beams = PipelineOptions([]).get_all_options()
    assert not {name.strip("-").replace("-", "_") for name in OWN_OPTIONS} & set(beams)


def test_flink_job_options_are_those_that_beam_does_not_know() -> None:
    """What Beam's Python side declares itself need not be in our list."""
    assert not set(FLINK_JOB_OPTIONS) & set(PipelineOptions([]).get_all_options())
    assert sorted(FLINK_JOB_OPTIONS) == list(FLINK_JOB_OPTIONS)


def test_beams_warning_about_bigquery_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Only that one."""
    quieten_beam()
    logging.warning("apitools not found, and more")
    logging.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


@pytest.mark.parametrize(("source", "hint"), [("nobody", "."), ("Twsc", "; did you mean twcs?")])
def test_an_unknown_source_is_an_error(source: str, hint: str) -> None:
    """The message has the sources that there are."""
    with pytest.raises(UserError) as raised:
        source_settings(source)
    told = f"--source: expected one of {', '.join(sorted(ADAPTERS))}, or no --source for care events, got {source!r}"
    assert str(raised.value) == told + hint


def test_care_events_imply_no_settings() -> None:
    """The contract's own format leaves all defaults as they are."""
    assert source_settings(None) == {}


@pytest.mark.parametrize("source", ADAPTERS)
def test_the_settings_of_each_source_are_valid(source: str) -> None:
    """What an adapter says of its source has the keys of care.toml, and comes out as it went in."""
    default = settings_record(load_settings(adapter_defaults=source_settings(source)).settings)["default"]
    assert {key: default[key] for key in ADAPTERS[source].settings} == ADAPTERS[source].settings


def test_batch_options_have_the_commands_defaults() -> None:
    """A run from Python and one from the command line start alike."""
    options = BatchOptions(("a",), Path("output"), Settings())
    default = next(option.default for option in batch.params if option.name == "max_dead_letter_rate")
    assert options.max_dead_letter_rate == default
    assert (options.format, options.source, options.beam_args) == (None, None, ())


def test_the_version_is_told() -> None:
    """A version, or the word that says there is none."""
    assert package_version() == "unknown" or package_version()[0].isdigit()
