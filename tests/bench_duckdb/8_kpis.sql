-- The statistics by hour, rolled up to days, weeks and months, and the KPIs that are made of them.
--
-- A cell is one integer, ((hour - first hour) * pairs + pair) * 2 + is_opened, so that groups are found by a perfect
-- hash. An hour is one of UTC, which is right for zones that are whole hours off; its day, week and month are local.

CREATE TABLE hours AS
WITH
bounds AS (
    SELECT min(o) >> 4 AS low, getvariable('as_of') AS high FROM events
),
local AS (
    -- 800 hours on either side: more than a month, so that every window has a beginning and an end.
    SELECT h, timezone(getvariable('timezone'), make_timestamptz(h * 3600000000))::DATE AS day
    FROM (SELECT unnest(range(low // 3600000000 - 800, high // 3600000000 + 800)) AS h FROM bounds)
),
days AS (
    SELECT day, min(h) AS h FROM local GROUP BY day
)
SELECT
    (local.h - (SELECT low // 3600000000 FROM bounds))::INTEGER AS hour,
    local.h,
    day.h AS day_h, day_end.h AS day_end_h,
    week.h AS week_h, week_end.h AS week_end_h,
    month.h AS month_h, month_end.h AS month_end_h
FROM local
JOIN days day ON day.day = local.day
JOIN days day_end ON day_end.day = local.day + 1
JOIN days week ON week.day = date_trunc('week', local.day)::DATE
JOIN days week_end ON week_end.day = date_trunc('week', local.day)::DATE + 7
JOIN days month ON month.day = date_trunc('month', local.day)::DATE
JOIN days month_end ON month_end.day = (date_trunc('month', local.day) + INTERVAL 1 MONTH)::DATE
WHERE local.h BETWEEN (SELECT low // 3600000000 FROM bounds) AND (SELECT high // 3600000000 FROM bounds);

CREATE TABLE pairs AS
SELECT
    (row_number() OVER ())::INTEGER - 1 AS pair, account_id, channel
FROM (SELECT unnest(list_prepend(NULL, enum_range(NULL::account_word)::VARCHAR[])) AS account_id),
     (SELECT unnest(enum_range(NULL::channel_word)::VARCHAR[]) AS channel);
