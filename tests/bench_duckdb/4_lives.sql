-- The state machine: one row per conversation at its last event, and one per move into or out of open after the first
-- message.
--
-- A period runs from a conversation's start, or from the event that opened it again, to its close. Its close resolves,
-- dismisses, or (never_was: a pending reopening that nothing confirmed) leaves the state as it was; then the first
-- explicit resolved after a dismissal still resolves (mends).

CREATE TABLE lives AS
WITH
seen AS (
    SELECT
        r, o, k, ac, ch, is_start,
        count(*) FILTER (is_start) OVER so_far AS conversation,
        last_value(CASE WHEN is_start THEN r END IGNORE NULLS) OVER so_far AS start_r,
        last_value(CASE WHEN k IN (0, 1, 10, 11) THEN r * 16 + k END IGNORE NULLS) OVER so_far AS state_rk,
        last_value(CASE WHEN k = 0 THEN r END IGNORE NULLS) OVER so_far AS message_r,
        last_value(CASE WHEN k = 6 THEN r END IGNORE NULLS) OVER so_far AS human_r,
        last_value(CASE WHEN k IN (1, 6) THEN r END IGNORE NULLS) OVER so_far AS touch_r
    FROM story
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
before AS (
    SELECT
        * EXCLUDE (was_rk, message_r),
        NOT coalesce(was_rk >> 4 >= start_r AND was_rk & 15 >= 10, false) AS is_open,
        k = 0 AND coalesce(lag(message_r) OVER () < start_r, true) AS is_first_message
    FROM (
        SELECT
            *,
            lag(state_rk) OVER () AS was_rk,
            lead(is_start, 1, true) OVER () AS is_last,
            coalesce(lag(touch_r) OVER (), -1) AS touched_r
        FROM seen
    )
),
moves AS (
    SELECT *, k IN (0, 1) AND NOT is_open AS opens, k IN (10, 11) AND is_open AS closes FROM before
),
periods AS (
    SELECT
        *,
        last_value(
            CASE WHEN is_start OR opens THEN r * 2 + (opens AND k = 0 AND NOT is_first_message)::INTEGER END
            IGNORE NULLS
        ) OVER so_far AS period_rl,
        last_value(CASE WHEN is_first_message THEN r END IGNORE NULLS) OVER so_far AS first_message_r,
        last_value(CASE WHEN is_first_message THEN ch END IGNORE NULLS) OVER so_far AS first_message_ch,
        last_value(CASE WHEN k = 7 AND is_open THEN r * 2 + 1 WHEN k = 5 OR closes THEN r * 2 END IGNORE NULLS)
            OVER so_far AS hold_rh
    FROM moves
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
closes AS (
    SELECT
        *,
        closes AND period_rl & 1 = 1 AND coalesce(touch_r, -1) < period_rl >> 1 AS never_was,
        coalesce(first_message_r >= start_r AND human_r > greatest(first_message_r, period_rl >> 1), false)
            AS is_answered,
        coalesce(held_rh >> 1 >= start_r AND held_rh & 1 = 1, false) AS is_held
    FROM (SELECT *, lag(hold_rh) OVER () AS held_rh FROM periods)
),
outcomes AS (
    SELECT
        *,
        closes AND NOT never_was AS is_own,
        closes AND NOT never_was AND (k = 11 OR is_answered) AS resolves,
        k = 11 AND (never_was OR NOT closes) AS mends
    FROM closes
),
own AS (
    SELECT
        *,
        last_value(CASE WHEN is_own THEN r * 2 + resolves::INTEGER END IGNORE NULLS) OVER so_far AS own_rr,
        last_value(CASE WHEN mends THEN r END IGNORE NULLS) OVER so_far AS mend_r,
        last_value(CASE WHEN k = 7 AND is_open AND NOT is_held THEN o END IGNORE NULLS) OVER so_far AS held_o
    FROM outcomes
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
mended AS (
    SELECT
        *,
        resolves OR coalesce(mends AND was_rr >> 1 >= start_r AND was_rr & 1 = 0 AND mended_r < was_rr >> 1, false)
            AS is_resolution,
        CASE WHEN is_held AND (k = 5 OR closes) THEN (o >> 4) - (held_o >> 4) END AS hold
    FROM (
        SELECT *, lag(own_rr) OVER () AS was_rr, coalesce(lag(mend_r) OVER (), -1) AS mended_r FROM own
    )
),
decided AS (
    SELECT
        *,
        last_value(CASE WHEN is_resolution THEN r * 2 + 1 WHEN is_own THEN r * 2 END IGNORE NULLS) OVER so_far
            AS decided_rr,
        last_value(CASE WHEN is_resolution THEN o END IGNORE NULLS) OVER so_far AS resolved_o,
        last_value(CASE WHEN is_resolution THEN r END IGNORE NULLS) OVER so_far AS resolved_r
    FROM mended
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
reopenings AS (
    SELECT
        *,
        coalesce(
            decided_before >> 1 >= start_r AND decided_before & 1 = 1 AND (
                (k = 1 AND opens)
                OR (k IN (1, 6) AND is_open AND period_rl & 1 = 1 AND touched_r <= period_rl >> 1)
            ), false) AS is_reopening,
        is_resolution AND coalesce(resolved_before < start_r, true) AS is_first_resolution
    FROM (
        SELECT *, lag(decided_rr) OVER () AS decided_before, lag(resolved_r) OVER () AS resolved_before FROM decided
    )
),
totals AS (
    SELECT
        *,
        count(*) FILTER (is_reopening) OVER so_far AS reopenings,
        last_value(CASE WHEN is_first_resolution THEN o END IGNORE NULLS) OVER so_far AS first_resolved_o,
        last_value(CASE WHEN is_first_resolution THEN r END IGNORE NULLS) OVER so_far AS first_resolved_r,
        coalesce(sum(hold) OVER so_far, 0)::BIGINT AS holds
    FROM reopenings
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
)
SELECT
    conversation, o, ac, first_message_ch AS ch, is_last,
    CASE WHEN first_message_r >= start_r AND r > first_message_r THEN opens::TINYINT - closes::TINYINT ELSE 0 END
        AS move,
    CASE
        WHEN NOT coalesce(state_rk >> 4 >= start_r AND state_rk & 15 >= 10, false) THEN 0
        WHEN decided_rr & 1 = 1 THEN 1
        ELSE 2
    END::UTINYINT AS state,
    resolved_o >> 4 AS resolved_us,
    CASE WHEN first_resolved_r >= start_r THEN first_resolved_o >> 4 END AS first_resolved_us,
    reopenings,
    holds
FROM totals
WHERE is_last OR (first_message_r >= start_r AND r > first_message_r AND (opens OR closes));
