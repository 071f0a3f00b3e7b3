-- The published facts: text is gathered here, once a conversation. Rows are sorted before words become text again, so
-- that the sort moves codes.

-- First customer_id of the few conversations whose first event has none.
CREATE TABLE customers AS
SELECT conversation, arg_min(row.customer_id, r) AS later_customer_id
FROM (SELECT rowid AS r, kh, k, source_row FROM events) e
JOIN (SELECT * FROM conversations JOIN keys USING (conversation) WHERE customer_id IS NULL) c
  ON c.kh = e.kh AND r BETWEEN begin_r AND last_r AND (k NOT IN (9, 12) OR r > first_spoken_r)
JOIN (SELECT rowid AS source_row, customer_id FROM rows_read) row USING (source_row)
WHERE row.customer_id IS NOT NULL
GROUP BY conversation;

-- The places of the files' rows in rows_read: it holds them in the order of the files.
CREATE TABLE files AS
SELECT source, num_rows, file_size_bytes, sum(num_rows) OVER (ORDER BY place) - num_rows AS first_row
FROM (SELECT unnest(getvariable('inputs')) AS source, unnest(range(len(getvariable('inputs')))) AS place)
JOIN parquet_file_metadata(getvariable('inputs')) ON file_name = source;

INSERT INTO care.dead_letters BY NAME
SELECT source, letters.* EXCLUDE (place), (place - first_row + 1)::BIGINT AS source_row
FROM (
    SELECT
        rowid AS place,
        'parse' AS stage,
        split_part(fault::VARCHAR, ' ', 1) AS reason,
        split_part(fault::VARCHAR, ' ', 2) AS column_name,
        raw
    FROM rows_read WHERE fault IS NOT NULL
    UNION ALL
    SELECT
        source_row, 'pair', 'conflicting_duplicate', NULL,
        row_as_json(
            event_id, enum_range(NULL::event_word)[(o & 15) + 1],
            strftime(make_timestamptz(o >> 4), '%Y-%m-%dT%H:%M:%S.%fZ'), ch::VARCHAR, ac::VARCHAR, conversation_id,
            customer_id, author::VARCHAR, ag::VARCHAR, te::VARCHAR, is_automated, topic::VARCHAR, subtopic::VARCHAR,
            priority::VARCHAR, "language"::VARCHAR, quick_reply::VARCHAR, sentiment, score, duration_seconds
        )
    FROM copies WHERE NOT is_like_kept
) letters
ASOF JOIN (FROM files WHERE num_rows > 0) ON place >= first_row
ORDER BY source, source_row;

DROP TABLE rows_read;

INSERT INTO care.conversations BY NAME
SELECT
    conversation_key,
    started_at,
    ac::VARCHAR AS account_id,
    ch::VARCHAR AS channel,
    coalesce(customer_id, later_customer_id) AS customer_id,
    enum_range(NULL::agent_word)[agent_code + 1] AS agent_id,
    enum_range(NULL::team_word)[team_code + 1] AS team_id,
    enum_range(NULL::topic_word)[topic_code + 1] AS topic,
    enum_range(NULL::subtopic_word)[subtopic_code + 1] AS subtopic,
    enum_range(NULL::priority_word)[priority_code + 1] AS priority,
    enum_range(NULL::language_word)[language_code + 1] AS "language",
    CASE state WHEN 0 THEN 'open' WHEN 1 THEN 'resolved' ELSE 'dismissed' END AS state,
    make_timestamptz(opened_us) AS opened_at,
    make_timestamptz(response_us) AS first_response_at,
    make_timestamptz(first_reply_us) AS first_reply_at,
    make_timestamptz(resolved_us) AS resolved_at,
    make_timestamptz(first_resolved_us) AS first_resolved_at,
    make_timestamptz(handled_us) AS handled_at,
    make_timestamptz(rated_us) AS rated_at,
    make_timestamptz(last_us) AS last_event_at,
    is_proactive,
    handled_us IS NOT NULL AS is_handled,
    false AS is_resolution_inferred,
    CASE WHEN handled_us IS NOT NULL THEN is_first_contact END AS is_first_contact_resolution,
    CASE WHEN handled_us IS NOT NULL THEN is_one_touch END AS is_one_touch,
    events::BIGINT AS event_count,
    messages::BIGINT AS message_count,
    humans::BIGINT AS reply_count,
    bots::BIGINT AS bot_reply_count,
    automated::BIGINT AS automated_reply_count,
    coalesce(turns, 0) AS turn_count,
    reopenings::BIGINT AS reopen_count,
    transfers::BIGINT AS transfer_count,
    escalations::BIGINT AS escalation_count,
    handoffs::BIGINT AS handoff_count,
    notes::BIGINT AS note_count,
    CASE WHEN other_agents > 0 THEN agents ELSE least(named, 1) END::BIGINT AS agent_count,
    CASE WHEN other_channels > 0 THEN channels ELSE 1 END::BIGINT AS channel_count,
    (response_us - opened_us) / 1e6 AS first_response_seconds,
    (first_reply_us - opened_us) / 1e6 AS first_reply_seconds,
    CASE WHEN assigned_us IS NOT NULL THEN (response_us - greatest(opened_us, assigned_us)) / 1e6 END AS answer_seconds,
    CASE WHEN is_closed THEN (resolved_us - opened_us) / 1e6 END AS resolution_seconds,
    CASE WHEN is_closed THEN (resolved_us - opened_us) / 1e6 + coalesce(wrap_up, 0) END AS handle_seconds,
    CASE WHEN is_closed THEN coalesce(engaged, 0) / 1e6 + coalesce(wrap_up, 0) END AS engaged_seconds,
    hold / 1e6 AS hold_seconds,
    coalesce(wrap_up, 0) AS wrap_up_seconds,
    csat_score
FROM (
    FROM conversations
    JOIN keys USING (conversation)
    LEFT JOIN customers USING (conversation)
    LEFT JOIN turn_sums USING (conversation)
    LEFT JOIN wrap_ups USING (conversation)
    LEFT JOIN agents USING (conversation)
    LEFT JOIN channels USING (conversation)
    ORDER BY keys.started_at
);

INSERT INTO care.turns BY NAME
SELECT
    conversation_key,
    started_at,
    turn_number::BIGINT AS turn_number,
    ac::VARCHAR AS account_id,
    ch::VARCHAR AS channel,
    make_timestamptz(started_us) AS turn_started_at,
    make_timestamptz(ended_us) AS turn_ended_at,
    make_timestamptz(bot_us) AS bot_replied_at,
    CASE end_k WHEN 6 THEN 'answered' WHEN 11 THEN 'resolved' WHEN 10 THEN 'dismissed' ELSE 'waiting' END AS outcome,
    ag::VARCHAR AS agent_id,
    message_count::BIGINT AS message_count,
    is_responded,
    needs_reply,
    CASE WHEN end_k = 6 THEN (ended_us - started_us) / 1e6 END AS wait_seconds
FROM (FROM turn_facts JOIN keys USING (conversation) ORDER BY keys.started_at, conversation, turn_number);
