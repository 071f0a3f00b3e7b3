-- Turns: a turn is complete at the event that ends it, else at its conversation's last event, so that running values
-- hold all that is said of it there.
--
-- turn_rows: rows where a turn ends or stays waiting, further messages of a turn (is_further), and other changes of
-- being due. Numbers of conversations and turns count from 1 through the whole table.

CREATE TABLE turn_rows AS
WITH
seen AS (
    SELECT
        r, o, k, ch, ac, ag, is_start,
        count(*) FILTER (is_start) OVER so_far AS conversation,
        count(*) FILTER (k = 0) OVER so_far AS messages,
        last_value(CASE WHEN is_start THEN r END IGNORE NULLS) OVER so_far AS start_r,
        last_value(CASE WHEN k IN (0, 6, 10, 11) THEN r * 16 + k END IGNORE NULLS) OVER so_far AS turn_rk
    FROM story
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
waits AS (
    SELECT
        * EXCLUDE (turn_rk, is_start),
        coalesce(before_rk >> 4 >= start_r AND before_rk & 15 = 0, false) AS is_waiting,
        is_last AND coalesce(turn_rk >> 4 >= start_r AND turn_rk & 15 = 0, false) AS stays_waiting
    FROM (SELECT *, lag(turn_rk) OVER () AS before_rk, lead(is_start, 1, true) OVER () AS is_last FROM seen)
),
kinds AS (
    SELECT
        *,
        k = 0 AND NOT is_waiting AS begins,
        is_waiting AND k IN (6, 10, 11) AS ends,
        is_waiting AND k = 13 AS is_bot,
        is_waiting AND k = 2 AS is_handoff
    FROM waits
),
inside AS (
    SELECT
        *,
        count(*) FILTER (begins) OVER so_far AS turn,
        last_value(CASE WHEN begins THEN r END IGNORE NULLS) OVER so_far AS begin_r,
        last_value(CASE WHEN begins THEN o END IGNORE NULLS) OVER so_far AS begin_o,
        last_value(CASE WHEN begins THEN ch END IGNORE NULLS) OVER so_far AS begin_ch,
        last_value(CASE WHEN begins THEN messages END IGNORE NULLS) OVER so_far AS begin_messages,
        last_value(CASE WHEN is_bot THEN r END IGNORE NULLS) OVER so_far AS bot_r,
        last_value(CASE WHEN is_handoff THEN r END IGNORE NULLS) OVER so_far AS handoff_r
    FROM kinds
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
dues AS (
    SELECT
        *,
        is_bot AND coalesce(lag(bot_r) OVER () < begin_r, true) AS is_first_bot,
        CASE WHEN k = 0 OR is_handoff THEN true WHEN is_bot THEN coalesce(handoff_r > begin_r, false) END AS due
    FROM inside
),
filled AS (
    SELECT
        *,
        last_value(due IGNORE NULLS) OVER so_far AS is_due,
        last_value(CASE WHEN is_first_bot THEN r END IGNORE NULLS) OVER so_far AS first_bot_r,
        last_value(CASE WHEN is_first_bot THEN o END IGNORE NULLS) OVER so_far AS first_bot_o
    FROM dues
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
changes AS (
    SELECT
        *,
        CASE
            WHEN begins THEN 0
            WHEN is_waiting AND due AND NOT was_due THEN 1
            WHEN is_waiting AND was_due AND (ends OR NOT due) THEN -1
            ELSE 0
        END::TINYINT AS due_change
    FROM (SELECT *, lag(is_due) OVER () AS was_due FROM filled)
)
SELECT
    conversation, turn, o, k, ch, ac,
    CASE WHEN k = 6 THEN ag END AS ag,
    begin_o, begin_ch,
    CASE WHEN first_bot_r > begin_r THEN first_bot_o >> 4 END AS bot_us,
    (messages - begin_messages + 1)::INTEGER AS message_count,
    ends, stays_waiting, is_due, due_change,
    k = 0 AND NOT begins AS is_further
FROM changes
WHERE ends OR stays_waiting OR due_change <> 0 OR (k = 0 AND NOT begins);

CREATE TABLE turn_facts AS
WITH
whole AS (
    SELECT
        conversation, turn, begin_o >> 4 AS started_us, begin_ch AS ch, ac,
        CASE WHEN ends THEN o >> 4 END AS ended_us,
        CASE WHEN ends THEN k END AS end_k,
        CASE WHEN ends THEN ag END AS ag,
        bot_us, message_count,
        (ends AND k = 6) OR bot_us IS NOT NULL AS is_responded,
        stays_waiting AND is_due AS is_left_due
    FROM turn_rows
    WHERE ends OR stays_waiting
),
numbered AS (
    SELECT
        * EXCLUDE (is_new),
        turn - last_value(CASE WHEN is_new THEN turn END IGNORE NULLS) OVER (ROWS UNBOUNDED PRECEDING) + 1
            AS turn_number
    FROM (SELECT *, conversation IS DISTINCT FROM lag(conversation) OVER () AS is_new FROM whole)
)
SELECT *, is_responded OR end_k IS NULL OR NOT (end_k = 10 OR turn_number > 1) AS needs_reply FROM numbered;
