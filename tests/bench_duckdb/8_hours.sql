-- The counts and sums of every hour, rolled up to days, weeks and months.
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
SELECT (ch * getvariable('account_count') + ac)::INTEGER AS pair, account_id, channel
FROM
    (SELECT unnest(range(0, getvariable('account_count'))) AS ac,
            unnest(list_prepend(NULL, enum_range(NULL::account_word)::VARCHAR[])) AS account_id),
    (SELECT unnest(range(0, getvariable('channel_count'))) AS ch,
            unnest(enum_range(NULL::channel_word)::VARCHAR[]) AS channel);

CREATE MACRO cell_at(us, ac, ch) AS (
    ((us // 3600000000 - getvariable('first_hour')) * getvariable('account_count') * getvariable('channel_count')
     + enum_code(ch)::BIGINT * getvariable('account_count') + coalesce(enum_code(ac)::BIGINT + 1, 0)) * 2
)::INTEGER;

CREATE TABLE conversation_values AS
SELECT
    cell_at(opened_us, ac, ch) AS opened_cell,
    cell_at(response_us, ac, ch) AS response_cell,
    cell_at(first_reply_us, ac, ch) AS reply_cell,
    CASE WHEN is_closed THEN cell_at(resolved_us, ac, ch) END AS resolved_cell,
    cell_at(handled_us, ac, ch) AS handled_cell,
    CASE WHEN has_message THEN cell_at(rated_us, ac, ch) END AS rated_cell,
    CASE WHEN has_message AND state = 0 THEN cell_at(leaves_us, ac, ch) END AS left_cell,
    has_message, is_proactive, is_closed,
    has_message AND state < 2 AS is_resolvable,
    response_us - opened_us AS first_response,
    first_reply_us - opened_us AS first_reply,
    CASE WHEN assigned_us IS NOT NULL THEN response_us - greatest(opened_us, assigned_us) END AS answer,
    CASE WHEN is_closed THEN resolved_us - opened_us END AS resolution,
    CASE WHEN is_closed THEN resolved_us - opened_us + round(coalesce(wrap_up, 0) * 1e6)::BIGINT END AS handle,
    CASE WHEN is_closed THEN coalesce(engaged, 0) + round(coalesce(wrap_up, 0) * 1e6)::BIGINT END AS engaged,
    CASE WHEN is_closed THEN hold END AS hold,
    handled_us IS NOT NULL AND is_first_contact AS is_first_contact,
    handled_us IS NOT NULL AND is_one_touch AS is_one_touch,
    handled_us IS NOT NULL AND reopenings > 0 AS is_reopened,
    handled_us IS NOT NULL AND transfers > 0 AS is_transferred,
    handled_us IS NOT NULL AND escalations > 0 AS is_escalated,
    CASE WHEN has_message THEN csat_score END AS score,
    messages, humans, bots, needs_reply, responded, answered
FROM conversations LEFT JOIN turn_sums USING (conversation) LEFT JOIN wrap_ups USING (conversation);

CREATE TABLE turn_values AS
SELECT
    cell_at(t.started_us, t.ac, t.ch) AS started_cell,
    CASE WHEN end_k = 6 THEN cell_at(ended_us, t.ac, t.ch) END AS answered_cell,
    CASE WHEN end_k = 6 THEN cell_at(opened_us, c.ac, c.ch) + 1 END AS opened_cell,
    CASE WHEN is_left_due THEN cell_at(leaves_us, t.ac, t.ch) END AS left_cell,
    CASE WHEN end_k = 6 THEN ended_us - t.started_us END AS wait,
    needs_reply, is_responded, end_k = 6 AS is_answered
FROM turn_facts t JOIN conversations c USING (conversation);

-- One small aggregate for each place where numbers fall, joined by cell: summing a UNION ALL of all 36 columns is
-- slower.
CREATE TABLE hour_sums AS
WITH
spoken AS MATERIALIZED (
    SELECT
        cell_at(o >> 4, ac, ch) AS cell,
        count(*) FILTER (k = 0) AS message_count,
        count(*) FILTER (k = 6) AS reply_count,
        count(*) FILTER (k = 13) AS bot_reply_count
    FROM events WHERE k IN (0, 6, 13) GROUP BY cell
),
first_messages AS MATERIALIZED (
    SELECT
        started_cell AS cell,
        count(*) AS turns,
        count(*) FILTER (needs_reply) AS needing,
        count(*) FILTER (is_responded) AS responded,
        count(*) FILTER (is_answered) AS answered
    FROM turn_values GROUP BY cell
),
further_messages AS MATERIALIZED (
    SELECT
        cell_at(r.o >> 4, r.ac, r.ch) AS cell,
        count(*) FILTER (needs_reply) AS more_needing,
        count(*) FILTER (is_responded) AS more_responded,
        count(*) FILTER (end_k = 6) AS more_answered
    FROM turn_rows r JOIN turn_facts USING (turn) WHERE is_further GROUP BY cell
),
due_changes AS MATERIALIZED (
    SELECT
        cell_at(o >> 4, ac, begin_ch) AS cell,
        count(*) FILTER (due_change = 1) AS due_again,
        count(*) FILTER (due_change = -1) AS due_no_more
    FROM turn_rows WHERE due_change <> 0 GROUP BY cell
),
left_due AS MATERIALIZED (
    SELECT left_cell AS cell, count(*) AS left_due FROM turn_values WHERE left_cell IS NOT NULL GROUP BY cell
),
answered AS MATERIALIZED (
    SELECT answered_cell AS cell, count(*) AS answered_turn_count, sum(wait)::BIGINT AS sum_reply_seconds
    FROM turn_values WHERE is_answered GROUP BY cell
    UNION ALL
    SELECT opened_cell, count(*), sum(wait)::BIGINT FROM turn_values WHERE is_answered GROUP BY opened_cell
),
moves AS MATERIALIZED (
    SELECT
        cell_at(o >> 4, ac, ch) AS cell,
        count(*) FILTER (move = 1) AS opened_again,
        count(*) FILTER (move = -1) AS closed
    FROM lives WHERE move <> 0 GROUP BY cell
),
left_open AS MATERIALIZED (
    SELECT left_cell AS cell, count(*) AS left_open FROM conversation_values WHERE left_cell IS NOT NULL GROUP BY cell
),
responses AS MATERIALIZED (
    SELECT
        response_cell AS cell,
        count(*) AS first_response_count, sum(first_response)::BIGINT AS sum_first_response_seconds,
        count(answer) AS answer_count, sum(answer)::BIGINT AS sum_answer_seconds
    FROM conversation_values WHERE response_cell IS NOT NULL GROUP BY cell
    UNION ALL
    SELECT opened_cell + 1, count(*), sum(first_response)::BIGINT, count(answer), sum(answer)::BIGINT
    FROM conversation_values WHERE response_cell IS NOT NULL GROUP BY opened_cell
),
replies AS MATERIALIZED (
    SELECT reply_cell AS cell, count(*) AS first_reply_count, sum(first_reply)::BIGINT AS sum_first_reply_seconds
    FROM conversation_values WHERE reply_cell IS NOT NULL GROUP BY cell
    UNION ALL
    SELECT opened_cell + 1, count(*), sum(first_reply)::BIGINT
    FROM conversation_values WHERE reply_cell IS NOT NULL GROUP BY opened_cell
),
resolutions AS MATERIALIZED (
    SELECT
        resolved_cell AS cell,
        count(*) AS resolved_count, sum(handle)::BIGINT AS sum_handle_seconds,
        sum(engaged)::BIGINT AS sum_engaged_seconds, sum(hold)::BIGINT AS sum_hold_seconds,
        sum(resolution)::BIGINT AS sum_resolution_seconds
    FROM conversation_values WHERE is_closed GROUP BY cell
    UNION ALL
    SELECT
        opened_cell + 1,
        count(*), sum(handle)::BIGINT, sum(engaged)::BIGINT, sum(hold)::BIGINT, sum(resolution)::BIGINT
    FROM conversation_values WHERE is_closed GROUP BY opened_cell
),
handled AS MATERIALIZED (
    SELECT
        handled_cell AS cell,
        count(*) AS handled_count,
        count(*) FILTER (is_first_contact) AS first_contact_resolution_count,
        count(*) FILTER (is_one_touch) AS one_touch_count,
        count(*) FILTER (is_reopened) AS reopened_count,
        count(*) FILTER (is_transferred) AS transferred_count,
        count(*) FILTER (is_escalated) AS escalated_count
    FROM conversation_values WHERE handled_cell IS NOT NULL GROUP BY cell
    UNION ALL
    SELECT
        opened_cell + 1,
        count(*),
        count(*) FILTER (is_first_contact),
        count(*) FILTER (is_one_touch),
        count(*) FILTER (is_reopened),
        count(*) FILTER (is_transferred),
        count(*) FILTER (is_escalated)
    FROM conversation_values WHERE handled_cell IS NOT NULL GROUP BY opened_cell
),
rated AS MATERIALIZED (
    SELECT
        rated_cell AS cell,
        count(*) AS rating_count, sum(round(score * 1e6)::BIGINT)::BIGINT AS sum_csat,
        count(*) FILTER (score >= 4) AS satisfied_count
    FROM conversation_values WHERE rated_cell IS NOT NULL GROUP BY cell
    UNION ALL
    SELECT opened_cell + 1, count(*), sum(round(score * 1e6)::BIGINT)::BIGINT, count(*) FILTER (score >= 4)
    FROM conversation_values WHERE rated_cell IS NOT NULL GROUP BY opened_cell
),
openings AS MATERIALIZED (
    SELECT
        opened_cell AS cell,
        count(*) FILTER (has_message) AS conversation_count,
        count(*) FILTER (is_proactive) AS proactive_count,
        count(*) FILTER (is_resolvable) AS resolvable_count,
        count(*) FILTER (is_closed) AS resolvable_resolved_count,
        sum(messages)::BIGINT AS messages,
        sum(humans)::BIGINT AS humans,
        sum(bots)::BIGINT AS bots,
        sum(needs_reply)::BIGINT AS needs_reply,
        sum(responded)::BIGINT AS responded,
        sum(answered)::BIGINT AS answered
    FROM conversation_values GROUP BY cell
),
opened AS MATERIALIZED (
    SELECT
        cell, conversation_count, proactive_count, resolvable_count, resolvable_resolved_count,
        conversation_count AS opened_first,
        0 AS own_messages, 0 AS own_humans, 0 AS own_bots, 0 AS own_needing, 0 AS own_responded, 0 AS own_answered
    FROM openings
    UNION ALL
    SELECT
        cell + 1, conversation_count, proactive_count, resolvable_count, resolvable_resolved_count,
        0, messages, humans, bots, needs_reply, responded, answered
    FROM openings
),
cells AS (
    SELECT cell FROM spoken UNION SELECT cell FROM first_messages UNION SELECT cell FROM further_messages
    UNION SELECT cell FROM due_changes UNION SELECT cell FROM left_due UNION SELECT cell FROM answered
    UNION SELECT cell FROM moves UNION SELECT cell FROM left_open UNION SELECT cell FROM responses
    UNION SELECT cell FROM replies UNION SELECT cell FROM resolutions UNION SELECT cell FROM handled
    UNION SELECT cell FROM rated UNION SELECT cell FROM opened
),
joined AS (
    SELECT cell, coalesce(COLUMNS(* EXCLUDE (cell)), 0)
    FROM cells
    LEFT JOIN spoken USING (cell) LEFT JOIN first_messages USING (cell) LEFT JOIN further_messages USING (cell)
    LEFT JOIN due_changes USING (cell) LEFT JOIN left_due USING (cell) LEFT JOIN answered USING (cell)
    LEFT JOIN moves USING (cell) LEFT JOIN left_open USING (cell) LEFT JOIN responses USING (cell)
    LEFT JOIN replies USING (cell) LEFT JOIN resolutions USING (cell) LEFT JOIN handled USING (cell)
    LEFT JOIN rated USING (cell) LEFT JOIN opened USING (cell)
)
SELECT
    cell,
    message_count + own_messages AS message_count,
    reply_count + own_humans AS reply_count,
    bot_reply_count + own_bots AS bot_reply_count,
    conversation_count, proactive_count,
    first_response_count, sum_first_response_seconds,
    first_reply_count, sum_first_reply_seconds,
    answered_turn_count, sum_reply_seconds,
    answer_count, sum_answer_seconds,
    resolved_count, sum_handle_seconds, sum_engaged_seconds, sum_hold_seconds, sum_resolution_seconds,
    handled_count, first_contact_resolution_count, one_touch_count,
    reopened_count, transferred_count, escalated_count,
    needing + more_needing + own_needing AS needs_reply_message_count,
    responded + more_responded + own_responded AS responded_message_count,
    answered + more_answered + own_answered AS answered_message_count,
    resolvable_count, resolvable_resolved_count,
    rating_count, sum_csat, satisfied_count,
    opened_first + opened_again AS backlog_in_count,
    closed + left_open AS backlog_out_count,
    turns + due_again AS waiting_in_count,
    due_no_more + left_due AS waiting_out_count
FROM joined;

-- One row per cell of every grain; bp tells pair and basis (pair * 2 + is_opened).
CREATE TABLE sums AS
WITH
by_hour AS MATERIALIZED (
    SELECT
        'hour' AS grain, h, h + 1 AS end_h, cell % getvariable('cells_an_hour') AS bp,
        hour_sums.*, day_h, day_end_h, week_h, week_end_h, month_h, month_end_h
    FROM hour_sums JOIN hours ON hour = cell // getvariable('cells_an_hour')
),
by_day AS MATERIALIZED (
    SELECT
        'day' AS grain, day_h AS h, any_value(day_end_h) AS end_h, bp,
        any_value(COLUMNS('^(week|month)_.*')), sum(COLUMNS('_count$|^sum_'))::BIGINT
    FROM by_hour GROUP BY day_h, bp
),
by_week AS (
    SELECT 'week' AS grain, week_h AS h, any_value(week_end_h) AS end_h, bp, sum(COLUMNS('_count$|^sum_'))::BIGINT
    FROM by_day GROUP BY week_h, bp
),
by_month AS (
    SELECT 'month' AS grain, month_h AS h, any_value(month_end_h) AS end_h, bp, sum(COLUMNS('_count$|^sum_'))::BIGINT
    FROM by_day GROUP BY month_h, bp
)
SELECT * EXCLUDE (cell, day_h, day_end_h, week_h, week_end_h, month_h, month_end_h) FROM (
    FROM by_hour UNION ALL BY NAME FROM by_day UNION ALL BY NAME FROM by_week UNION ALL BY NAME FROM by_month
);
