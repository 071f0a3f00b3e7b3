"""The Flink cluster that a run is sent to: whether it is there, and the end of a job that nobody waits for any more."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)

from transforms.errors import UserError

_EMBEDDED = ("[local]", "[auto]")
_ENDED = ("FINISHED", "CANCELED", "FAILED")
_MILLIS_TO_KEEP_WORKERS = 10_000
_SECONDS_TO_ANSWER = 10
_SECONDS_TO_CANCEL = 20

# Without the proxies of the environment, as Flink's own client.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def on_cluster(options: PipelineOptions) -> Iterator[None]:
    """Makes sure that a Flink cluster is there before a run, and cancels its job where the run fails or is stopped.

    Other runners are left alone. SIGTERM is taken for Ctrl-C meanwhile: Beam's job server would outlive us otherwise.

    Args:
      options: of the run; the job gets a name where it has none.

    Raises:
      UserError: there is no cluster at --flink_master, or one of another version of Flink.
    """
    runner = (options.view_as(StandardOptions).runner or "").lower().removesuffix("runner")
    if runner.rpartition(".")[2] != "flink":
        yield
        return
    _quieten_channels()
    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    with _terminated_as_interrupted():
        if portable.job_endpoint:
            yield
            return
        if flink.flink_master in _EMBEDDED:
            # The workers are threads of ours; otherwise each stage would end them and start others.
            portable.environment_cache_millis = portable.environment_cache_millis or _MILLIS_TO_KEEP_WORKERS
            yield
            return
        master = flink.flink_master if "://" in flink.flink_master else f"http://{flink.flink_master}"
        _check(master, flink)
        cloud = options.view_as(GoogleCloudOptions)
        cloud.job_name = cloud.job_name or f"care-kpis-{uuid.uuid4().hex[:8]}"
        try:
            yield
        except BaseException:
            # Should the cluster not answer, it is not for us to say: what ended the run matters more.
            with contextlib.suppress(OSError, ValueError, KeyError):
                _cancel(master, cloud.job_name)
            raise


def _check(master: str, flink: FlinkRunnerOptions) -> None:
    try:
        overview = _ask(f"{master}/overview")
    except urllib.error.HTTPError:
        # Something is there and wants more than we know (a password, another path).
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        said = getattr(reason, "strerror", None) or reason
        raise UserError(
            f"Expected a Flink cluster at {master} (--flink_master), but it does not answer ({said}): start it, give "
            "the address of its REST interface (that of the web UI), or leave --flink_master out to run in one process."
        ) from error
    except ValueError:
        return
    version = str(overview.get("flink-version", "")) if isinstance(overview, dict) else ""
    # A jar of one's own is for whatever version it was made for.
    if version and not flink.flink_job_server_jar and not version.startswith(f"{flink.flink_version}."):
        raise UserError(
            f"Expected Flink {flink.flink_version} at {master} (--flink_version), got {version}: say "
            f"--flink_version={'.'.join(version.split('.')[:2])}, if Beam has it."
        )


def _cancel(master: str, name: str) -> None:
    """Cancels the jobs of a name that still run, and waits for their end."""
    deadline = time.monotonic() + _SECONDS_TO_CANCEL
    asked: set[str] = set()
    while time.monotonic() < deadline:
        jobs = [job for job in _ask(f"{master}/jobs/overview")["jobs"] if job["name"] == name]
        running = {str(job["jid"]) for job in jobs if job["state"] not in _ENDED}
        if not running:
            return
        for job in running - asked:
            _ask(f"{master}/jobs/{job}?mode=cancel", "PATCH")
        asked |= running
        time.sleep(0.2)


def _ask(url: str, method: str = "GET") -> Any:
    with _OPENER.open(urllib.request.Request(url, method=method), timeout=_SECONDS_TO_ANSWER) as answer:
        return json.load(answer)


def _quieten_channels() -> None:
    """Keeps Beam's threads from ending with tracebacks where the other side closes a channel: it does so at every end.

    What makes a job fail is raised besides.
    """
    logging.getLogger("apache_beam.runners.worker.data_plane").setLevel(logging.CRITICAL)
    threading.excepthook = _leave_channels_out


def _leave_channels_out(failed: threading.ExceptHookArgs) -> None:
    if not issubclass(failed.exc_type, grpc.RpcError):
        threading.__excepthook__(failed)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Takes SIGTERM for Ctrl-C, so that everything is ended in order; in threads other than the main one, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
