-- Where conversations begin: one row per event, in the physical order of `events`.
--
-- A table is read back in the order in which it was written (preserve_insertion_order is on), so that a window without
-- PARTITION BY and ORDER BY sees the sorted events. DuckDB runs lag, lead, count and last_value in such windows as a
-- stream, without a second sort: 10 million rows take 0.05 s each. What lies in another key or conversation is told
-- by its place r: everything before r_of_start belongs to somebody else. Places are packed with what was there
-- (place * 16 + kind), -1 or -16 stands for none.
--
-- The max_open rule is decided in one pass: of the silences between max_idle and max_open after a resolved or
-- dismissed, the first one begins a conversation; a conversation that a gap began in between is not looked at.

CREATE TABLE starts AS
WITH
seen AS (
    SELECT
        rowid AS r, kh, o, k, splits,
        last_value(CASE WHEN k IN (0, 6, 13) THEN rowid END IGNORE NULLS) OVER so_far AS spoken_r,
        last_value(CASE WHEN k IN (0, 6, 13) THEN o END IGNORE NULLS) OVER so_far AS spoken_o,
        last_value(CASE WHEN k IN (0, 6, 10, 11) THEN rowid * 16 + k END IGNORE NULLS) OVER so_far AS turn_rk,
        last_value(CASE WHEN k IN (1, 10, 11) THEN rowid * 16 + k END IGNORE NULLS) OVER so_far AS cycle_rk,
        last_value(CASE WHEN k = 13 THEN rowid END IGNORE NULLS) OVER so_far AS bot_r,
        last_value(CASE WHEN k = 2 THEN rowid END IGNORE NULLS) OVER so_far AS handoff_r,
        last_value(CASE WHEN k NOT IN (9, 12) THEN rowid END IGNORE NULLS) OVER so_far AS counted_r
    FROM events
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
before AS (
    SELECT
        r, o, k,
        kh IS DISTINCT FROM lag(kh) OVER () AS is_first,
        (o >> 4) - (lag(o) OVER () >> 4) AS silence,
        lag(splits) OVER () AS splits,
        lag(spoken_r, 1, -1) OVER () AS spoken_r,
        lag(spoken_o) OVER () AS spoken_o,
        coalesce(lag(turn_rk) OVER (), -16) AS turn_rk,
        coalesce(lag(cycle_rk) OVER (), -16) AS cycle_rk,
        coalesce(lag(bot_r) OVER (), -1) AS bot_r,
        coalesce(lag(handoff_r) OVER (), -1) AS handoff_r,
        coalesce(lag(counted_r) OVER (), -1) AS counted_r
    FROM seen
),
silences AS (
    SELECT
        *,
        is_first OR silence > CASE WHEN splits THEN getvariable('max_idle') ELSE getvariable('max_open') END AS is_sure,
        NOT is_first AND NOT splits AND silence > getvariable('max_idle') AND silence <= getvariable('max_open')
            AND cycle_rk & 15 >= 10 AS is_open_question
    FROM before
),
questions AS (
    SELECT
        *,
        last_value(CASE WHEN is_sure THEN r END IGNORE NULLS) OVER so_far AS sure_r,
        last_value(CASE WHEN is_open_question THEN r END IGNORE NULLS) OVER so_far AS question_r
    FROM silences
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
silent AS (
    SELECT
        * EXCLUDE (question_r),
        is_sure OR (is_open_question AND cycle_rk >> 4 >= sure_r
            AND coalesce(lag(question_r) OVER (), -1) <= cycle_rk >> 4) AS is_silent
    FROM questions
),
segments AS (
    SELECT *, last_value(CASE WHEN is_silent THEN r END IGNORE NULLS) OVER (ROWS UNBOUNDED PRECEDING) AS segment_r
    FROM silent
),
waits AS (
    SELECT
        *,
        turn_rk >> 4 >= segment_r AND turn_rk & 15 = 0 AS is_waiting,
        k NOT IN (9, 12) AND counted_r < segment_r AS is_first_counted
    FROM segments
),
bases AS (
    SELECT
        *,
        last_value(CASE WHEN k = 0 AND NOT is_waiting THEN r END IGNORE NULLS) OVER so_far AS run_r,
        last_value(CASE WHEN is_first_counted THEN o END IGNORE NULLS) OVER so_far AS counted_o
    FROM waits
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
)
SELECT
    is_first,
    is_silent OR (
        splits AND k IN (0, 6, 13)
        AND (o >> 4) - (CASE WHEN spoken_r >= segment_r THEN spoken_o ELSE counted_o END >> 4) > getvariable('gap')
        AND NOT (is_waiting AND (k <> 0 OR bot_r < turn_rk >> 4 OR handoff_r > run_r))
    ) AS is_start
FROM bases;

CREATE VIEW story AS
SELECT row_number() OVER () - 1 AS r, events.*, starts.* FROM events POSITIONAL JOIN starts;
