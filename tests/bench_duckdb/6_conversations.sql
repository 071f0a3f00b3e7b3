-- What is said of each conversation, from its facts and its life; rows in the order of `events`.

CREATE TABLE conversations AS
WITH
counted AS (
    SELECT
        * EXCLUDE (strays, messages, humans, responses, named, bots, automated, proactive, transfers,
                   escalations, handoffs, notes, other_agents, other_channels),
        (messages - lag(messages, 1, 0) OVER ())::INTEGER AS messages,
        (humans - lag(humans, 1, 0) OVER ())::INTEGER AS humans,
        (responses - lag(responses, 1, 0) OVER ())::INTEGER AS responses,
        (named - lag(named, 1, 0) OVER ())::INTEGER AS named,
        (bots - lag(bots, 1, 0) OVER ())::INTEGER AS bots,
        (automated - lag(automated, 1, 0) OVER ())::INTEGER AS automated,
        (proactive - lag(proactive, 1, 0) OVER ())::INTEGER AS proactive,
        (transfers - lag(transfers, 1, 0) OVER ())::INTEGER AS transfers,
        (escalations - lag(escalations, 1, 0) OVER ())::INTEGER AS escalations,
        (handoffs - lag(handoffs, 1, 0) OVER ())::INTEGER AS handoffs,
        (notes - lag(notes, 1, 0) OVER ())::INTEGER AS notes,
        (other_agents - lag(other_agents, 1, 0) OVER ())::INTEGER AS other_agents,
        (other_channels - lag(other_channels, 1, 0) OVER ())::INTEGER AS other_channels,
        (last_r - lag(last_r, 1, -1) OVER () - (strays - lag(strays, 1, 0) OVER ()))::INTEGER AS events
    FROM facts
),
followed AS (
    SELECT
        *,
        least(
            CASE WHEN lead(key_number) OVER () = key_number THEN lead(started_us) OVER () END,
            CASE WHEN getvariable('as_of') > silent_us THEN silent_us END
        ) AS leaves_us
    FROM (
        SELECT
            *,
            last_us + CASE WHEN splits OR was_closed THEN getvariable('max_idle') ELSE getvariable('max_open') END
                AS silent_us
        FROM counted
        WHERE is_conversation
    )
),
states AS (
    SELECT
        conversation, state, first_resolved_us,
        CASE WHEN state = 1 THEN resolved_us END AS resolved_us,
        (reopenings - lag(reopenings, 1, 0) OVER ())::INTEGER AS reopenings,
        holds - lag(holds, 1, 0) OVER () AS hold
    FROM lives
    WHERE is_last
)
SELECT
    followed.*,
    states.* EXCLUDE (conversation),
    CASE WHEN has_message THEN coalesce(resolved_us, last_human_us) END AS handled_us,
    has_message AND state = 1 AS is_closed,
    state = 1 AND reopenings = 0 AND transfers = 0 AND escalations = 0 AS is_first_contact,
    state = 1 AND responses = 1 AS is_one_touch,
    NOT has_message OR proactive > 0 AS is_proactive
FROM followed JOIN states USING (conversation);

CREATE TABLE turn_sums AS
SELECT
    conversation,
    count(*) AS turns,
    coalesce(sum(ended_us - t.started_us) FILTER (t.started_us <= resolved_us), 0)::BIGINT AS engaged,
    coalesce(sum(message_count) FILTER (needs_reply), 0)::INTEGER AS needs_reply,
    coalesce(sum(message_count) FILTER (is_responded), 0)::INTEGER AS responded,
    coalesce(sum(message_count) FILTER (end_k = 6), 0)::INTEGER AS answered
FROM turn_facts t JOIN conversations USING (conversation)
GROUP BY conversation;

CREATE TABLE wrap_ups AS
SELECT conversation, sum(number) AS wrap_up
FROM (SELECT rowid AS r, number FROM events WHERE k = 9)
ASOF JOIN (SELECT conversation, first_spoken_r, last_r FROM conversations) c ON r > first_spoken_r
WHERE r <= last_r
GROUP BY conversation;

-- Nearly every conversation has one agent and one channel; only those where one differs from the one before it are
-- counted.
CREATE TABLE agents AS
SELECT conversation, count(DISTINCT e.ag) AS agents
FROM (SELECT rowid AS r, ag FROM events WHERE k = 6 AND ag IS NOT NULL) e
ASOF JOIN (SELECT conversation, begin_r, last_r FROM conversations WHERE other_agents > 0) ON r >= begin_r
WHERE r <= last_r
GROUP BY conversation;

CREATE TABLE channels AS
SELECT conversation, count(DISTINCT e.ch) AS channels
FROM (SELECT rowid AS r, k, ch FROM events) e
ASOF JOIN (SELECT conversation, begin_r, first_spoken_r, last_r FROM conversations WHERE other_channels > 0) c
  ON r >= begin_r
WHERE r <= last_r AND (k NOT IN (9, 12) OR r > first_spoken_r)
GROUP BY conversation;
