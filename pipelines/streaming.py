"""`python -m pipelines.streaming`: one unbounded Beam graph from topics of Kafka to change files, for clusters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from pipelines.commands.settings_options import config_option, resolve_settings, timezone_option
from pipelines.commands.stream import duration_option
from pipelines.parameters import NamedPath
from transforms.errors import UserError
from transforms.stream_settings import StreamSettings

_HELP = """Keep the KPIs of a stream up to date on a cluster.

Reads topics of Apache Kafka in one unbounded Beam graph and writes change files, which `care-kpis load` merges into a
result with a DuckDB file. All other options are Beam's: name the runner. Where one machine is enough,
`care-kpis stream` is simpler. See docs/streaming-cluster.md for what is needed and what does not work.

\b
Example:
  python -m pipelines.streaming --bootstrap-servers localhost:9092 --topic care-events --output /mnt/share/changes \\
      --runner=PrismRunner
  care-kpis load /mnt/share/changes --output live
"""


@click.command(help=_HELP, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option(
    "--bootstrap-servers", metavar="HOST:PORT", required=True, help="Addresses of Kafka, with commas between."
)
@click.option(
    "--topic", "topics", multiple=True, required=True, metavar="NAME", help="Topic; may be given several times."
)
@click.option("--kafka-config", type=NamedPath(path_type=Path), metavar="FILE", help="Further settings of librdkafka.")
@click.option("--output", required=True, metavar="URL", help="Where change files go; every worker has to see it.")
@config_option
@timezone_option
@click.option(
    "--buckets",
    type=click.IntRange(1, 65_536),
    default=256,
    show_default=True,
    help="Parts that open conversations are kept in; a firing reads one. The same as long as the stream goes on.",
)
@click.option("--shards", type=click.IntRange(1), default=1, show_default=True, help="Writers of change files.")
@click.option("--poll-rows", type=click.IntRange(1), default=20_000, show_default=True, help="Messages of one poll.")
@duration_option("--pair-every", "1s", "So long rows wait for others before they are paired.")
@duration_option("--write-every", "10s", "So long changes wait for others before they are written.")
@duration_option("--allowed-lateness", "7d", "An event older than the watermark by more is late.")
@duration_option("--out-of-orderness", "10s", "The watermark lies so far behind the latest event of a partition.")
@duration_option("--idle-timeout", "60s", "A partition without events for so long does not hold the watermark up.")
@duration_option("--max-future", "1h", "An event further ahead of the clock is a dead letter.")
@click.pass_context
def streaming(
    context: click.Context,
    bootstrap_servers: str,
    topics: tuple[str, ...],
    kafka_config: Path | None,
    output: str,
    config: Path | None,
    timezone: str | None,
    buckets: int,
    shards: int,
    poll_rows: int,
    pair_every: int,
    write_every: int,
    allowed_lateness: int,
    out_of_orderness: int,
    idle_timeout: int,
    max_future: int,
) -> None:
    """Runs the graph until it is stopped."""
    from pipelines.kafka.settings import kafka_options
    from pipelines.options import parse_beam_options
    from pipelines.unbounded.flink import stream_args
    from pipelines.unbounded.graph import GraphOptions
    from pipelines.unbounded.run import run
    from pipelines.unbounded.source import ReadOptions

    settings = resolve_settings(config, timezone, None, None).settings
    if settings.as_of is not None:
        raise UserError(f"{config}: expected no as_of for a stream, whose as_of is its watermark: take it out.")
    if settings.repeat_contact is not None:
        raise UserError(
            f"{config}: expected no repeat_contact, since here each conversation key is decided on its own: take it "
            "out, or run `care-kpis stream`."
        )
    stream = StreamSettings(allowed_lateness, out_of_orderness, idle_timeout, max_future)
    read = ReadOptions(kafka_options(bootstrap_servers, topics, kafka_config), stream, poll_rows)
    options = GraphOptions(read, settings, output, buckets, shards, pair_every / 1e6, write_every / 1e6)
    run(options, parse_beam_options(stream_args(context.args)), context.args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; a user's error is one sentence.

    Args:
      arguments: what follows the program's name; None takes it from the process.

    Returns:
      Exit code, see pipelines.cli.
    """
    from pipelines.cli import INTERRUPTED

    try:
        streaming.main(args=arguments, prog_name="python -m pipelines.streaming", standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
