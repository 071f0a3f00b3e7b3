"""`care-kpis stream`: live KPIs, cycle after cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import rich_click as click

from pipelines.commands.settings_options import config_option, resolve_settings, timezone_option
from pipelines.parameters import FORMATS, NamedPath

_HELP = """Keep the KPIs up to date while events come in.

Reads topics of Apache Kafka, or files that are dropped into a folder. What was read is committed every second or so;
readers find it in the output folder a little later. Stopped or killed, it goes on where the last commit was.

\b
Examples:
  care-kpis stream --bootstrap-servers localhost:9092 --topic care-events --output output
  care-kpis stream --bootstrap-servers b1:9093,b2:9093 --kafka-config tls.properties --topic '^care\\.' --output output
  care-kpis stream --input inbox/ --output output
  care-kpis stream --until-caught-up --bootstrap-servers localhost:9092 --topic care-events --output output
"""


class _Duration(click.ParamType):
    """A duration as people write it, in microseconds; 0 too."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pipelines.durations import parse_duration

        if isinstance(value, int):
            return value
        if value in ("0", "0s"):
            return 0
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error}, got {value!r}.", param, ctx)


def duration_option(name: str, default: str, sentence: str) -> Any:
    """An option that takes a duration, and gives it in microseconds."""
    return click.option(name, type=_Duration(), default=default, show_default=True, metavar="TIME", help=sentence)


@click.command(help=_HELP)
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="Addresses of Kafka, with commas between.")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="NAME",
    help="Topic of events; may be given several times, or once as a pattern that begins with ^.",
)
@click.option(
    "--kafka-config",
    type=NamedPath(path_type=Path),
    metavar="FILE",
    help="Further settings of librdkafka (TLS, SASL): NAME=VALUE lines.",
)
@click.option(
    "--on-lost-offsets",
    type=click.Choice(("fail", "earliest")),
    default="fail",
    show_default=True,
    help="Where messages that are due are gone: stop, or go on with the first that there is.",
)
@click.option("--changes-topic", metavar="NAME", help="Topic that gets each restated KPI window, as an upsert in JSON.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="FOLDER",
    help="Instead of topics: folders or patterns of files that come in; each is taken once, by content.",
)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), help="Format of the files.  [default: told by content]"
)
@click.option(
    "--output", type=NamedPath(path_type=Path, file_okay=False), required=True, help="Folder for the results."
)
@duration_option("--publish-every", "30s", "So often readers get what is new.")
@click.option("--until-caught-up", is_flag=True, help="End once all that was there is taken and published.")
@duration_option("--give-up-after", "0s", "End where Kafka does not answer for so long; 0s: never.")
@click.option(
    "--cycle-rows", type=click.IntRange(1), default=400_000, show_default=True, help="A cycle takes at most so many."
)
@config_option
@timezone_option
@duration_option("--allowed-lateness", "7d", "An event older than the watermark by more is late.")
@duration_option("--out-of-orderness", "10s", "The watermark lies so far behind the latest event of a partition.")
@duration_option("--idle-timeout", "60s", "A partition without events for so long does not hold the watermark up.")
@duration_option("--max-future", "1h", "An event further ahead of the clock is a dead letter.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Serve /metrics for Prometheus and /healthz at 127.0.0.1:PORT.",
)
@click.option(
    "--log",
    "log_form",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Lines of the log, on standard error: sentences, or JSON objects.",
)
@click.option("--verbose", is_flag=True, help="Log each cycle too.")
@click.option_panel(
    "Kafka", options=["--bootstrap-servers", "--topic", "--kafka-config", "--on-lost-offsets", "--changes-topic"]
)
@click.option_panel("Files", options=["--input", "--format", "--output"])
@click.option_panel("Life", options=["--publish-every", "--until-caught-up", "--give-up-after", "--cycle-rows"])
@click.option_panel(
    "Rules",
    options=[
        "--config",
        "--timezone",
        "--allowed-lateness",
        "--out-of-orderness",
        "--idle-timeout",
        "--max-future",
    ],
)
@click.option_panel("Watching", options=["--metrics-port", "--log", "--verbose"])
def stream(
    bootstrap_servers: str | None,
    topics: tuple[str, ...],
    kafka_config: Path | None,
    on_lost_offsets: Literal["fail", "earliest"],
    changes_topic: str | None,
    inputs: tuple[str, ...],
    file_format: str | None,
    output: Path,
    publish_every: int,
    until_caught_up: bool,
    give_up_after: int,
    cycle_rows: int,
    config: Path | None,
    timezone: str | None,
    allowed_lateness: int,
    out_of_orderness: int,
    idle_timeout: int,
    max_future: int,
    metrics_port: int | None,
    log_form: Literal["text", "json"],
    verbose: bool,
) -> None:
    """Runs a stream until it is stopped."""
    from transforms.errors import UserError
    from transforms.stream_settings import StreamSettings

    if bool(topics) == bool(inputs):
        raise UserError("Expected either --topic (with --bootstrap-servers) or --input, got both or neither.")
    settings = resolve_settings(config, timezone, None, None).settings
    if settings.as_of is not None:
        raise UserError(f"{config}: expected no as_of for a stream, whose as_of is its watermark: take it out.")
    rules = StreamSettings(allowed_lateness, out_of_orderness, idle_timeout, max_future)
    kafka = changes = None
    if topics or changes_topic is not None:
        from pipelines.kafka.settings import kafka_options

        kafka = kafka_options(bootstrap_servers, topics, kafka_config) if topics else None
        if changes_topic is not None:
            changes = kafka_options(bootstrap_servers, (changes_topic,), kafka_config)
    from pipelines.options import quieten_beam

    quieten_beam()
    from pipelines.stream.run import StreamOptions, run
    from pipelines.stream.watchers import watchers

    options = StreamOptions(
        output=output,
        settings=settings,
        stream=rules,
        kafka=kafka,
        inputs=inputs,
        format=file_format,
        on_lost_offsets=on_lost_offsets,
        rows_a_cycle=cycle_rows,
        seconds_between_publishes=publish_every / 1e6,
        until_caught_up=until_caught_up,
        seconds_for_broker=give_up_after / 1e6 or None,
        changes=changes,
    )
    source = ", ".join(topics or inputs) + (f" of Kafka at {bootstrap_servers}" if topics else "")
    with watchers(output, settings.timezone, source, log_form, verbose, metrics_port) as watcher:
        run(options, watcher)
