-- Facts of each conversation, gathered at its last event: firsts and lasts, and running counts whose difference to the
-- conversation before is the count.

CREATE TABLE facts AS
WITH
seen AS (
    SELECT
        r, o, k, ch, ac, ag, te, topic, subtopic, priority, "language", number, splits, is_first, is_start,
        lag(ch) OVER () AS ch_before,
        lead(is_start, 1, true) OVER () AS is_last,
        last_value(CASE WHEN is_start THEN r END IGNORE NULLS) OVER so_far AS start_r,
        last_value(CASE WHEN k IN (0, 6, 13, 14) THEN r END IGNORE NULLS) OVER so_far AS spoken_r,
        last_value(CASE WHEN k = 0 THEN r END IGNORE NULLS) OVER so_far AS message_r,
        last_value(CASE WHEN k IN (1, 10, 11) THEN r * 2 + (k <> 1)::INTEGER END IGNORE NULLS) OVER so_far AS cycle_rc,
        last_value(CASE WHEN k NOT IN (9, 12) THEN r END IGNORE NULLS) OVER so_far AS counted_r,
        last_value(CASE WHEN k = 3 AND ag IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS assigned_r,
        last_value(CASE WHEN k = 3 AND ag IS NOT NULL THEN o END IGNORE NULLS) OVER so_far AS assigned_o,
        last_value(CASE WHEN k = 3 AND ag IS NOT NULL THEN ag END IGNORE NULLS) OVER so_far AS assigned_ag,
        last_value(CASE WHEN k = 3 AND te IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS assigned_te_r,
        last_value(CASE WHEN k = 3 THEN te END IGNORE NULLS) OVER so_far AS assigned_te,
        last_value(CASE WHEN k = 6 AND ag IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS human_ag_r,
        last_value(CASE WHEN k = 6 THEN ag END IGNORE NULLS) OVER so_far AS human_ag,
        last_value(CASE WHEN k = 6 AND te IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS human_te_r,
        last_value(CASE WHEN k = 6 THEN te END IGNORE NULLS) OVER so_far AS human_te,
        last_value(topic IGNORE NULLS) OVER so_far AS last_topic,
        last_value(CASE WHEN topic IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS topic_r,
        last_value(subtopic IGNORE NULLS) OVER so_far AS last_subtopic,
        last_value(CASE WHEN subtopic IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS subtopic_r,
        last_value(priority IGNORE NULLS) OVER so_far AS last_priority,
        last_value(CASE WHEN priority IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS priority_r,
        last_value("language" IGNORE NULLS) OVER so_far AS last_language,
        last_value(CASE WHEN "language" IS NOT NULL THEN r END IGNORE NULLS) OVER so_far AS language_r
    FROM story
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
before AS (
    SELECT
        *,
        k IN (9, 12) AND coalesce(lag(spoken_r) OVER () < start_r, true) AS is_stray,
        coalesce(message_r >= start_r, false) AS has_message,
        k = 0 AND coalesce(lag(message_r) OVER () < start_r, true) AS is_first_message,
        k NOT IN (9, 12) AND coalesce(lag(counted_r) OVER () < start_r, true) AS begins,
        k IN (0, 6, 13, 14) AND coalesce(lag(spoken_r) OVER () < start_r, true) AS is_first_spoken,
        k = 3 AND coalesce(
            (lag(assigned_r) OVER () >= start_r AND lag(assigned_ag) OVER () <> ag), false)
          OR k = 3 AND coalesce(
            (lag(assigned_te_r) OVER () >= start_r AND lag(assigned_te) OVER () <> te), false) AS is_transfer,
        k = 6 AND coalesce(lag(human_ag_r) OVER () >= start_r AND lag(human_ag) OVER () <> ag, false) AS is_other_agent,
        NOT is_start AND ch <> ch_before AS is_other_channel
    FROM seen
),
firsts AS (
    SELECT
        *,
        last_value(CASE WHEN is_first_message THEN o END IGNORE NULLS) OVER so_far AS first_message_o,
        last_value(CASE WHEN is_first_message THEN ch END IGNORE NULLS) OVER so_far AS first_message_ch,
        last_value(CASE WHEN begins THEN o END IGNORE NULLS) OVER so_far AS begin_o,
        last_value(CASE WHEN begins THEN ch END IGNORE NULLS) OVER so_far AS begin_ch,
        last_value(CASE WHEN begins THEN r END IGNORE NULLS) OVER so_far AS begin_r,
        last_value(CASE WHEN is_first_spoken THEN r END IGNORE NULLS) OVER so_far AS first_spoken_r,
        last_value(CASE WHEN k = 6 AND has_message THEN r END IGNORE NULLS) OVER so_far AS human_r,
        last_value(CASE WHEN k = 6 AND has_message THEN o END IGNORE NULLS) OVER so_far AS human_o,
        last_value(CASE WHEN k IN (6, 13) AND has_message THEN r END IGNORE NULLS) OVER so_far AS reply_r,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN r END IGNORE NULLS) OVER so_far AS rating_r,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN o END IGNORE NULLS) OVER so_far AS rating_o,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN number END IGNORE NULLS) OVER so_far AS rating
    FROM before
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
responses AS (
    SELECT
        *,
        k = 6 AND has_message AND coalesce(lag(human_r) OVER () < start_r, true) AS is_response,
        k IN (6, 13) AND has_message AND coalesce(lag(reply_r) OVER () < start_r, true) AS is_first_reply
    FROM firsts
),
totals AS (
    SELECT
        *,
        last_value(CASE WHEN is_response THEN o END IGNORE NULLS) OVER so_far AS response_o,
        last_value(CASE WHEN is_response THEN CASE WHEN assigned_r >= start_r THEN assigned_o ELSE -1 END END IGNORE NULLS) OVER so_far AS answer_from_o,
        last_value(CASE WHEN is_first_reply THEN o END IGNORE NULLS) OVER so_far AS first_reply_o,
        count(*) FILTER (is_first) OVER so_far AS key_number,
        count(*) FILTER (is_start) OVER so_far AS conversation,
        count(*) FILTER (is_stray) OVER so_far AS strays,
        count(*) FILTER (k = 0) OVER so_far AS messages,
        count(*) FILTER (k = 6) OVER so_far AS humans,
        count(*) FILTER (k = 6 AND has_message) OVER so_far AS responses,
        count(*) FILTER (k = 6 AND ag IS NOT NULL) OVER so_far AS named,
        count(*) FILTER (k = 13) OVER so_far AS bots,
        count(*) FILTER (k = 14) OVER so_far AS automated,
        count(*) FILTER (k IN (6, 13, 14) AND NOT has_message) OVER so_far AS proactive,
        count(*) FILTER (is_transfer) OVER so_far AS transfers,
        count(*) FILTER (k = 4) OVER so_far AS escalations,
        count(*) FILTER (k = 2) OVER so_far AS handoffs,
        count(*) FILTER (k = 8) OVER so_far AS notes,
        count(*) FILTER (is_other_agent) OVER so_far AS other_agents,
        count(*) FILTER (is_other_channel) OVER so_far AS other_channels
    FROM responses
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
)
SELECT
    conversation, key_number, begin_r, first_spoken_r, ac, splits,
    coalesce(spoken_r >= start_r, false) AS is_conversation,
    has_message,
    begin_o >> 4 AS started_us,
    o >> 4 AS last_us,
    CASE WHEN has_message THEN first_message_ch ELSE begin_ch END AS ch,
    CASE WHEN has_message THEN first_message_o ELSE begin_o END >> 4 AS opened_us,
    CASE WHEN human_ag_r >= start_r THEN human_ag WHEN assigned_r >= start_r THEN assigned_ag END AS ag,
    CASE WHEN human_te_r >= start_r THEN human_te WHEN assigned_te_r >= start_r THEN assigned_te END AS te,
    CASE WHEN topic_r >= start_r THEN last_topic END AS topic,
    CASE WHEN subtopic_r >= start_r THEN last_subtopic END AS subtopic,
    CASE WHEN priority_r >= start_r THEN last_priority END AS priority,
    CASE WHEN language_r >= start_r THEN last_language END AS "language",
    CASE WHEN human_r >= start_r THEN response_o >> 4 END AS response_us,
    CASE WHEN human_r >= start_r THEN human_o >> 4 END AS last_human_us,
    CASE WHEN human_r >= start_r AND answer_from_o >= 0 THEN answer_from_o >> 4 END AS assigned_us,
    CASE WHEN reply_r >= start_r THEN first_reply_o >> 4 END AS first_reply_us,
    CASE WHEN rating_r >= start_r THEN rating_o >> 4 END AS rated_us,
    CASE WHEN rating_r >= start_r THEN rating END AS csat_score,
    coalesce(cycle_rc >> 1 >= start_r AND cycle_rc & 1 = 1, false) AS was_closed,
    r + 1 AS events, strays, messages, humans, responses, named, bots, automated, proactive, transfers, escalations, handoffs, notes,
    other_agents, other_channels
FROM totals
WHERE is_last;
