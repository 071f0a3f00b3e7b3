-- What the KPIs mean, and what this run came to: the variables `definitions`, `settings`, `version` and `started_at`
-- are set outside.

INSERT INTO care.kpi_definitions BY NAME SELECT unnest(getvariable('definitions'), recursive := true);

INSERT INTO care.runs BY NAME
SELECT
    1 AS commit_id,
    getvariable('committed_at') AS committed_at,
    'batch' AS kind,
    make_timestamptz(getvariable('as_of')) AS as_of,
    getvariable('timezone') AS timezone,
    rows_read AS rows_read_count,
    events_kept AS events_kept_count,
    (SELECT count(*) FROM care.dead_letters) AS dead_letter_count,
    exact_duplicates AS exact_duplicate_count,
    0 AS late_event_count,
    events_kept - (SELECT coalesce(sum(event_count), 0) FROM care.conversations) AS stray_event_count,
    (SELECT count(*) FROM care.conversations) AS conversation_count,
    (SELECT count(*) FROM care.turns) AS turn_count,
    (
        SELECT '{' || coalesce(string_agg('"' || reason || '": ' || letters, ', ' ORDER BY reason), '') || '}'
        FROM (SELECT reason, count(*) AS letters FROM care.dead_letters GROUP BY reason)
    ) AS dead_letters_by_reason,
    (
        SELECT to_json(list({'name': source, 'bytes': file_size_bytes, 'rows': num_rows} ORDER BY first_row))
        FROM files
    ) AS inputs,
    getvariable('settings') AS settings,
    epoch_us(now() - getvariable('started_at')) / 1e6 AS duration_seconds,
    getvariable('version') AS version
FROM counts;
