"""A Flink session cluster on this machine: one job manager, one task manager, and a pool of Python workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.flink.jars import FLINK_VERSION, OPENED_PACKAGES
from pipelines.maven import free_ports, start_process
from transforms.errors import UserError

JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"

JOB_MANAGER_HEAP = 300
JOB_SERVER_HEAP = 300
TASK_MANAGER_HEAP = 700
"""Heaps in MiB: enough for the millions of events of docs/cluster.md."""

_FRAMEWORK_HEAP = 128
_DIRECT = 256
_NETWORK_OF_SLOT = 96
_MANAGED = 64
_SECONDS_TO_START = 60
_SECONDS_TO_STOP = 10
_STEP = 0.1

# Without the proxies of the environment: what we ask is on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
      master: address of its REST interface and web UI, "localhost:PORT".
      worker_pool: address of the pool of Python workers.
      jar: what it was started from.
      slots: tasks that it runs at a time.
      processes: the process ids of job manager, task manager and worker pool, by these names.
      logs: the folder of their logs, `<name>.log`.
    """

    master: str
    worker_pool: str
    jar: Path
    slots: int
    processes: Mapping[str, int]
    logs: Path

    @property
    def beam_args(self) -> tuple[str, ...]:
        """Beam's options for a run on this cluster."""
        return (
            *embedded_args(self.jar, JOB_SERVER_HEAP),
            f"--flink_master={self.master}",
            f"--parallelism={self.slots}",
            "--environment_type=EXTERNAL",
            f"--environment_config={self.worker_pool}",
            # Otherwise every stage starts its Python workers anew, two seconds each time.
            "--environment_cache_millis=10000",
        )


def embedded_args(jar: Path, heap: int = TASK_MANAGER_HEAP) -> tuple[str, ...]:
    """Beam's options for a run on a Flink inside Beam's job server, with the Python work in our own process.

    Args:
      jar: see `fetch_jar`.
      heap: of the job server, MiB.
    """
    return (
        "--runner=FlinkRunner",
        f"--flink_version={FLINK_VERSION}",
        f"--flink_job_server_jar={jar}",
        f"--job_server_jvm_properties=-Xmx{heap}m",
        "--job_server_jvm_properties=-XX:+UseSerialGC",
        "--job_server_jvm_properties=-XX:TieredStopAtLevel=1",
    )


@contextlib.contextmanager
def run_cluster(
    jar: Path, slots: int = 2, heap: int = TASK_MANAGER_HEAP, more: Mapping[str, object] | None = None
) -> Iterator[Cluster]:
    """Starts a cluster and a worker pool on free ports, and ends them whatever happens.

    They listen on localhost only. What they write lies in a temporary folder that is removed with them.

    Args:
      jar: see `fetch_jar`.
      slots: tasks that run at a time.
      heap: of the task manager, MiB.
      more: further settings of Flink, or others than ours.

    Raises:
      UserError: a part of it did not start.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flink-of-care-kpis-")))
        port, rpc = free_ports(2)
        settings = {**_settings(folder, port, rpc, slots, heap), **(more or {})}
        lines = (f"{name}: {value}\n" for name, value in settings.items())
        (folder / "flink-conf.yaml").write_text("".join(lines), encoding="utf-8")
        commands = {
            "job manager": _java(JOB_MANAGER, jar, folder, JOB_MANAGER_HEAP, _DIRECT),
            "task manager": _java(TASK_MANAGER, jar, folder, heap, _DIRECT + _NETWORK_OF_SLOT * slots),
            "worker pool": [sys.executable, "-m", "pipelines.flink.worker_pool", "--port=0"],
        }
        started: dict[str, subprocess.Popen[bytes]] = {}
        for name, command in commands.items():
            started[name] = stack.enter_context(_process(command, folder / f"{name}.log"))
        _wait(started, folder, lambda: _slot_count(port) == slots)
        _wait(started, folder, lambda: _address(folder) is not None)
        pids = {name: process.pid for name, process in started.items()}
        yield Cluster(f"localhost:{port}", _address(folder) or "", jar, slots, pids, folder)


def _settings(folder: Path, port: int, rpc: int, slots: int, heap: int) -> dict[str, object]:
    """Flink's settings; the sizes that its shell scripts would work out are all said."""
    return {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": "localhost",
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": port,
        "taskmanager.host": "localhost",
        "taskmanager.bind-host": "localhost",
        "taskmanager.numberOfTaskSlots": slots,
        "taskmanager.cpu.cores": slots,
        "taskmanager.memory.framework.heap.size": f"{_FRAMEWORK_HEAP}m",
        "taskmanager.memory.task.heap.size": f"{heap - _FRAMEWORK_HEAP}m",
        "taskmanager.memory.framework.off-heap.size": f"{_DIRECT // 2}m",
        "taskmanager.memory.task.off-heap.size": f"{_DIRECT // 2}m",
        "taskmanager.memory.network.min": f"{_NETWORK_OF_SLOT * slots}m",
        "taskmanager.memory.network.max": f"{_NETWORK_OF_SLOT * slots}m",
        "taskmanager.memory.managed.size": f"{_MANAGED}m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        # Of each exchange that is under way; 512 would be for far more than goes from step to step here.
        "taskmanager.network.sort-shuffle.min-buffers": 64,
        "parallelism.default": slots,
        # A task manager that comes first asks again soon, not after ten seconds.
        "cluster.registration.error-delay": 300,
        # Too few slots are an error soon, not after five minutes.
        "slot.request.timeout": 30_000,
        # The jars are on the class path: taken from there, Python workers outlive a stage.
        "classloader.resolve-order": "parent-first",
        "io.tmp.dirs": folder / "tmp",
        "web.submit.enable": "false",
        "web.log.path": folder / "job manager.log",
        "taskmanager.log.path": folder / "task manager.log",
    }


def _java(main: str, jar: Path, folder: Path, heap: int, direct: int) -> list[str]:
    """The command that starts a part of Flink; sizes in MiB."""
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED_PACKAGES]
    limits = [
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={direct}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
    ]
    return ["java", *limits, *opened, "-cp", str(jar), main, "--configDir", str(folder)]


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program with its own process group (Ctrl-C is ours to handle), and ends the group."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = start_process(command, log, {**os.environ, "PYTHONPATH": path})
    try:
        yield process
    finally:
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_STOP)
        finally:
            # Its children too; the group may be gone already.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(started: Mapping[str, subprocess.Popen[bytes]], folder: Path, is_ready: Callable[[], bool]) -> None:
    """Waits until something is ready; fails where a part has ended or it takes too long."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while not is_ready():
        dead = [name for name, process in started.items() if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            name = dead[0] if dead else "task manager"
            lines = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
            said = [line for line in lines if "Caused by" in line or "ERROR" in line] or lines or ["nothing"]
            raise UserError(
                f"Expected a Flink cluster to start on this machine, but its {name} "
                f"{'ended' if dead else f'was not ready after {_SECONDS_TO_START} s'}; it said last: "
                f"{said[-1].strip()}. It needs Java 17 and about 2 GiB of free memory."
            )
        time.sleep(_STEP)


def _slot_count(port: int) -> int:
    """Slots of the task managers that have registered."""
    try:
        with _OPENER.open(f"http://localhost:{port}/overview", timeout=2) as answer:
            return int(json.load(answer)["slots-total"])
    except (OSError, ValueError, KeyError):
        return 0


def _address(folder: Path) -> str | None:
    """Where the worker pool says that it listens."""
    said = re.search(r"^localhost:\d+$", (folder / "worker pool.log").read_text(encoding="utf-8"), re.MULTILINE)
    return said.group() if said else None
