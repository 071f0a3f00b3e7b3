"""Topics of a real Kafka: what is there, exact ranges of it, and every way in which it can fail."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from kafka_broker import NewTopic, broker, everything, new_topic, on_kafka, read, send

from pipelines.kafka import reading
from pipelines.kafka.broker import Broker
from pipelines.kafka.client import Client, Offsets
from pipelines.kafka.faults import BrokerAway, LostOffsets, keep_trying
from pipelines.kafka.messages import read_messages
from pipelines.kafka.produce import send_files
from pipelines.kafka.reading import close_consumers, read_ranges
from pipelines.kafka.settings import KafkaOptions, kafka_options
from pipelines.kafka.writing import Writer
from pipelines.maven import free_ports
from pipelines.sources.files import list_files
from pipelines.sources.formats import blocks, read_block
from transforms.errors import UserError
from transforms.events import parse_events

__all__ = ["broker", "new_topic"]

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample" / "events.ndjson"


def numbered(start: int, stop: int) -> list[bytes]:
    """Values that tell their number."""
    return [b"%d" % number for number in range(start, stop)]


def admin(options: KafkaOptions) -> AdminClient:
    """For what tests do to topics."""
    return admin_of(options.bootstrap_servers)


@functools.cache
def admin_of(servers: str) -> AdminClient:
    """One for all: what it was asked ends with it."""
    return AdminClient({"bootstrap.servers": servers, "log_level": 0})


def done(futures: dict[object, object]) -> None:
    """Waits until an admin client has done it."""
    for future in futures.values():
        future.result(30)  # type: ignore[attr-defined]


def wait_for(is_done: Callable[[], bool]) -> None:
    """Waits until something holds that Kafka does after it has said yes: the mark of a transaction, a partition."""
    deadline = time.monotonic() + 30
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What is there


@on_kafka
def test_offsets_of_every_partition(new_topic: NewTopic) -> None:
    """Empty partitions too; a partition that is added later is there at the next look."""
    options = new_topic(3)
    [name] = options.topics
    send(options, numbered(0, 5), 1)
    client = Client(options)
    assert client.offsets() == {(name, 0): Offsets(0, 0), (name, 1): Offsets(0, 5), (name, 2): Offsets(0, 0)}
    done(admin(options).create_partitions([NewPartitions(name, 5)]))
    wait_for(lambda: client.topics()[name].partitions == 5)
    send(options, numbered(0, 2), 4)
    assert client.offsets()[name, 4] == Offsets(0, 2)
    assert sorted(read(options)) == [(name, 1), (name, 4)]


@on_kafka
def test_topics_of_a_pattern(broker: Broker, new_topic: NewTopic) -> None:
    """A topic that is made later is found; Kafka's own topics never are."""
    first = new_topic(2, "shop-de").topics[0]
    options = kafka_options(broker.bootstrap_servers, ["^shop-(de|fr)$"])
    assert sorted(Client(options).topics()) == [first]
    new_topic(1, "shop-fr")
    new_topic(1, "shop-fr-test")
    assert sorted(Client(options).offsets()) == [("shop-de", 0), ("shop-de", 1), ("shop-fr", 0)]
    assert not [name for name in Client(kafka_options(broker.bootstrap_servers, ["^"])).topics() if name[:2] == "__"]


@on_kafka
def test_a_topic_that_is_not_there(broker: Broker, new_topic: NewTopic) -> None:
    """The error names what is there."""
    name = new_topic().topics[0]
    for topics in (["nosuch", name], ["^nosuch"]):
        with pytest.raises(UserError, match=rf"Expected .*nosuch.* its topics are: .*{name}"):
            Client(kafka_options(broker.bootstrap_servers, topics)).topics()
    with pytest.raises(UserError, match=rf"Expected topic nosuch .* its topics are: .*{name}"):
        Writer(kafka_options(broker.bootstrap_servers, [name]), "nosuch")


@on_kafka
def test_a_topic_made_anew_is_another_one(new_topic: NewTopic) -> None:
    """Its identity differs, though its name and offsets may be the same."""
    options = new_topic()
    before = Client(options).topics()
    assert Client(options).topics() == before
    recreate(options, new_topic)
    after = Client(options).topics()
    assert before.keys() == after.keys() and before != after


def recreate(options: KafkaOptions, new_topic: NewTopic) -> None:
    """Deletes a topic and makes one of its name."""
    [name] = options.topics
    done(admin(options).delete_topics([name]))
    time.sleep(0.5)
    new_topic(1, name)


# Ranges


@on_kafka
def test_exactly_a_range(new_topic: NewTopic) -> None:
    """Not one message before or after it, whatever was read before, in chunks of any size."""
    options = new_topic(3)
    [name] = options.topics
    for partition in range(3):
        send(options, numbered(0, 3_000), partition)
    dice = random.Random(7)
    for limit in (1, 100, 50_000):
        for _ in range(8):
            ranges = {}
            for partition in dice.sample(range(3), dice.randint(1, 3)):
                start, stop = sorted(dice.choices(range(3_001), k=2))
                ranges[name, partition] = (start, stop)
            found = read(options, ranges, chunk_messages=limit)
            wanted = {place: list(enumerate(numbered(*range_), range_[0])) for place, range_ in ranges.items()}
            assert found == {place: messages for place, messages in wanted.items() if messages}
    assert read(options, {(name, 0): (5, 5)}) == {}


@on_kafka
def test_going_on_where_it_stopped(new_topic: NewTopic) -> None:
    """Range after range, with partitions that are left out at times, gives every message once."""
    options = new_topic(3)
    for partition in range(3):
        send(options, [value * 100 for value in numbered(0, 5_000)], partition)
    dice = random.Random(3)
    at = dict.fromkeys(everything(options), 0)
    found: dict[object, list[tuple[int, bytes | None]]] = {place: [] for place in at}
    while min(at.values()) < 5_000:
        ranges = {place: (start, min(5_000, start + dice.choice([0, 1, 700]))) for place, start in at.items()}
        for place, messages in read(options, ranges).items():
            found[place] += messages
        at = {place: stop for place, (_, stop) in ranges.items()}
    assert found == {place: list(enumerate(value * 100 for value in numbered(0, 5_000))) for place in at}


@on_kafka
def test_what_nobody_asks_for_is_held_back(new_topic: NewTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long partition that is not read does not fill the memory, and is all there later."""
    options = new_topic(2)
    [name] = options.topics
    monkeypatch.setattr(reading, "_AHEAD_BYTES", 100_000)
    for partition in range(2):
        send(options, [value.ljust(500) for value in numbered(0, 8_000)], partition)
    close_consumers()
    places = [(name, 0), (name, 1)]
    read(options, dict.fromkeys(places, (0, 1)))
    assert len(read(options, {places[1]: (1, 8_000)})[places[1]]) == 7_999
    [reader] = reading._IDLE[os.getpid(), options]
    assert sum(size for _, _, size in reader._positions[places[0]].ahead) < 6 << 20
    assert reader._paused
    rest = read(options, {places[0]: (1, 8_000)})[places[0]]
    assert rest == list(enumerate([value.ljust(500) for value in numbered(1, 8_000)], 1))


@on_kafka
def test_a_caller_that_ends_early(new_topic: NewTopic) -> None:
    """The next call gives what it did not take."""
    options = new_topic()
    [name] = options.topics
    send(options, numbered(0, 100))
    chunks = read_ranges(options, {(name, 0): (0, 100)}, chunk_messages=1)
    assert next(chunks).offsets[0] == 0
    chunks.close()
    for start in (1, 50, 0):
        assert read(options, {(name, 0): (start, 100)})[name, 0][0] == (start, b"%d" % start)


@on_kafka
def test_messages_that_come_while_it_runs(new_topic: NewTopic) -> None:
    """As a stream does: look at the offsets, read up to them, again and again; none is read twice or left out."""
    options = new_topic(2)
    [name] = options.topics

    def write() -> None:
        with Writer(options, name) as writer:
            for number in range(3_000):
                writer.write([(b"%d" % (number % 10), b"%d" % number)])
                if number % 10 == 0:
                    time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    at = dict.fromkeys(everything(options), 0)
    found: list[int] = []
    deadline = time.monotonic() + 60
    while len(found) < 3_000 and time.monotonic() < deadline:
        ranges = {place: (at[place], offsets.high) for place, offsets in Client(options).offsets().items()}
        found += [int(value or b"") for messages in read(options, ranges).values() for _, value in messages]
        at = {place: stop for place, (_, stop) in ranges.items()}
    thread.join()
    assert sorted(found) == list(range(3_000))
    assert all([n for n in found if n % 10 == key] == list(range(key, 3_000, 10)) for key in range(10))


@on_kafka
def test_two_threads_read_at_once(new_topic: NewTopic) -> None:
    """Each has a consumer of its own."""
    options = new_topic(2)
    [name] = options.topics
    for partition in range(2):
        send(options, numbered(0, 2_000), partition)
    found: dict[int, object] = {}

    def work(partition: int) -> None:
        for _ in range(3):
            found[partition] = read(options, {(name, partition): (10, 2_000)})

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wanted = list(enumerate(numbered(10, 2_000), 10))
    assert found == {partition: {(name, partition): wanted} for partition in range(2)}


@on_kafka
def test_after_a_fork(new_topic: NewTopic) -> None:
    """The child makes a consumer of its own, and the parent's goes on."""
    options = new_topic()
    [name] = options.topics
    send(options, numbered(0, 20))
    assert len(read(options, {(name, 0): (0, 10)})[name, 0]) == 10
    child = os.fork()
    if child == 0:
        is_right = read(options) == {(name, 0): list(enumerate(numbered(0, 20)))}
        os._exit(0 if is_right else 1)
    deadline = time.monotonic() + 30
    status = (0, 1)
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if status[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status == (child, 0)
    assert read(options, {(name, 0): (10, 20)})[name, 0] == list(enumerate(numbered(10, 20), 10))


# Gaps


def transaction(options: KafkaOptions, name: str, values: list[bytes], is_committed: bool = True) -> None:
    """Writes values in one transaction to partition 0."""
    producer = Producer({"bootstrap.servers": options.bootstrap_servers, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(options.topics[0], value, partition=0)
    if is_committed:
        producer.commit_transaction(30)
    else:
        producer.flush(30)
        producer.abort_transaction(30)


@on_kafka
def test_transactions(new_topic: NewTopic) -> None:
    """Marks of transactions are offsets without a message, at a range's end too; what was aborted is not read."""
    options = new_topic()
    place = options.topics[0], 0
    transaction(options, "a", numbered(0, 3))
    transaction(options, "b", numbered(3, 5), is_committed=False)
    transaction(options, "c", numbered(5, 6))
    transaction(options, "d", numbered(6, 8), is_committed=False)
    # 0 1 2 mark | 4 5 mark | 7 mark | 9 10 mark
    wait_for(lambda: everything(options) == {place: (0, 12)})
    messages = [(0, b"0"), (1, b"1"), (2, b"2"), (7, b"5")]
    assert read(options)[place] == messages
    for start, stop in itertools.combinations(range(13), 2):
        wanted = [message for message in messages if start <= message[0] < stop]
        assert read(options, {place: (start, stop)}, seconds=5).get(place, []) == wanted
    at = 0
    for stop in (2, 4, 5, 8, 9, 12):
        wanted = [message for message in messages if at <= message[0] < stop]
        assert read(options, {place: (at, stop)}, seconds=5).get(place, []) == wanted
        at = stop
    transaction(options, "a", numbered(8, 9))
    assert read(options, {place: (12, 14)}) == {place: [(12, b"8")]}
    assert read(options, {place: (11, 13)}) == {place: [(12, b"8")]}


@on_kafka
def test_an_open_transaction(new_topic: NewTopic) -> None:
    """What may still be aborted is not there yet, unless it is asked for."""
    options = new_topic()
    place = options.topics[0], 0
    send(options, numbered(0, 2))
    producer = Producer({"bootstrap.servers": options.bootstrap_servers, "transactional.id": "open"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(place[0], b"2", partition=0)
    producer.flush(30)
    assert everything(options) == {place: (0, 2)}
    hasty = KafkaOptions(options.bootstrap_servers, options.topics, (("isolation.level", "read_uncommitted"),))
    assert everything(hasty) == {place: (0, 3)}
    assert read(hasty)[place][-1] == (2, b"2")
    producer.commit_transaction(30)
    wait_for(lambda: everything(options) == {place: (0, 4)})
    assert read(options)[place] == list(enumerate(numbered(0, 3)))


@on_kafka
def test_a_compacted_topic(broker: Broker, new_topic: NewTopic) -> None:
    """Most offsets have no message any more; what is left is read, in ranges of any place."""
    quick = {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "200"}
    options = new_topic(settings={"cleanup.policy": "compact", "delete.retention.ms": "0", **quick})
    place = options.topics[0], 0
    deadline = time.monotonic() + 60
    count, left = 0, 10_000
    # Compaction has its own mind when: it is woken by what is written.
    while left > count - 300 and time.monotonic() < deadline:
        with Writer(options, place[0]) as writer:
            count += writer.write((b"key", b"%d" % number) for number in range(count, count + 300))
        time.sleep(1)
        left = len(read(options)[place])
    if left > count - 300:
        pytest.skip("the broker did not compact in a minute")
    found = read(options)[place]
    assert found[-1] == (count - 1, b"%d" % (count - 1)) and len(found) < count
    for start, stop in ((0, count // 2), (1, 300), (count // 2, count)):
        wanted = [message for message in found if start <= message[0] < stop]
        assert read(options, {place: (start, stop)}).get(place, []) == wanted


# Messages that are gone


@on_kafka
def test_messages_that_retention_deleted(new_topic: NewTopic) -> None:
    """Said with what was wanted and what is there; from there on it can be read, by a consumer that was there too."""
    options = new_topic()
    place = options.topics[0], 0
    send(options, numbered(0, 10))
    assert len(read(options, {place: (0, 3)})[place]) == 3
    done(admin(options).delete_records([TopicPartition(*place, 6)]))
    assert Client(options).offsets() == {place: Offsets(6, 10)}
    close_consumers()
    for _ in range(2):
        with pytest.raises(
            LostOffsets, match=r"Expected offset 3 .* has offsets 6 to 9: the others were deleted"
        ) as lost:
            read(options, {place: (3, 10)})
        assert (lost.value.wanted, lost.value.low, lost.value.high) == (3, 6, 10)
    assert [offset for offset, _ in read(options)[place]] == [6, 7, 8, 9]


@on_kafka
def test_a_topic_made_anew(new_topic: NewTopic) -> None:
    """Offsets that the new one does not have are said to be lost, by a consumer that knew the old one as well."""
    options = new_topic()
    place = options.topics[0], 0
    send(options, numbered(0, 50))
    assert len(read(options, {place: (0, 50)})[place]) == 50
    recreate(options, new_topic)
    send(options, numbered(100, 105))
    with pytest.raises(LostOffsets, match=r"Expected offset 50 .* it has offsets 0 to 4: it was made anew") as lost:
        read(options, {place: (50, 60)})
    assert (lost.value.wanted, lost.value.low, lost.value.high) == (50, 0, 5)
    assert read(options)[place] == list(enumerate(numbered(100, 105)))


@on_kafka
def test_a_topic_that_was_deleted(new_topic: NewTopic) -> None:
    """Known by the consumer or not."""
    for is_known in (True, False):
        options = new_topic()
        place = options.topics[0], 0
        send(options, numbered(0, 5))
        if is_known:
            read(options, {place: (0, 2)})
        done(admin(options).delete_topics([place[0]]))
        time.sleep(0.5)
        with pytest.raises((LostOffsets, UserError), match="not there"):
            read(options, {place: (2 if is_known else 0, 100)})
            Client(options).offsets()


# A broker that is away


@on_kafka
def test_kill_and_restart(broker: Broker, new_topic: NewTopic) -> None:
    """Nothing that was acknowledged is lost, and who waits goes on when it is back."""
    options = new_topic(2)
    [name] = options.topics
    for partition in range(2):
        send(options, numbered(0, 1_000), partition)
    assert sum(map(len, read(options, {(name, 0): (0, 400), (name, 1): (0, 400)}).values())) == 800
    writer = Writer(options, name, seconds=1)
    broker.kill()
    told: list[str] = []
    with pytest.raises(BrokerAway, match="does not answer"):
        Client(options, seconds=1).offsets()
    with pytest.raises(BrokerAway, match="does not answer"):
        read(options, {(name, 0): (0, 1_000)}, seconds=1)
    with pytest.raises(BrokerAway, match="does not answer"):
        keep_trying(lambda: Client(options, seconds=0.2).offsets(), 1, told.append)
    assert len(told) == 1 and told[0].endswith("; trying again")
    with pytest.raises(BrokerAway, match="does not answer"):
        Writer(options, name, seconds=1)
    with pytest.raises(BrokerAway, match="does not answer"), writer:
        writer.write([(None, b"x")])
    starter = threading.Timer(1, broker.start)
    starter.start()
    ranges = keep_trying(lambda: everything(options), 60)
    assert ranges == {(name, 0): (0, 1_000), (name, 1): (0, 1_000)}
    found = keep_trying(lambda: read(options, ranges), 60)
    starter.join()
    assert found == {(name, partition): list(enumerate(numbered(0, 1_000))) for partition in range(2)}

    def write_again() -> None:
        writer.write([(b"key", b"%d" % number) for number in range(500)])
        writer.flush()

    keep_trying(write_again, 60)
    wait_for(lambda: sum(offsets.high for offsets in Client(options).offsets().values()) >= 2_500)
    values = [value for messages in read(options).values() for offset, value in messages if offset >= 1_000]
    assert [value for value in values if value != b"x"] == numbered(0, 500)


@on_kafka
def test_killed_while_it_is_read(broker: Broker, new_topic: NewTopic) -> None:
    """A broker that is back soon is not even missed; where it is, trying again gives all."""
    options = new_topic()
    place = options.topics[0], 0
    send(options, [value.ljust(1_000) for value in numbered(0, 30_000)])
    starter = threading.Timer(0.5, broker.start)

    def slowly() -> list[int]:
        found: list[int] = []
        for chunk in read_ranges(options, {place: (0, 30_000)}, chunk_messages=100, seconds=60):
            if not starter.ident:
                broker.kill()
                starter.start()
            found += chunk.offsets.tolist()
        return found

    assert keep_trying(slowly, 60) == list(range(30_000))
    starter.join()


@on_kafka
def test_a_broker_that_asks_for_a_password(tmp_path: Path) -> None:
    """The right one gets in; a wrong one is the user's error at once, and no password is told."""
    first, second, controller = free_ports(3)
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{first},SASL://127.0.0.1:{second},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{first},SASL://127.0.0.1:{second}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f'{module} user_care="open-sesame";',
    }
    with Broker(tmp_path / "kafka", first, settings=settings) as broker:
        broker.create_topic("t")
        send(kafka_options(broker.bootstrap_servers, ["t"]), numbered(0, 3))
        file = tmp_path / "client.properties"
        for password in ("open-sesame", "wrong-sesame"):
            file.write_text(
                f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=care\nsasl.password={password}\n"
            )
            options = kafka_options(f"127.0.0.1:{second}", ["t"], file)
            assert password not in repr(options)
            if password == "open-sesame":
                assert len(read(options)["t", 0]) == 3
                continue
            began = time.monotonic()
            pattern = KafkaOptions(options.bootstrap_servers, ("^t",), options.settings)
            for action in (
                lambda options=options: Client(options).topics(),
                lambda pattern=pattern: Client(pattern).topics(),
                lambda options=options: read(options, {("t", 0): (0, 3)}),
                lambda options=options: write_one(options),
            ):
                with pytest.raises(UserError, match="to let us in") as refused:
                    action()
                assert "sesame" not in str(refused.value)
            assert time.monotonic() - began < 20
        close_consumers()


def write_one(options: KafkaOptions) -> None:
    """Writes one message."""
    with Writer(options, "t") as writer:
        writer.write([(None, b"x")])


# Writing, and the programs


@on_kafka
def test_writing(new_topic: NewTopic) -> None:
    """Keys have their partition, order holds, and a value of None deletes."""
    options = new_topic(4)
    [name] = options.topics
    with Writer(options, name) as writer:
        assert writer.write([(b"%d" % (n % 7), None if n == 13 else b"%d" % n) for n in range(700)]) == 700
    found = read(options)
    values = [value for messages in found.values() for _, value in messages]
    assert sorted(int(value) for value in values if value is not None) == [n for n in range(700) if n != 13]
    for key in range(7):
        [partition] = [place for place, m in found.items() if any(v and int(v) % 7 == key for _, v in m)]
        ours = [int(value) for _, value in found[partition] if value and int(value) % 7 == key]
        assert ours == [n for n in range(key, 700, 7) if n != 13]
    with pytest.raises(UserError, match="one is too large"), Writer(options, name) as writer:
        writer.write([(None, bytes(2 << 20))])


@on_kafka
def test_sending_files(new_topic: NewTopic, tmp_path: Path) -> None:
    """Every line arrives, events of a conversation in one partition and in order, what is no event too."""
    options = new_topic(4)
    [name] = options.topics
    bad = tmp_path / "bad.ndjson"
    bad.write_bytes(b'{"event_id": 1}\n\nnonsense\n')
    sent = send_files(options, name, [str(SAMPLE), str(bad)])
    lines = SAMPLE.read_bytes().splitlines()
    assert sent.messages == len(lines) + 2
    found = read(options)
    parts = [parse_events(read_messages(*place, *columns(messages))) for place, messages in found.items()]
    assert sum(part.rows_read for part in parts) == sent.messages
    events = [parse_events(read_block(block)).events.num_rows for block in blocks(list_files([str(SAMPLE)])[0])]
    assert sum(part.events.num_rows for part in parts) == sum(events) > 1_900
    keys = [set(part.events["conversation_id"].drop_null().to_pylist()) for part in parts]
    assert sum(map(len, keys)) == len(set.union(*keys))
    # Some lines are there twice.
    order = {line: number for number, line in enumerate(lines) if lines.count(line) == 1}
    for messages in found.values():
        numbers = [order[value] for _, value in messages if value in order]
        assert numbers == sorted(numbers)


def columns(messages: list[tuple[int, bytes | None]]) -> tuple[object, list[bytes | None]]:
    """Offsets and values."""
    import numpy as np

    return np.array([offset for offset, _ in messages], np.int64), [value for _, value in messages]


@on_kafka
def test_sending_at_a_rate_with_the_time_of_sending(new_topic: NewTopic, tmp_path: Path) -> None:
    """So that what comes out can be compared with the clock."""
    options = new_topic()
    [name] = options.topics
    few = tmp_path / "few.ndjson"
    few.write_bytes(b"\n".join(SAMPLE.read_bytes().splitlines()[:100]))
    began = time.time()
    sent = send_files(options, name, [str(few)], rate=200, is_now=True)
    assert 0.4 < sent.seconds < 20
    messages = read(options)[name, 0]
    times = parse_events(read_messages(name, 0, *columns(messages))).events["occurred_at"].to_pylist()
    assert times == sorted(set(times)) and began - 1 < times[0].timestamp() < time.time() + 1


@on_kafka
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_kafka_for_a_person(tmp_path: Path, end: signal.Signals) -> None:
    """It says where it is, has the topic and its events, and leaves nothing behind after Ctrl-C."""
    [port] = free_ports(1)
    folder = tmp_path / "data"
    words = ["--topic", "mine:3", "--feed", str(SAMPLE), "--stay", "--port", str(port), "--folder", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.kafka", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = list(lines_until(iter(process.stderr.readline, ""), "stays until Ctrl-C"))
        options = kafka_options(f"127.0.0.1:{port}", ["mine"])
        assert sum(map(len, read(options).values())) == len(SAMPLE.read_bytes().splitlines())
        assert len(everything(options)) == 3
        assert f"--bootstrap-servers 127.0.0.1:{port} --topic mine" in "".join(said)
        process.send_signal(end)
        assert process.wait(30) == 0
        assert process.stderr.read() == "Kafka    ended\n"
    finally:
        process.kill()
        process.wait()
        close_consumers()
    assert not [line for line in commands() if str(folder) in line]


def lines_until(lines: Iterator[str], text: str) -> Iterator[str]:
    """Lines up to the one that has a text."""
    for line in lines:
        yield line
        if text in line:
            return
    raise AssertionError(f"never said {text!r}")


def commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@on_kafka
def test_a_port_that_is_in_use(broker: Broker, tmp_path: Path) -> None:
    """Said before anything is started: what listens there would be taken for ours."""
    with pytest.raises(UserError, match=f"Expected port {broker.port} of this machine to be free"):
        Broker(tmp_path, broker.port).start()
