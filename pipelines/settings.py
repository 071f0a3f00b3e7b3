"""Settings of a run: built-in defaults, the source's own, care.toml and the command line, checked and merged."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.durations import format_duration, parse_duration
from transforms.errors import UserError
from transforms.settings import ChannelSettings, Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_AS_OF = datetime(2101, 1, 1, tzinfo=UTC)
"""The end of the range of occurred_at."""

DURATIONS = ("gap", "max_idle", "max_open")
CHANNEL_KEYS = tuple(field.name for field in dataclasses.fields(ChannelSettings))
GLOBAL_KEYS = ("timezone", "as_of", "repeat_contact")

BUILT_IN = "default"
ADAPTER = "source"
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class ResolvedSettings:
    """Settings, and where each value came from.

    Attributes:
      settings: what the run uses.
      origins: by dotted key ("timezone", "default.gap", "channel.whatsapp.gap"): "default", "source" (what the
        source's format implies), "command line", or the file and the table or key in it.
      config_channels: channels with a table in care.toml.
    """

    settings: Settings
    origins: Mapping[str, str]
    config_channels: frozenset[str] = frozenset()


class _Value(NamedTuple):
    """A checked value and where it came from."""

    value: Any
    origin: str


class _Layer:
    """One source of settings in the shape of care.toml, and how its messages name a place in it."""

    def __init__(self, name: str, content: Mapping[str, Any], is_file: bool = False) -> None:
        self.name = name
        self.is_file = is_file
        self.globals: dict[str, _Value] = {}
        self.default: dict[str, _Value] = {}
        self.channels: dict[str, dict[str, _Value]] = {}
        for key, value in content.items():
            if key in GLOBAL_KEYS:
                self.globals[key] = _Value(_GLOBAL_CHECKS[key](value, self._place((), key)), self._origin(()))
            elif key == "default":
                self.default = self._channel_table(("default",), value)
            elif key == "channel":
                self.channels = {
                    channel: self._channel_table(("channel", channel), table)
                    for channel, table in self._table(("channel",), value, "one table per channel").items()
                }
            else:
                raise self._unknown((), key, (*GLOBAL_KEYS, "default", "channel"))

    def _place(self, table: tuple[str, ...], key: str) -> str:
        """How a message names a key."""
        if self.name == COMMAND_LINE:
            return f"--{'.'.join((*table, key)).replace('_', '-')}"
        return f"{self._origin(table)} {key}" if table else f"{self.name}: {key}"

    def _origin(self, table: tuple[str, ...]) -> str:
        """Where the values of a table come from."""
        return f"{self.name} [{_dotted(table)}]" if self.is_file and table else self.name

    def _table(self, table: tuple[str, ...], value: object, holds: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        place = f"{self.name}: {_dotted(table)}"
        raise UserError(f"{place}: expected a table [{_dotted(table)}] with {holds}, got {_shown(value)}.")

    def _channel_table(self, table: tuple[str, ...], value: object) -> dict[str, _Value]:
        if table == ("channel", ""):
            raise UserError(f'{self.name}: [channel.""]: expected the name of a channel, got empty text; name it.')
        checked = {}
        for key, item in self._table(table, value, ", ".join(CHANNEL_KEYS)).items():
            if key not in CHANNEL_KEYS:
                raise self._unknown(table, key, CHANNEL_KEYS)
            check = _check_duration if key in DURATIONS else _check_flag
            checked[key] = _Value(check(item, self._place(table, key)), self._origin(table))
        return checked

    def _unknown(self, table: tuple[str, ...], key: str, allowed: tuple[str, ...]) -> UserError:
        place = self._place(table, _quoted(key))
        close = difflib.get_close_matches(key, allowed, n=1)
        if close:
            return UserError(f"{place}: no such setting; did you mean {close[0]}?")
        elsewhere = GLOBAL_KEYS if table else CHANNEL_KEYS
        if key in elsewhere:
            where = "above the first [table]" if table else "under [default] or [channel.NAME]"
            return UserError(f"{place}: it does not belong here; move {key} {where}.")
        return UserError(f"{place}: no such setting; expected one of {', '.join(allowed)}.")


def load_settings(
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    adapter_defaults: Mapping[str, Any] | None = None,
) -> ResolvedSettings:
    """Merges all settings; what comes later wins: built-in, the source's own, care.toml, the command line.

    Within one of them a channel's table stands above [default]; a [default] in care.toml also stands above what the
    source says of a channel. All three arguments have the shape of care.toml.

    Args:
      config: path of a care.toml.
      overrides: what the command line says; None as a value is "not said".
      adapter_defaults: what the source's format implies, such as {"default": {"has_life_cycle": False}}.

    Raises:
      UserError: a file that cannot be read or is no TOML, an unknown key, a value of the wrong type or out of range,
        an unknown time zone, durations of a channel that contradict each other.
    """
    said = {key: value for key, value in (overrides or {}).items() if value is not None}
    file = _Layer(str(config), {} if config is None else _read_toml(config), is_file=True)
    layers = (_Layer(ADAPTER, adapter_defaults or {}), file, _Layer(COMMAND_LINE, said))

    merged = {key: _Value(getattr(Settings(), key), BUILT_IN) for key in GLOBAL_KEYS}
    default = {key: _Value(getattr(ChannelSettings(), key), BUILT_IN) for key in CHANNEL_KEYS}
    channels: dict[str, dict[str, _Value]] = {name: dict(default) for layer in layers for name in layer.channels}
    for layer in layers:
        merged |= layer.globals
        for values in (default, *channels.values()):
            values |= layer.default
        for name, values in layer.channels.items():
            channels[name] |= values

    tables = {"default": default} | {f"channel.{name}": values for name, values in channels.items()}
    built = {table: _build_channel(table, values) for table, values in tables.items()}
    settings = Settings(
        default=built["default"],
        channels={name: built[f"channel.{name}"] for name in channels},
        **{key: value.value for key, value in merged.items()},
    )
    origins = {key: value.origin for key, value in merged.items()}
    origins |= {f"{table}.{key}": value.origin for table, values in tables.items() for key, value in values.items()}
    return ResolvedSettings(settings, origins, frozenset(file.channels))


def settings_record(settings: Settings) -> dict[str, Any]:
    """Settings as JSON-able values in the shape and words of care.toml; durations are texts such as "30d"."""
    return {
        "timezone": settings.timezone,
        "as_of": None if settings.as_of is None else format_as_of(settings.as_of),
        "repeat_contact": None if settings.repeat_contact is None else format_duration(settings.repeat_contact),
        "default": _channel_record(settings.default),
        "channel": {name: _channel_record(channel) for name, channel in settings.channels.items()},
    }


def format_as_of(as_of: int) -> str:
    """Microseconds since the epoch as ISO 8601 in UTC: 2026-02-01T00:00:00Z."""
    return (EPOCH + timedelta(microseconds=as_of)).isoformat().replace("+00:00", "Z")


def _channel_record(channel: ChannelSettings) -> dict[str, Any]:
    record = dataclasses.asdict(channel)
    return record | {key: format_duration(record[key]) for key in DURATIONS}


def _build_channel(table: str, values: Mapping[str, _Value]) -> ChannelSettings:
    """One channel's settings, after its durations were held against each other."""
    for shorter, longer in (("gap", "max_idle"), ("max_idle", "max_open")):
        low, high = values[shorter], values[longer]
        if low.value > high.value:
            raise UserError(
                f"Settings of [{table}]: expected {shorter} <= {longer}, got {shorter} = "
                f"{format_duration(low.value)} ({low.origin}) and {longer} = {format_duration(high.value)} "
                f"({high.origin}); lower {shorter} or raise {longer}."
            )
    return ChannelSettings(**{key: value.value for key, value in values.items()})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte order mark in front, which TOML itself does not allow.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: expected a readable TOML file, got: {error.strerror}; check --config.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got another encoding at byte {error.start + 1}.") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:
        what, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        number = int(line[1]) if line else text.rstrip("\n").count("\n") + 1
        raise UserError(f"{path}, line {number}: expected TOML, got: {what[:1].lower()}{what[1:]}.") from None


def _check_duration(value: object, place: str) -> int:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UserError(f"{place}: {error}, got {_shown(value)}.") from None


def _check_repeat_contact(value: object, place: str) -> int:
    if value is False or value == "off":
        raise UserError(f"{place}: expected a duration, got {_shown(value)}; to switch it off leave the key out.")
    return _check_duration(value, place)


def _check_flag(value: object, place: str) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"{place}: expected true or false, got {_shown(value)}.")


def _check_timezone(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{place}: expected an IANA time zone such as "Europe/Berlin", got {_shown(value)}.')
    if value != "UTC":
        # "localtime" is whatever this machine is set to: the same run elsewhere would cut other days.
        zones = zoneinfo.available_timezones() - {"localtime"}
        if value not in zones:
            # Compared without case, and by the city alone too: "berlin" is most often what was meant.
            words = {zone.lower(): zone for zone in sorted(zones)}
            words |= {zone.rpartition("/")[2]: words[zone] for zone in list(words) if "/" in zone}
            # No guess at "GMT+1": the zone with the nearest name, Etc/GMT+1, lies an hour on the other side.
            has_offset = any(letter.isdigit() for letter in value)
            close = [] if has_offset else difflib.get_close_matches(value.lower().replace(" ", "_"), words, n=1)
            hint = f"; did you mean {words[close[0]]}?" if close else '; write it like "Europe/Berlin".'
            raise UserError(f"{place}: expected an IANA time zone, got {_shown(value)}{hint}")
    return value


def _check_as_of(value: object, place: str) -> int:
    wanted = "expected a date and time with an offset such as 2026-02-01T00:00:00Z"
    if not isinstance(value, datetime):
        quoted = isinstance(value, str) and re.fullmatch(r"\d{4}-.*(Z|[+-]\d\d:\d\d)", value)
        raise UserError(f"{place}: {wanted}, got {_shown(value)}{'; take the quotes away.' if quoted else '.'}")
    if value.tzinfo is None:
        raise UserError(f"{place}: {wanted}, got {value.isoformat()}; add Z or an offset.")
    if not EPOCH <= value <= LAST_AS_OF:
        raise UserError(f"{place}: expected a moment from 1970-01-01 to 2101-01-01, got {value.isoformat()}.")
    return (value - EPOCH) // timedelta(microseconds=1)


_GLOBAL_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "timezone": _check_timezone,
    "as_of": _check_as_of,
    "repeat_contact": _check_repeat_contact,
}

_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}


def _shown(value: object) -> str:
    """A value as TOML would write it, cut short, with its kind."""
    if isinstance(value, Mapping | list):
        return _KINDS[dict if isinstance(value, Mapping) else list]
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    kind = _KINDS.get(type(value), "a date or time")
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({kind})"


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)


def _dotted(table: tuple[str, ...]) -> str:
    return ".".join(_quoted(part) for part in table)
