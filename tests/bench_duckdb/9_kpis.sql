-- Histograms of every window, and the KPIs that are made of sums and histograms.

-- A histogram bucket is 0 for 0, else 1 + 64 * exponent + the first six bits of the mantissa. log2 is exact enough:
-- below 2 ** 46 a whole number and the next power of two have different doubles as logarithms.
CREATE MACRO bucket(us) AS (
    CASE WHEN us > 0 THEN (floor(log2(us))::INTEGER - 1) * 64 + 1 + ((us * 64) >> floor(log2(us))::INTEGER) ELSE 0 END
);

-- Every value as one integer, (cell * 5 + histogram) * 4096 + bucket, sorted once: the values of a cell lie together.
CREATE TABLE ranked AS
SELECT place FROM (
    SELECT (response_cell::BIGINT * 5 + 0) * 4096 + bucket(first_response) AS place
    FROM conversation_values WHERE response_cell IS NOT NULL
    UNION ALL
    SELECT ((opened_cell + 1)::BIGINT * 5 + 0) * 4096 + bucket(first_response)
    FROM conversation_values WHERE response_cell IS NOT NULL
    UNION ALL
    SELECT (reply_cell::BIGINT * 5 + 1) * 4096 + bucket(first_reply)
    FROM conversation_values WHERE reply_cell IS NOT NULL
    UNION ALL
    SELECT ((opened_cell + 1)::BIGINT * 5 + 1) * 4096 + bucket(first_reply)
    FROM conversation_values WHERE reply_cell IS NOT NULL
    UNION ALL
    SELECT (answered_cell::BIGINT * 5 + 2) * 4096 + bucket(wait) FROM turn_values WHERE is_answered
    UNION ALL
    SELECT (opened_cell::BIGINT * 5 + 2) * 4096 + bucket(wait) FROM turn_values WHERE is_answered
    UNION ALL
    SELECT (resolved_cell::BIGINT * 5 + 3) * 4096 + bucket(handle) FROM conversation_values WHERE is_closed
    UNION ALL
    SELECT ((opened_cell + 1)::BIGINT * 5 + 3) * 4096 + bucket(handle) FROM conversation_values WHERE is_closed
    UNION ALL
    SELECT (resolved_cell::BIGINT * 5 + 4) * 4096 + bucket(resolution) FROM conversation_values WHERE is_closed
    UNION ALL
    SELECT ((opened_cell + 1)::BIGINT * 5 + 4) * 4096 + bucket(resolution) FROM conversation_values WHERE is_closed
)
ORDER BY place;

-- The sorted buckets of each cell and histogram; days, weeks and months concatenate those of their parts.
CREATE TABLE histograms AS
WITH
by_hour AS MATERIALIZED (
    SELECT place // 4096 AS cell5, list_sort(list((place & 4095)::SMALLINT)) AS sorted FROM ranked GROUP BY cell5
),
by_day AS MATERIALIZED (
    SELECT
        (cell5 // 5 % getvariable('cells_an_hour'))::INTEGER AS bp, (cell5 % 5)::TINYINT AS histogram, day_h AS h,
        any_value(week_h) AS week_h, any_value(month_h) AS month_h, list_sort(flatten(list(sorted))) AS sorted
    FROM by_hour JOIN hours ON hour = cell5 // 5 // getvariable('cells_an_hour')
    GROUP BY ALL
)
SELECT
    * EXCLUDE (sorted),
    sorted[(len(sorted) * 50 + 99) // 100] AS p50,
    sorted[(len(sorted) * 90 + 99) // 100] AS p90,
    sorted[(len(sorted) * 95 + 99) // 100] AS p95,
    list_transform(
        map_entries(list_aggregate(sorted, 'histogram')), lambda x: {'bucket': x.key, 'count': x.value::INTEGER}
    ) AS entries
FROM (
    SELECT
        'hour' AS grain, (cell5 // 5 % getvariable('cells_an_hour'))::INTEGER AS bp, (cell5 % 5)::TINYINT AS histogram,
        cell5 // 5 // getvariable('cells_an_hour') + getvariable('first_hour') AS h, sorted
    FROM by_hour
    UNION ALL
    SELECT 'day', bp, histogram, h, sorted FROM by_day
    UNION ALL
    SELECT 'week', bp, histogram, week_h, list_sort(flatten(list(sorted))) FROM by_day GROUP BY bp, histogram, week_h
    UNION ALL
    SELECT 'month', bp, histogram, month_h, list_sort(flatten(list(sorted)))
    FROM by_day GROUP BY bp, histogram, month_h
);

-- A view: kpis leaves the histograms alone, kpi_statistics joins them while it is written.
CREATE VIEW cells AS
SELECT
    CASE WHEN s.bp % 2 = 1 THEN 'opened' ELSE 'activity' END AS basis,
    s.grain,
    make_timestamptz(s.h * 3600000000) AS window_start,
    make_timestamptz(s.end_h * 3600000000) AS window_end,
    account_id,
    channel,
    s.* EXCLUDE (grain, h, end_h, bp),
    coalesce(f.entries, []) AS first_response_histogram, f.p50 AS f50, f.p90 AS f90, f.p95 AS f95,
    coalesce(a.entries, []) AS first_reply_histogram, a.p50 AS a50,
    coalesce(w.entries, []) AS reply_histogram, w.p50 AS w50, w.p90 AS w90, w.p95 AS w95,
    coalesce(h.entries, []) AS handle_histogram, h.p50 AS h50, h.p90 AS h90,
    coalesce(r.entries, []) AS resolution_histogram, r.p50 AS r50, r.p90 AS r90
FROM sums s
JOIN pairs ON pair = s.bp // 2
LEFT JOIN histograms f ON f.histogram = 0 AND f.grain = s.grain AND f.h = s.h AND f.bp = s.bp
LEFT JOIN histograms a ON a.histogram = 1 AND a.grain = s.grain AND a.h = s.h AND a.bp = s.bp
LEFT JOIN histograms w ON w.histogram = 2 AND w.grain = s.grain AND w.h = s.h AND w.bp = s.bp
LEFT JOIN histograms h ON h.histogram = 3 AND h.grain = s.grain AND h.h = s.h AND h.bp = s.bp
LEFT JOIN histograms r ON r.histogram = 4 AND r.grain = s.grain AND r.h = s.h AND r.bp = s.bp;

INSERT INTO care.kpi_statistics BY NAME
SELECT
    basis, grain, window_start, window_end, account_id, channel,
    message_count, reply_count, bot_reply_count, conversation_count, proactive_count,
    first_response_count, sum_first_response_seconds / 1e6 AS sum_first_response_seconds, first_response_histogram,
    first_reply_count, sum_first_reply_seconds / 1e6 AS sum_first_reply_seconds, first_reply_histogram,
    answered_turn_count, sum_reply_seconds / 1e6 AS sum_reply_seconds, reply_histogram,
    answer_count, sum_answer_seconds / 1e6 AS sum_answer_seconds,
    resolved_count, sum_handle_seconds / 1e6 AS sum_handle_seconds, handle_histogram,
    sum_engaged_seconds / 1e6 AS sum_engaged_seconds,
    sum_hold_seconds / 1e6 AS sum_hold_seconds,
    sum_resolution_seconds / 1e6 AS sum_resolution_seconds, resolution_histogram,
    handled_count, first_contact_resolution_count, one_touch_count, reopened_count, transferred_count, escalated_count,
    needs_reply_message_count, responded_message_count, answered_message_count,
    resolvable_count, resolvable_resolved_count,
    rating_count, sum_csat / 1e6 AS sum_csat, satisfied_count,
    backlog_in_count, backlog_out_count, waiting_in_count, waiting_out_count,
    sum_first_response_seconds AS sum_first_response_millionths, sum_first_reply_seconds AS sum_first_reply_millionths,
    sum_reply_seconds AS sum_reply_millionths, sum_answer_seconds AS sum_answer_millionths,
    sum_handle_seconds AS sum_handle_millionths, sum_engaged_seconds AS sum_engaged_millionths,
    sum_hold_seconds AS sum_hold_millionths, sum_resolution_seconds AS sum_resolution_millionths,
    sum_csat AS sum_csat_millionths
FROM cells
ORDER BY window_start;

CREATE MACRO middle(bucket) AS (
    CASE WHEN bucket > 0 THEN (1 + ((bucket - 1) % 64 + 0.5) / 64) * pow(2, (bucket - 1) // 64) ELSE bucket END / 1e6
);
CREATE MACRO mean(total, parts) AS total / 1e6 / nullif(parts, 0);
CREATE MACRO rate(part, whole) AS part / nullif(whole, 0);

INSERT INTO care.kpis BY NAME
SELECT
    basis, grain, window_start, window_end, account_id, channel,
    getvariable('as_of') >= epoch_us(window_end) AS is_complete,
    message_count, reply_count, bot_reply_count, conversation_count, proactive_count,
    mean(sum_first_response_seconds, first_response_count) AS avg_first_response_seconds,
    middle(f50) AS p50_first_response_seconds,
    middle(f90) AS p90_first_response_seconds,
    middle(f95) AS p95_first_response_seconds,
    mean(sum_first_reply_seconds, first_reply_count) AS avg_first_reply_seconds,
    middle(a50) AS p50_first_reply_seconds,
    mean(sum_reply_seconds, answered_turn_count) AS avg_reply_seconds,
    middle(w50) AS p50_reply_seconds,
    middle(w90) AS p90_reply_seconds,
    middle(w95) AS p95_reply_seconds,
    mean(sum_answer_seconds, answer_count) AS avg_answer_seconds,
    mean(sum_handle_seconds, resolved_count) AS avg_handle_seconds,
    middle(h50) AS p50_handle_seconds,
    middle(h90) AS p90_handle_seconds,
    mean(sum_engaged_seconds, resolved_count) AS avg_engaged_seconds,
    mean(sum_hold_seconds, resolved_count) AS avg_hold_seconds,
    mean(sum_resolution_seconds, resolved_count) AS avg_resolution_seconds,
    middle(r50) AS p50_resolution_seconds,
    middle(r90) AS p90_resolution_seconds,
    rate(first_contact_resolution_count, handled_count) AS first_contact_resolution_rate,
    rate(one_touch_count, handled_count) AS one_touch_rate,
    rate(responded_message_count, needs_reply_message_count) AS response_rate,
    rate(answered_message_count, needs_reply_message_count) AS human_response_rate,
    rate(resolvable_resolved_count, resolvable_count) AS resolution_rate,
    rate(reopened_count, handled_count) AS reopen_rate,
    rate(transferred_count, handled_count) AS transfer_rate,
    rate(escalated_count, handled_count) AS escalation_rate,
    CASE WHEN basis = 'activity' THEN backlog_in_count - backlog_out_count END AS backlog_change,
    CASE WHEN basis = 'activity' THEN waiting_in_count - waiting_out_count END AS waiting_change,
    mean(sum_csat, rating_count) AS avg_csat,
    rate(satisfied_count, rating_count) AS csat_rate,
    rating_count,
    1::BIGINT AS revision,
    getvariable('committed_at') AS changed_at
FROM cells
ORDER BY window_start;
