"""Settings: what care.toml may say, how the layers merge, and what a wrong file is told."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.durations import MAX_DURATION
from pipelines.settings import load_settings, settings_record
from transforms.errors import UserError
from transforms.settings import DAY, HOUR, ChannelSettings, Settings

SECOND = HOUR // 3_600

CONTRACT = """
timezone = "Europe/Berlin"
as_of = 2026-02-01T00:00:00Z      # optional
repeat_contact = "7d"             # optional
[default]                         # every channel
gap = "24h"
max_idle = "30d"
max_open = "365d"
split_threads = false
infer_resolution = false
has_life_cycle = true
[channel.whatsapp]                # what differs there
split_threads = true
"""


def write(folder: Path, text: str | bytes) -> Path:
    """Writes a care.toml."""
    path = folder / "care.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_nothing_said_gives_the_contracts_defaults() -> None:
    """Without any source of settings the built-in defaults hold, and say so."""
    resolved = load_settings()
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default"}


def test_the_contracts_example(tmp_path: Path) -> None:
    """The file printed in the contract gives the values that it names."""
    settings = load_settings(write(tmp_path, CONTRACT)).settings
    as_of = round(datetime(2026, 2, 1, tzinfo=UTC).timestamp()) * SECOND
    assert settings == Settings(
        default=ChannelSettings(),
        channels={"whatsapp": ChannelSettings(split_threads=True)},
        repeat_contact=7 * DAY,
        timezone="Europe/Berlin",
        as_of=as_of,
    )


def test_a_channel_inherits_from_default_whatever_the_order(tmp_path: Path) -> None:
    """A channel's table has only what differs, and may stand above [default]."""
    config = write(tmp_path, '[channel.x]\nsplit_threads = true\n[default]\ngap = "12h"\nmax_idle = "20d"\n')
    settings = load_settings(config).settings
    assert settings.of_channel("x") == ChannelSettings(gap=12 * HOUR, max_idle=20 * DAY, split_threads=True)
    assert settings.of_channel("other") == ChannelSettings(gap=12 * HOUR, max_idle=20 * DAY)


def test_later_layers_win_and_origins_say_which(tmp_path: Path) -> None:
    """Built-in, then the source's, then care.toml, then the command line."""
    adapter = {
        "timezone": "Europe/Paris",
        "default": {"has_life_cycle": False, "gap": "6h"},
        "channel": {"x": {"gap": "3h", "infer_resolution": True}},
    }
    config = write(tmp_path, 'timezone = "Europe/Berlin"\nrepeat_contact = "7d"\n[default]\ngap = "12h"\n')
    resolved = load_settings(config, {"timezone": "Asia/Tokyo", "as_of": None}, adapter)
    assert resolved.settings == Settings(
        default=ChannelSettings(gap=12 * HOUR, has_life_cycle=False),
        channels={"x": ChannelSettings(gap=12 * HOUR, has_life_cycle=False, infer_resolution=True)},
        repeat_contact=7 * DAY,
        timezone="Asia/Tokyo",
    )
    assert {key: resolved.origins[key] for key in ("timezone", "as_of", "repeat_contact")} == {
        "timezone": "command line",
        "as_of": "default",
        "repeat_contact": str(config),
    }
    assert {key: origin for key, origin in resolved.origins.items() if key.startswith("channel.x")} == {
        "channel.x.gap": f"{config} [default]",
        "channel.x.max_idle": "default",
        "channel.x.max_open": "default",
        "channel.x.split_threads": "default",
        "channel.x.infer_resolution": "source",
        "channel.x.has_life_cycle": "source",
    }
    assert resolved.config_channels == frozenset()


def test_channels_of_the_file_are_known(tmp_path: Path) -> None:
    """Channels that care.toml names are told apart from those that a source implies."""
    config = write(tmp_path, '[channel."web chat"]\ngap = 60\n')
    resolved = load_settings(config, adapter_defaults={"channel": {"x": {"gap": 60}}})
    assert resolved.config_channels == {"web chat"}
    assert resolved.origins["channel.web chat.gap"] == f"{config} [channel.'web chat']"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('tmezone = "UTC"', "{file}: tmezone: no such setting; did you mean timezone?"),
        ("[default]\nsplit_thread = true", "no such setting; did you mean split_threads?"),
        ("[chanel.x]\ngap = 1", "{file}: chanel: no such setting; did you mean channel?"),
        ('gap = "3h"', "{file}: gap: it does not belong here; move gap under [default] or [channel.NAME]."),
        ('[channel.x]\ntimezone = "UTC"', "{file} [channel.x] timezone: it does not belong here; move timezone above"),
        ("zzz = 1", "{file}: zzz: no such setting; expected one of timezone, as_of, repeat_contact, default, channel."),
        ("default = 3", "{file}: default: expected a table [default] with gap, max_idle, "),
        ("[channel]\nx = 3", "{file}: channel.x: expected a table [channel.x] with gap, "),
        ('[channel.""]\ngap = 1', '{file}: [channel.""]: expected the name of a channel, got empty text; name it.'),
        ("[default]\ngap = true", "{file} [default] gap: expected a number of seconds or text such as "),
        ('[default]\ngap = "5 days"', "got '5 days' (text)."),
        ("[default]\ngap = []", "got a list."),
        ("[default]\ngap = 0", "expected a duration of more than 0 seconds and at most 47847 days, got 0 (a number)."),
        ('[default]\nhas_life_cycle = "no"', "has_life_cycle: expected true or false, got 'no' (text)."),
        ("[default]\nhas_life_cycle = 0", "has_life_cycle: expected true or false, got 0 (a number)."),
        ('repeat_contact = "off"', "repeat_contact: expected a duration, got 'off' (text); to switch it off leave"),
        ("timezone = 1", 'timezone: expected an IANA time zone such as "Europe/Berlin", got 1 (a number).'),
        ('timezone = "berlin"', "got 'berlin' (text); did you mean Europe/Berlin?"),
        ('timezone = "America/New York"', "did you mean America/New_York?"),
        ('timezone = "GMT+1"', "got 'GMT+1' (text); write it like \"Europe/Berlin\"."),
        ('timezone = "localtime"', "timezone: expected an IANA time zone"),
        ('timezone = "../../etc/hosts"', "timezone: expected an IANA time zone"),
        ('timezone = ""', "timezone: expected an IANA time zone"),
        ("as_of = 2026-02-01T00:00:00", "as_of: expected a date and time with an offset such as 2026-02-01T00:00:00Z"),
        ("as_of = 2026-02-01", "got 2026-02-01 (a date or time)."),
        ('as_of = "2026-02-01T00:00:00Z"', "got '2026-02-01T00:00:00Z' (text); take the quotes away."),
        ("as_of = 2101-01-02T00:00:00Z", "as_of: expected a moment from 1970-01-01 to 2101-01-01, got 2101-01-02"),
        ("as_of = 1969-12-31T00:00:00Z", "as_of: expected a moment from 1970-01-01"),
        ("a = 1\nb =", "{file}, line 2: expected TOML, got: invalid value."),
        ('timezone = "UTC\n', "{file}, line 1: expected TOML, got: illegal character"),
        ("[default]\n\n[default]\n", "{file}, line 3: expected TOML, got: "),
        ("x = " + "9" * 5_000, "{file}, line 1: expected TOML, got: "),
        (b'timezone = "\xff"', "{file}: expected UTF-8 text, got another encoding at byte 13."),
    ],
)  # fmt: skip
def test_wrong_files_are_told_where_and_what(tmp_path: Path, text: str | bytes, told: str) -> None:
    """Each message has the file, the key, what is allowed and what came."""
    config = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_settings(config)
    assert told.replace("{file}", str(config)) in str(raised.value)
    assert str(config) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[default]\ngap = "60d"', "of [default]: expected gap <= max_idle, got gap = 60d ({file} [default]) and "
         "max_idle = 30d (default); lower gap or raise max_idle."),
        ('[channel.x]\nmax_open = "24h"', "of [channel.x]: expected max_idle <= max_open, got max_idle = 30d (default) "
         "and max_open = 24h ({file} [channel.x]); lower max_idle or raise max_open."),
        ('[default]\nmax_idle = "2d"\n[channel.x]\ngap = "3d"', "of [channel.x]: expected gap <= max_idle, got gap = "
         "3d ({file} [channel.x]) and max_idle = 2d ({file} [default]); lower gap or raise max_idle."),
    ],
)  # fmt: skip
def test_durations_must_agree_after_the_merge(tmp_path: Path, text: str, told: str) -> None:
    """What each file says may be right, and wrong together."""
    config = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_settings(config)
    assert told.replace("{file}", str(config)) in str(raised.value)


def test_durations_may_be_equal(tmp_path: Path) -> None:
    """The contract says at least, not more."""
    config = write(tmp_path, '[default]\ngap = "9d"\nmax_idle = "9d"\nmax_open = "9d"')
    assert load_settings(config).settings.default == ChannelSettings(9 * DAY, 9 * DAY, 9 * DAY)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """A missing file and a folder are the user's errors, too."""
    with pytest.raises(UserError, match=r"expected a readable TOML file, got: .*; check --config\."):
        load_settings(tmp_path / name)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    """Some editors write one."""
    assert load_settings(write(tmp_path, b'\xef\xbb\xbftimezone = "Asia/Tokyo"')).settings.timezone == "Asia/Tokyo"


def test_the_command_line_names_its_option() -> None:
    """A wrong value from the command line is told by the option's name."""
    with pytest.raises(UserError, match=r"^--as-of: expected a date and time with an offset"):
        load_settings(overrides={"as_of": "yesterday"})


def as_toml(record: dict[str, Any]) -> str:
    """A settings record as the text of a care.toml."""
    lines = [f"{key} = {json.dumps(record[key])}" for key in ("timezone", "repeat_contact") if record[key] is not None]
    lines += [f"as_of = {record['as_of']}"] if record["as_of"] is not None else []
    tables = {"default": record["default"]} | {
        f"channel.{json.dumps(name)}": values for name, values in record["channel"].items()
    }
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


CHANNELS = st.builds(
    lambda durations, *flags: ChannelSettings(*sorted(durations), *flags),
    st.tuples(*[st.integers(1, MAX_DURATION)] * 3),
    *[st.booleans()] * 3,
)


@given(
    st.builds(
        Settings,
        default=CHANNELS,
        channels=st.dictionaries(st.text("abc é.-_'", min_size=1, max_size=5), CHANNELS, max_size=3),
        repeat_contact=st.none() | st.integers(1, MAX_DURATION),
        timezone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]),
        as_of=st.none() | st.integers(0, MAX_DURATION),
    )
)
def test_the_record_of_a_run_is_a_care_toml(settings: Settings) -> None:
    """What `runs` keeps is JSON, and gives the same settings when it is read again."""
    record = json.loads(json.dumps(settings_record(settings)))
    again = load_settings(adapter_defaults=tomllib.loads(as_toml(record))).settings
    assert again == settings
