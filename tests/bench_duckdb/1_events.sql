-- The events in the contract's order: one row per event kept, sorted by key, time, type and event_id.
--
-- Words become enums (codes of 1 or 2 bytes), and a key its 64-bit hash, so that the sort moves few bytes; two keys
-- that shared a hash would be mixed up, which is taken as a chance of 1 in 10 million here.
--
-- o: occurred_at in microseconds * 16 + rank of the event type; ascending o is the order but for ties of both.
-- k: kind; the rank of the event type (message 0, reopened 1, handoff 2, assigned 3, escalated 4, resumed 5,
--    human reply 6, held 7, note 8, wrap_up 9, dismissed 10, resolved 11, rating 12), bot reply 13, automated reply 14.
-- splits: gaps split the key after this event (no conversation_id, or a channel with split_threads).

CREATE TYPE event_word AS ENUM (
    'message', 'reopened', 'handoff', 'assigned', 'escalated', 'resumed', 'reply',
    'held', 'note', 'wrap_up', 'dismissed', 'resolved', 'rating'
);
CREATE TYPE author_word AS ENUM ('customer', 'agent', 'bot', 'system');
CREATE TYPE channel_word AS ENUM (
    SELECT DISTINCT channel FROM read_parquet(getvariable('inputs')) WHERE channel <> '' ORDER BY 1
);
CREATE TYPE account_word AS ENUM (
    SELECT DISTINCT account_id FROM read_parquet(getvariable('inputs')) WHERE account_id <> '' ORDER BY 1
);
CREATE TYPE agent_word AS ENUM (
    SELECT DISTINCT agent_id FROM read_parquet(getvariable('inputs')) WHERE agent_id <> '' ORDER BY 1
);
CREATE TYPE team_word AS ENUM (
    SELECT DISTINCT team_id FROM read_parquet(getvariable('inputs')) WHERE team_id <> '' ORDER BY 1
);
CREATE TYPE topic_word AS ENUM (
    SELECT DISTINCT topic FROM read_parquet(getvariable('inputs')) WHERE topic <> '' ORDER BY 1
);
CREATE TYPE subtopic_word AS ENUM (
    SELECT DISTINCT subtopic FROM read_parquet(getvariable('inputs')) WHERE subtopic <> '' ORDER BY 1
);
CREATE TYPE priority_word AS ENUM (
    SELECT DISTINCT priority FROM read_parquet(getvariable('inputs')) WHERE priority <> '' ORDER BY 1
);
CREATE TYPE language_word AS ENUM (
    SELECT DISTINCT "language" FROM read_parquet(getvariable('inputs')) WHERE "language" <> '' ORDER BY 1
);
CREATE TYPE quick_reply_word AS ENUM (
    SELECT DISTINCT quick_reply_id FROM read_parquet(getvariable('inputs')) WHERE quick_reply_id <> '' ORDER BY 1
);

-- Why a row cannot be used: the first faulty column in the contract's order.
CREATE TYPE fault_word AS ENUM (
    'missing event_id', 'missing event_type', 'unknown_event_type event_type', 'missing occurred_at',
    'out_of_range occurred_at', 'missing channel', 'missing customer_id', 'unknown_author_type author_type',
    'author_type_not_allowed author_type', 'out_of_range sentiment', 'missing score', 'out_of_range score',
    'missing duration_seconds', 'out_of_range duration_seconds'
);

-- A row as JSON, without what is null: `concat_ws` passes nulls over. A moment comes as text, NaN and infinity too.
CREATE MACRO number_as_json(x) AS CASE WHEN isfinite(x) THEN x::VARCHAR ELSE '"' || x::VARCHAR || '"' END;
CREATE MACRO row_as_json(
    event_id, event_type, moment, channel, account_id, conversation_id, customer_id, author_type, agent_id, team_id,
    is_automated, topic, subtopic, priority, "language", quick_reply_id, sentiment, score, duration_seconds
) AS '{' || concat_ws(
    ', ',
    '"event_id": ' || to_json(event_id),
    '"event_type": ' || to_json(event_type),
    '"occurred_at": "' || moment || '"',
    '"channel": ' || to_json(channel),
    '"account_id": ' || to_json(account_id),
    '"conversation_id": ' || to_json(conversation_id),
    '"customer_id": ' || to_json(customer_id),
    '"author_type": ' || to_json(author_type),
    '"agent_id": ' || to_json(agent_id),
    '"team_id": ' || to_json(team_id),
    '"is_automated": ' || is_automated::VARCHAR,
    '"topic": ' || to_json(topic),
    '"subtopic": ' || to_json(subtopic),
    '"priority": ' || to_json(priority),
    '"language": ' || to_json("language"),
    '"quick_reply_id": ' || to_json(quick_reply_id),
    '"sentiment": ' || number_as_json(sentiment),
    '"score": ' || number_as_json(score),
    '"duration_seconds": ' || number_as_json(duration_seconds)
) || '}';

-- fault is a column and no WHERE: a filter here would cost a copy of every column (1.5 s CPU for 10 million rows). raw
-- is made for faulty rows only. The rowid is the place of a row in all files, one after another.
CREATE TABLE rows_read AS
SELECT
    hash(account_key, conversation_key, CASE WHEN conversation_key IS NULL THEN channel_key END,
         CASE WHEN conversation_key IS NULL THEN customer_key END) AS kh,
    us * 16 + enum_code(kind) AS o,
    (CASE
        WHEN kind <> 'reply' THEN enum_code(kind)
        WHEN is_automated OR author = 'system' THEN 14
        WHEN author = 'bot' THEN 13
        ELSE 6
    END)::UTINYINT AS k,
    conversation_key IS NULL OR list_contains(getvariable('split_channels'), channel) AS splits,
    TRY_CAST(channel AS channel_word) AS ch,
    TRY_CAST(account_id AS account_word) AS ac,
    TRY_CAST(agent_id AS agent_word) AS ag,
    TRY_CAST(team_id AS team_word) AS te,
    author,
    is_automated,
    TRY_CAST(topic AS topic_word) AS topic,
    TRY_CAST(subtopic AS subtopic_word) AS subtopic,
    TRY_CAST(priority AS priority_word) AS priority,
    TRY_CAST("language" AS language_word) AS "language",
    TRY_CAST(quick_reply_id AS quick_reply_word) AS quick_reply,
    sentiment,
    score,
    duration_seconds,
    event_id,
    conversation_key AS conversation_id,
    customer_key AS customer_id,
    fault,
    CASE WHEN fault IS NOT NULL THEN row_as_json(
        event_id, event_type, strftime(occurred_at, '%Y-%m-%d %H:%M:%S.%fZ'), channel, account_id, conversation_id,
        customer_id, author_type, agent_id, team_id, is_automated, topic, subtopic, priority, "language",
        quick_reply_id, sentiment, score, duration_seconds
    ) END AS raw
FROM (
    SELECT
        *,
        CASE
            WHEN event_id IS NULL OR event_id = '' THEN 'missing event_id'::fault_word
            WHEN event_type IS NULL OR event_type = '' THEN 'missing event_type'::fault_word
            WHEN kind IS NULL THEN 'unknown_event_type event_type'::fault_word
            WHEN us IS NULL THEN 'missing occurred_at'::fault_word
            WHEN us NOT BETWEEN 0 AND 4133980799999999 THEN 'out_of_range occurred_at'::fault_word
            WHEN channel_key IS NULL THEN 'missing channel'::fault_word
            WHEN conversation_key IS NULL AND customer_key IS NULL THEN 'missing customer_id'::fault_word
            WHEN author IS NULL AND author_type <> '' THEN 'unknown_author_type author_type'::fault_word
            WHEN (kind = 'message' AND author <> 'customer') OR (kind = 'reply' AND author = 'customer')
                THEN 'author_type_not_allowed author_type'::fault_word
            WHEN sentiment NOT BETWEEN -1 AND 1 THEN 'out_of_range sentiment'::fault_word
            WHEN score IS NULL AND kind = 'rating' THEN 'missing score'::fault_word
            WHEN score NOT BETWEEN 1 AND 5 THEN 'out_of_range score'::fault_word
            WHEN duration_seconds IS NULL AND kind = 'wrap_up' THEN 'missing duration_seconds'::fault_word
            WHEN duration_seconds NOT BETWEEN 0 AND 4133980800 THEN 'out_of_range duration_seconds'::fault_word
        END AS fault
    FROM (
        SELECT
            *,
            TRY_CAST(event_type AS event_word) AS kind,
            epoch_us(occurred_at) AS us,
            nullif(channel, '') AS channel_key,
            nullif(account_id, '') AS account_key,
            nullif(conversation_id, '') AS conversation_key,
            nullif(customer_id, '') AS customer_key,
            TRY_CAST(author_type AS author_word) AS author
        FROM read_parquet(getvariable('inputs'))
    )
);

-- Candidates for copies by hash (a window over one hash is cheaper than GROUP BY ... HAVING), decided by value below.
CREATE TABLE twins AS
SELECT DISTINCT eh
FROM (
    SELECT eh, row_number() OVER (PARTITION BY eh) AS place
    FROM (SELECT hash(event_id, kh) AS eh FROM rows_read WHERE fault IS NULL)
)
WHERE place = 2;

CREATE TABLE copies AS
SELECT
    * EXCLUDE (content),
    row_number() OVER by_content AS place,
    content IS NOT DISTINCT FROM first_value(content) OVER by_content AS is_like_kept
FROM (
    SELECT
        *,
        rowid AS source_row,
        row(o, ch, customer_id, author, ag, te, is_automated, topic, subtopic, priority, "language", quick_reply,
            sentiment, score, duration_seconds) AS content
    FROM rows_read SEMI JOIN twins ON hash(event_id, kh) = eh
    WHERE fault IS NULL
)
WINDOW by_content AS (
    PARTITION BY ac, conversation_id, CASE WHEN conversation_id IS NULL THEN ch END,
                 CASE WHEN conversation_id IS NULL THEN customer_id END, event_id
    ORDER BY o >> 4, enum_range(NULL::event_word)[(o & 15) + 1]::VARCHAR, ch, customer_id NULLS FIRST,
             author::VARCHAR NULLS FIRST, ag NULLS FIRST, te NULLS FIRST, is_automated NULLS FIRST,
             topic NULLS FIRST, subtopic NULLS FIRST, priority NULLS FIRST, "language" NULLS FIRST,
             quick_reply NULLS FIRST, sentiment NULLS FIRST, score NULLS FIRST, duration_seconds NULLS FIRST
);

-- Sorted without text: source_row is the place in rows_read. Comparing event_id for every row would double the cost of
-- the sort, so ties are put right afterwards.
CREATE TABLE events AS
SELECT
    kh, o, k, splits, ch, ac, ag, te, topic, subtopic, priority, "language",
    CASE k WHEN 12 THEN score WHEN 9 THEN duration_seconds END AS number,
    source_row
FROM (
    SELECT *, rowid AS source_row FROM rows_read ANTI JOIN twins ON hash(event_id, kh) = eh WHERE fault IS NULL
    UNION ALL
    SELECT * EXCLUDE (place, is_like_kept) FROM copies WHERE place = 1
)
ORDER BY kh, o;

CREATE TABLE ties AS
SELECT r, first_r + row_number() OVER (PARTITION BY first_r ORDER BY event_id) - 1 AS place
FROM (
    SELECT
        r, source_row,
        last_value(CASE WHEN NOT is_tie THEN r END IGNORE NULLS) OVER (ROWS UNBOUNDED PRECEDING) AS first_r,
        is_tie OR lead(is_tie, 1, false) OVER () AS is_tied
    FROM (
        SELECT rowid AS r, source_row, coalesce(o = lag(o) OVER () AND kh = lag(kh) OVER (), false) AS is_tie
        FROM events
    )
)
JOIN (SELECT rowid AS source_row, event_id FROM rows_read) USING (source_row)
WHERE is_tied;

UPDATE events
SET k = e.k, splits = e.splits, ch = e.ch, ag = e.ag, te = e.te, topic = e.topic, subtopic = e.subtopic,
    priority = e.priority, "language" = e."language", number = e.number, source_row = e.source_row
FROM (
    SELECT ties.place, source.*
    FROM ties JOIN (SELECT rowid AS r, * FROM events) source USING (r)
    WHERE ties.place <> ties.r
) e
WHERE events.rowid = e.place;

CREATE TABLE counts AS
SELECT
    (SELECT count(*) FROM rows_read) AS rows_read,
    (SELECT count(*) FROM rows_read WHERE fault IS NOT NULL) AS faulty_rows,
    (SELECT count(*) FROM copies WHERE NOT is_like_kept) AS conflicting_duplicates,
    (SELECT count(*) FROM copies WHERE is_like_kept AND place > 1) AS exact_duplicates,
    (SELECT count(*) FROM events) AS events_kept;
