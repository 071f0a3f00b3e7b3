-- Facts of each conversation, gathered at its last event: firsts and lasts, and running counts whose difference to the
-- conversation before is the count. Words are packed with their place: place * 2 ** 20 + code.

CREATE TABLE facts AS
WITH
seen AS (
    SELECT
        r, o, k, ch, ac, ag, te, topic, subtopic, priority, "language", number, splits, source_row, is_first, is_start,
        lag(ch) OVER () AS ch_before,
        lead(is_start, 1, true) OVER () AS is_last,
        last_value(CASE WHEN is_start THEN r END IGNORE NULLS) OVER so_far AS start_r,
        last_value(CASE WHEN k IN (0, 6, 13, 14) THEN r END IGNORE NULLS) OVER so_far AS spoken_r,
        last_value(CASE WHEN k = 0 THEN r END IGNORE NULLS) OVER so_far AS message_r,
        last_value(CASE WHEN k IN (1, 10, 11) THEN r * 2 + (k <> 1)::INTEGER END IGNORE NULLS) OVER so_far AS cycle_rc,
        last_value(CASE WHEN k NOT IN (9, 12) THEN r END IGNORE NULLS) OVER so_far AS counted_r,
        last_value(CASE WHEN k = 3 AND ag IS NOT NULL THEN o END IGNORE NULLS) OVER so_far AS assigned_o,
        last_value(CASE WHEN k = 3 THEN r * 1048576 + enum_code(ag) END IGNORE NULLS) OVER so_far AS assigned_ag,
        last_value(CASE WHEN k = 3 THEN r * 1048576 + enum_code(te) END IGNORE NULLS) OVER so_far AS assigned_te,
        last_value(CASE WHEN k = 6 THEN r * 1048576 + enum_code(ag) END IGNORE NULLS) OVER so_far AS human_ag,
        last_value(CASE WHEN k = 6 THEN r * 1048576 + enum_code(te) END IGNORE NULLS) OVER so_far AS human_te
    FROM story
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
),
before AS (
    SELECT
        *,
        start_r * 1048576 AS start_w,
        k IN (9, 12) AND coalesce(lag(spoken_r) OVER () < start_r, true) AS is_stray,
        coalesce(message_r >= start_r, false) AS has_message,
        k = 0 AND coalesce(lag(message_r) OVER () < start_r, true) AS is_first_message,
        k NOT IN (9, 12) AND coalesce(lag(counted_r) OVER () < start_r, true) AS begins,
        k IN (0, 6, 13, 14) AND coalesce(lag(spoken_r) OVER () < start_r, true) AS is_first_spoken,
        CASE WHEN k = 3 THEN lag(assigned_ag) OVER () END AS assigned_ag_before,
        CASE WHEN k = 3 THEN lag(assigned_te) OVER () END AS assigned_te_before,
        CASE WHEN k = 6 THEN lag(human_ag) OVER () END AS human_ag_before
    FROM seen
),
firsts AS (
    SELECT
        *,
        last_value(CASE WHEN NOT is_stray THEN r * 1048576 + enum_code(topic) END IGNORE NULLS) OVER so_far AS topic_w,
        last_value(CASE WHEN NOT is_stray THEN r * 1048576 + enum_code(subtopic) END IGNORE NULLS) OVER so_far
            AS subtopic_w,
        last_value(CASE WHEN NOT is_stray THEN r * 1048576 + enum_code(priority) END IGNORE NULLS) OVER so_far
            AS priority_w,
        last_value(CASE WHEN NOT is_stray THEN r * 1048576 + enum_code("language") END IGNORE NULLS) OVER so_far
            AS language_w,
        last_value(CASE WHEN is_first_message THEN o END IGNORE NULLS) OVER so_far AS first_message_o,
        last_value(CASE WHEN is_first_message THEN ch END IGNORE NULLS) OVER so_far AS first_message_ch,
        last_value(CASE WHEN begins THEN o END IGNORE NULLS) OVER so_far AS begin_o,
        last_value(CASE WHEN begins THEN ch END IGNORE NULLS) OVER so_far AS begin_ch,
        last_value(CASE WHEN begins THEN r END IGNORE NULLS) OVER so_far AS begin_r,
        last_value(CASE WHEN begins THEN source_row END IGNORE NULLS) OVER so_far AS begin_row,
        last_value(CASE WHEN is_first_spoken THEN r END IGNORE NULLS) OVER so_far AS first_spoken_r,
        last_value(CASE WHEN k = 6 AND has_message THEN r END IGNORE NULLS) OVER so_far AS human_r,
        last_value(CASE WHEN k = 6 AND has_message THEN o END IGNORE NULLS) OVER so_far AS human_o,
        last_value(CASE WHEN k IN (6, 13) AND has_message THEN r END IGNORE NULLS) OVER so_far AS reply_r,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN r END IGNORE NULLS) OVER so_far AS rating_r,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN o END IGNORE NULLS) OVER so_far AS rating_o,
        last_value(CASE WHEN k = 12 AND NOT is_stray THEN number END IGNORE NULLS) OVER so_far AS rating,
        count(*) FILTER (is_stray) OVER so_far AS strays,
        count(*) FILTER (
            (assigned_ag_before >= start_w AND assigned_ag_before & 1048575 <> enum_code(ag))
            OR (assigned_te_before >= start_w AND assigned_te_before & 1048575 <> enum_code(te))
        ) OVER so_far AS transfers,
        count(*) FILTER (human_ag_before >= start_w AND human_ag_before & 1048575 <> enum_code(ag)) OVER so_far
            AS other_agents,
        count(*) FILTER (NOT is_start AND ch <> ch_before) OVER so_far AS other_channels,
        count(*) FILTER (k = 6 AND has_message) OVER so_far AS responses,
        count(*) FILTER (k IN (6, 13, 14) AND NOT has_message) OVER so_far AS proactive
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
        last_value(
            CASE WHEN is_response THEN CASE WHEN assigned_ag >= start_w THEN assigned_o ELSE -1 END END IGNORE NULLS
        ) OVER so_far AS answer_from_o,
        last_value(CASE WHEN is_first_reply THEN o END IGNORE NULLS) OVER so_far AS first_reply_o,
        count(*) FILTER (is_first) OVER so_far AS key_number,
        count(*) FILTER (is_start) OVER so_far AS conversation,
        count(*) FILTER (k = 0) OVER so_far AS messages,
        count(*) FILTER (k = 6) OVER so_far AS humans,
        count(*) FILTER (k = 6 AND ag IS NOT NULL) OVER so_far AS named,
        count(*) FILTER (k = 13) OVER so_far AS bots,
        count(*) FILTER (k = 14) OVER so_far AS automated,
        count(*) FILTER (k = 4) OVER so_far AS escalations,
        count(*) FILTER (k = 2) OVER so_far AS handoffs,
        count(*) FILTER (k = 8) OVER so_far AS notes
    FROM responses
    WINDOW so_far AS (ROWS UNBOUNDED PRECEDING)
)
SELECT
    conversation, key_number, begin_r, begin_row, first_spoken_r, r AS last_r, ac, splits,
    coalesce(spoken_r >= start_r, false) AS is_conversation,
    has_message,
    begin_o >> 4 AS started_us,
    o >> 4 AS last_us,
    CASE WHEN has_message THEN first_message_ch ELSE begin_ch END AS ch,
    CASE WHEN has_message THEN first_message_o ELSE begin_o END >> 4 AS opened_us,
    (CASE WHEN human_ag >= start_w THEN human_ag WHEN assigned_ag >= start_w THEN assigned_ag END & 1048575)::INTEGER
        AS agent_code,
    (CASE WHEN human_te >= start_w THEN human_te WHEN assigned_te >= start_w THEN assigned_te END & 1048575)::INTEGER
        AS team_code,
    (CASE WHEN topic_w >= start_w THEN topic_w END & 1048575)::INTEGER AS topic_code,
    (CASE WHEN subtopic_w >= start_w THEN subtopic_w END & 1048575)::INTEGER AS subtopic_code,
    (CASE WHEN priority_w >= start_w THEN priority_w END & 1048575)::INTEGER AS priority_code,
    (CASE WHEN language_w >= start_w THEN language_w END & 1048575)::INTEGER AS language_code,
    CASE WHEN human_r >= start_r THEN response_o >> 4 END AS response_us,
    CASE WHEN human_r >= start_r THEN human_o >> 4 END AS last_human_us,
    CASE WHEN human_r >= start_r AND answer_from_o >= 0 THEN answer_from_o >> 4 END AS assigned_us,
    CASE WHEN reply_r >= start_r THEN first_reply_o >> 4 END AS first_reply_us,
    CASE WHEN rating_r >= start_r THEN rating_o >> 4 END AS rated_us,
    CASE WHEN rating_r >= start_r THEN rating END AS csat_score,
    coalesce(cycle_rc >> 1 >= start_r AND cycle_rc & 1 = 1, false) AS was_closed,
    strays, messages, humans, responses, named, bots, automated, proactive, transfers, escalations, handoffs, notes,
    other_agents, other_channels
FROM totals
WHERE is_last;

CREATE TABLE keys AS
SELECT
    conversation,
    CASE
        WHEN conversation_id IS NOT NULL THEN json_array(f.ac::VARCHAR, conversation_id)
        ELSE json_array(f.ac::VARCHAR, row.ch::VARCHAR, customer_id)
    END::VARCHAR AS conversation_key,
    make_timestamptz(started_us) AS started_at,
    customer_id,
    kh
FROM facts f
JOIN (SELECT rowid AS begin_row, kh, ch, conversation_id, customer_id FROM rows_read) row USING (begin_row)
WHERE is_conversation;
