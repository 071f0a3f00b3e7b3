"""A real Apache Kafka on this machine, for a try and for the tests: one broker that is its own controller."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from pipelines.maven import check_programs, fetch_jars, free_ports, is_free, start_process
from transforms.errors import UserError

POM = Path(__file__).with_name("pom.xml")

CACHE = Path(__file__).parents[2] / ".kafka"
"""Where Kafka is kept unless said otherwise: in the work tree, left out by .gitignore."""

KAFKA_VERSION = "4.1.0"
"""Of what the pom names."""

HEAP = 300
"""Heap in MiB: enough for what one producer and one consumer on this machine do."""

_SECONDS_TO_START = 60
_SECONDS_TO_STOP = 15
_STEP = 0.1


def jars_in(cache: Path) -> Path:
    """Where `fetch_kafka` keeps the jars; there is a folder of this name only once it is complete."""
    # Named after what makes it, so that another pom makes another one.
    return cache / f"kafka-{KAFKA_VERSION}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def fetch_kafka(cache: Path = CACHE) -> Path:
    """Fetches what the pom names, unless it is there already.

    Args:
      cache: folder to keep it in; made where it is not there.

    Returns:
      The folder of the jars.

    Raises:
      UserError: java or mvn is missing, or Maven could not get something.
    """
    check_programs("Kafka")
    jars = jars_in(cache)
    if not jars.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
            fetched = Path(folder) / "jars"
            fetch_jars(POM, fetched)
            for old in set(cache.glob("kafka-*")) - {jars}:
                shutil.rmtree(old)
            # Whoever was faster has fetched the same.
            with contextlib.suppress(OSError):
                fetched.rename(jars)
    return jars


class Broker:
    """A broker that keeps its data in a folder, so that it can be ended and started again.

    As a context it is started, and stopped at the end. It listens on 127.0.0.1 only, and ends when this process ends.

    Attributes:
      folder: its data, settings and log.
      port: where it listens.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        heap_megabytes: int = HEAP,
        settings: Mapping[str, object] | None = None,
        cache: Path = CACHE,
    ) -> None:
        """Makes a broker that does not run yet.

        Args:
          folder: for its data; made where it is not there.
          port: where to listen; None for a free one.
          heap_megabytes: heap of its JVM.
          settings: further settings of Kafka, or others than ours.
          cache: where Kafka itself is kept, see `fetch_kafka`.
        """
        self.folder = folder
        free = free_ports(2)
        self.port = port or free[0]
        self._heap = heap_megabytes
        self._settings = {**_settings(folder.absolute(), self.port, free[1]), **(settings or {})}
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> int | None:
        """Its process id; None where it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def __enter__(self) -> Broker:
        """Starts it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
          UserError: Java or Maven is missing, the port is in use, or it does not start.
        """
        jars = fetch_kafka(self._cache)
        if not is_free(self.port):
            raise UserError(
                f"Expected port {self.port} of this machine to be free for Kafka, but something listens there: end it, "
                "or take another port."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        lines = (f"{name}={value}\n" for name, value in self._settings.items())
        properties.write_text("".join(lines), encoding="utf-8")
        java = [
            *("java", f"-Xmx{self._heap}m", f"-Xms{min(64, self._heap)}m"),
            *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
            *("-cp", str(jars / "*")),
        ]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(java, properties)
        self._process = start_process([*java, "kafka.Kafka", str(properties)], self._log)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_STOP)
            self.kill()

    def kill(self) -> None:
        """Ends it at once, as `kill -9` does; what it had acknowledged stays."""
        if self._process is not None:
            # It may be gone already.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stops it, if it runs, and starts it on the same data and port."""
        self.stop()
        self.start()

    def create_topic(
        self, name: str, partitions: int = 1, settings: Mapping[str, str] | None = None, may_be_there: bool = False
    ) -> None:
        """Makes a topic, and waits until it can be used.

        Args:
          name: of the topic.
          partitions: how many it has.
          settings: of the topic, as Kafka names them.
          may_be_there: it is left as it is where it is there already.

        Raises:
          UserError: it is there already and may not be, or Kafka refuses it.
        """
        admin = self._admin()
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(settings or {}))
        try:
            admin.create_topics([topic])[name].result(_SECONDS_TO_START)
        except KafkaException as error:
            if may_be_there and error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return
            raise UserError(f"Expected Kafka to make topic {name!r}, but it said: {error.args[0].str()}.") from error
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            found = admin.list_topics(name, timeout=_SECONDS_TO_START).topics[name].partitions
            if len(found) == partitions and all(one.leader >= 0 for one in found.values()):
                return
            time.sleep(_STEP / 5)

    @property
    def _log(self) -> Path:
        return self.folder / "broker.log"

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _format(self, java: list[str], properties: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With "=", since an id may begin with a dash.
        words = ["format", "--standalone", f"--cluster-id={cluster}", "-c", str(properties)]
        done = subprocess.run([*java, "kafka.tools.StorageTool", *words], capture_output=True, text=True)
        if done.returncode:
            raise UserError(_failed(done.stdout + done.stderr, "its folder could not be made ready"))

    def _wait(self) -> None:
        """Waits until it answers; fails where it has ended or it takes too long."""
        assert self._process is not None
        admin = self._admin()
        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            with contextlib.suppress(KafkaException):
                if admin.list_topics(timeout=1).brokers:
                    return
            is_dead = self._process.poll() is not None
            if is_dead or time.monotonic() > deadline:
                said = self._log.read_text(encoding="utf-8", errors="replace")
                raise UserError(
                    _failed(said, "it ended" if is_dead else f"it did not answer after {_SECONDS_TO_START} s")
                )
            time.sleep(_STEP)


def _failed(said: str, what: str) -> str:
    lines = said.splitlines()
    told = [line for line in lines if "ERROR" in line or "Exception" in line] or lines or ["nothing"]
    return (
        f"Expected Kafka to start on this machine, but {what}; it said: {told[-1].strip()}. It needs Java 17, about "
        "500 MiB of free memory, and its port to be free."
    )


def _settings(folder: Path, port: int, controller: int) -> dict[str, object]:
    """Kafka's settings: one process that is all, and little memory."""
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listeners": listeners,
        "advertised.listeners": listeners,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": folder / "data",
        # A name that is misspelt is an error, not a new topic.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # After a kill it is let in again once its old session is over.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
        # Of 128 MiB, which would be half of the heap.
        "log.cleaner.dedupe.buffer.size": 16 << 20,
    }
