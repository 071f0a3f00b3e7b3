"""Macros between moments and local times, in the zone of the run."""

from __future__ import annotations

from sinks.views import Macro

_ZONE = "(SELECT timezone FROM runs ORDER BY commit_id DESC LIMIT 1)"
_LOCAL = "CAST(CAST(moment AS VARCHAR) AS TIMESTAMP)"
_HAS_ZONE = r"regexp_matches(CAST(moment AS VARCHAR), ':.*(Z|[+-]\d\d(:?\d\d)?| [A-Za-z][A-Za-z_/]*)$')"

MOMENT_MACROS = (
    Macro(
        "local_time",
        "The local time of a moment in the zone of the run, without a zone.",
        f"(moment) AS timezone({_ZONE}, CAST(moment AS TIMESTAMPTZ))",
    ),
    Macro(
        "instant_of",
        "The moment that is meant: a date, or a time or text without a zone, is a local time of the run (where clocks "
        "show it twice, the first one).",
        f"(moment) AS CASE WHEN typeof(moment) = 'TIMESTAMP WITH TIME ZONE' OR {_HAS_ZONE} "
        "THEN CAST(moment AS TIMESTAMPTZ) ELSE (SELECT CASE "
        "WHEN timezone(zone, latest - INTERVAL 1 HOUR) = shown THEN latest - INTERVAL 1 HOUR "
        "WHEN timezone(zone, latest - INTERVAL 30 MINUTE) = shown THEN latest - INTERVAL 30 MINUTE ELSE latest END "
        "FROM (SELECT zone, latest, timezone(zone, latest) AS shown FROM ("
        f"SELECT timezone AS zone, timezone(timezone, {_LOCAL}) AS latest FROM runs ORDER BY commit_id DESC LIMIT 1"
        "))) END",
    ),
)
