-- name: insert
WITH inserted AS (
    INSERT INTO transactions (tenant_id, id, wallet_id, idempotency_key, request_hash, calls, script, call_count,
                              priority, valid_for_blocks, max_fee, grouping, fifo_key, not_before, not_before_block,
                              on_expiry, speed, execution_id, network, held, available_at, rank_at, state)
    VALUES (%(tenant_id)s, %(id)s, %(wallet_id)s, %(idempotency_key)s, %(request_hash)s, %(calls)s, %(script)s,
            %(call_count)s, %(priority)s, %(valid_for_blocks)s, %(max_fee)s, %(grouping)s, %(fifo_key)s,
            %(not_before)s, %(not_before_block)s, %(on_expiry)s, %(speed)s, %(execution_id)s, %(network)s,
            %(fifo_key)s::text IS NOT NULL OR %(not_before_block)s::bigint IS NOT NULL,
            coalesce(%(not_before)s, clock_timestamp()),
            greatest(%(not_before)s, clock_timestamp()) - make_interval(secs => %(head_start_s)s), 'queued')
    ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
    RETURNING tenant_id, id, state, created_at, updated_at
), event AS (
    INSERT INTO transaction_events (tenant_id, transaction_id, number, state)
    SELECT tenant_id, id, 1, state FROM inserted
)
SELECT created_at, updated_at FROM inserted

-- name: terms
-- On which a transaction is accepted: what pauses its wallet and its tenant, what the wallet may spend, and whether
-- there is one with its key.
SELECT w.pause_reason, n.pause_reason, l.max_fee_per_transaction, l.max_fee_per_day, t.id, t.request_hash
FROM wallets w
JOIN tenants n ON n.id = w.tenant_id
LEFT JOIN wallet_limits l ON (l.tenant_id, l.wallet_id) = (w.tenant_id, w.id)
LEFT JOIN transactions t ON (t.tenant_id, t.idempotency_key) = (w.tenant_id, %(idempotency_key)s)
WHERE w.tenant_id = %(tenant_id)s AND w.id = %(wallet_id)s

-- name: by_id
SELECT t.id, t.wallet_id, t.state, t.cause, t.calls, t.priority, t.valid_for_blocks, t.max_fee, t.grouping, t.fifo_key,
       t.not_before, t.not_before_block, t.on_expiry, t.execution_id, t.txid,
       (SELECT count(*) FROM transaction_attempt_intents o WHERE (o.tenant_id, o.txid) = (t.tenant_id, t.txid)),
       a.valid_until_block, fees.system_fee, fees.network_fee, t.block_index, t.block_time, i.result, i.system_fee,
       t.created_at, t.updated_at, t.speed, t.cancel_requested_at IS NOT NULL, t.events
FROM transactions t
LEFT JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
LEFT JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid, i.transaction_id) = (t.tenant_id, t.txid, t.id)
CROSS JOIN LATERAL (
    SELECT sum(s.system_fee)::bigint AS system_fee, sum(s.network_fee)::bigint AS network_fee
    FROM transaction_attempt_intents s
    JOIN transaction_attempts p ON (p.tenant_id, p.txid) = (s.tenant_id, s.txid)
    WHERE (s.tenant_id, s.transaction_id) = (t.tenant_id, t.id) AND (p.state = 'included' OR p.txid = t.txid)
) fees
WHERE t.tenant_id = %(tenant_id)s AND t.id = %(id)s

-- name: list
SELECT t.id, t.wallet_id, t.state, t.cause, t.calls, t.priority, t.valid_for_blocks, t.max_fee, t.grouping, t.fifo_key,
       t.not_before, t.not_before_block, t.on_expiry, t.execution_id, t.txid,
       (SELECT count(*) FROM transaction_attempt_intents o WHERE (o.tenant_id, o.txid) = (t.tenant_id, t.txid)),
       a.valid_until_block, fees.system_fee, fees.network_fee, t.block_index, t.block_time, i.result, i.system_fee,
       t.created_at, t.updated_at, t.speed, t.cancel_requested_at IS NOT NULL, t.events
FROM transactions t
LEFT JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
LEFT JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid, i.transaction_id) = (t.tenant_id, t.txid, t.id)
CROSS JOIN LATERAL (
    SELECT sum(s.system_fee)::bigint AS system_fee, sum(s.network_fee)::bigint AS network_fee
    FROM transaction_attempt_intents s
    JOIN transaction_attempts p ON (p.tenant_id, p.txid) = (s.tenant_id, s.txid)
    WHERE (s.tenant_id, s.transaction_id) = (t.tenant_id, t.id) AND (p.state = 'included' OR p.txid = t.txid)
) fees
WHERE t.tenant_id = %(tenant_id)s AND t.id < %(before)s
  AND (%(state)s::text IS NULL OR t.state = %(state)s)
ORDER BY t.id DESC LIMIT %(limit)s

-- name: events
SELECT number, state, cause, at FROM transaction_events
WHERE tenant_id = %(tenant_id)s AND transaction_id = %(id)s ORDER BY number

-- name: count_unfinished
SELECT state, count(*) FROM transactions WHERE state IN ('queued', 'signed', 'sent') GROUP BY state

-- name: count_final
-- Reads the index over all history.
SELECT state, count(*) FROM transactions
WHERE state IN ('confirmed', 'faulted', 'expired', 'rejected', 'cancelled') GROUP BY state

-- name: count_queued
-- Up to as many as matter.
SELECT count(*) FROM (SELECT FROM transactions WHERE state = 'queued' LIMIT %(most)s) q

-- name: count_queued_of
SELECT count(*) FROM (SELECT FROM transactions
                      WHERE state = 'queued' AND tenant_id = %(tenant_id)s LIMIT %(most)s) q

-- --- the queue: these run one after the other, under `lock_queue` ---------------------------------------------

-- name: lock_queue
-- Two leases at once would want the same rows, and two releases might let two of one key go.
SELECT pg_advisory_xact_lock(hashtextextended('neolayer transaction queue', 0))

-- name: clock
-- Of the database, which all times in the queue are of; Unix time in seconds.
SELECT extract(epoch FROM clock_timestamp())::float8

-- name: clock_went_back
-- What was written by a clock that was ahead would wait until this one gets there: nothing of it is due later than so
-- many seconds from now, but what somebody asked to be sent later. Ranks move along, so that their order stays; those of
-- what is leased or on its way too, which may come back into the queue.
WITH early AS (
    SELECT tenant_id, id, greatest(available_at, rank_at) - now() AS ahead FROM transactions
    WHERE state IN ('queued', 'signed', 'sent')
      AND (available_at > greatest(not_before, now()) + make_interval(secs => %(pause_s)s)
           -- What is due ranks no later than this.
           OR rank_at > greatest(not_before, now()) + make_interval(secs => %(latest_start_s)s))
    FOR UPDATE SKIP LOCKED
), furthest AS (
    SELECT max(e.ahead) AS ahead FROM early e JOIN transactions t ON (t.tenant_id, t.id) = (e.tenant_id, e.id)
    WHERE t.not_before IS NULL
), due AS (
    UPDATE transactions t
    SET available_at = greatest(t.not_before, now()),
        rank_at = CASE WHEN t.not_before IS NULL THEN t.rank_at - f.ahead
                       ELSE least(t.rank_at, greatest(t.not_before, now())) END,
        lease_until = CASE WHEN t.lease IS NOT NULL
                           THEN least(t.lease_until, now() + make_interval(secs => %(lease_s)s)) END
    FROM early e, furthest f WHERE (t.tenant_id, t.id) = (e.tenant_id, e.id)
), leased AS (
    SELECT tenant_id, id FROM transactions
    WHERE lease IS NOT NULL AND lease_until > now() + make_interval(secs => %(lease_s)s + %(pause_s)s)
      AND (tenant_id, id) NOT IN (SELECT tenant_id, id FROM early)
    FOR UPDATE SKIP LOCKED
), reclaimed AS (
    UPDATE transactions t SET lease_until = now() + make_interval(secs => %(lease_s)s)
    FROM leased l WHERE (t.tenant_id, t.id) = (l.tenant_id, l.id)
), signed AS (
    SELECT tenant_id, txid FROM transaction_attempts
    WHERE state = 'signed' AND lease_until > now() + make_interval(secs => %(lease_s)s + %(pause_s)s)
    FOR UPDATE SKIP LOCKED
), resent AS (
    UPDATE transaction_attempts a SET lease_until = now() + make_interval(secs => %(lease_s)s)
    FROM signed s WHERE (a.tenant_id, a.txid) = (s.tenant_id, s.txid)
), poor AS (
    UPDATE wallet_reservations SET waits_until = NULL
    WHERE waits_until > now() + make_interval(secs => %(pause_s)s)
)
SELECT count(*) FROM early

-- name: reclaim
-- Of workers that died.
-- What somebody has locked is left for the next time: nobody waits here for rows in an order of their own.
UPDATE transactions t SET lease = NULL, lease_until = NULL
FROM (SELECT tenant_id, id FROM transactions WHERE lease IS NOT NULL AND lease_until < now()
      FOR UPDATE SKIP LOCKED) dead
WHERE (t.tenant_id, t.id) = (dead.tenant_id, dead.id)

-- name: release_scheduled
-- A block that is due counts as the time it was queued: it does not overtake with the age it got by waiting for it.
UPDATE transactions SET held = false,
    rank_at = rank_at + greatest(now() - greatest(not_before, created_at), interval '0')
WHERE held AND fifo_key IS NULL AND state = 'queued' AND not_before_block <= %(height)s + 1

-- name: release_fifo
-- The first of each key, once no other of it is on its way. Keys are found by jumping through the index.
WITH RECURSIVE keys AS (
    (SELECT tenant_id, fifo_key FROM transactions
     WHERE fifo_key IS NOT NULL AND state IN ('queued', 'signed', 'sent')
     ORDER BY tenant_id, fifo_key LIMIT 1)
    UNION ALL
    SELECT next.tenant_id, next.fifo_key FROM keys k CROSS JOIN LATERAL (
        SELECT t.tenant_id, t.fifo_key FROM transactions t
        WHERE t.fifo_key IS NOT NULL AND t.state IN ('queued', 'signed', 'sent')
          AND (t.tenant_id, t.fifo_key) > (k.tenant_id, k.fifo_key)
        ORDER BY t.tenant_id, t.fifo_key LIMIT 1
    ) next
), heads AS (
    SELECT h.tenant_id, h.id FROM keys k CROSS JOIN LATERAL (
        SELECT t.tenant_id, t.id, t.held, t.not_before_block FROM transactions t
        WHERE t.tenant_id = k.tenant_id AND t.fifo_key = k.fifo_key AND t.state IN ('queued', 'signed', 'sent')
        ORDER BY t.arrival LIMIT 1
    ) h
    WHERE h.held AND (h.not_before_block IS NULL OR h.not_before_block <= %(height)s + 1)
      AND NOT EXISTS (
          SELECT FROM transactions b
          WHERE b.tenant_id = k.tenant_id AND b.fifo_key = k.fifo_key AND NOT b.held
            AND b.state IN ('queued', 'signed', 'sent')
      )
)
UPDATE transactions t SET held = false FROM heads h WHERE (t.tenant_id, t.id) = (h.tenant_id, h.id)

-- name: traffic
-- Waiting intents, up to a number; live attempts that were signed lately, up to as many as matter; of the last
-- blocks: how many transactions, how many of ours, and how many blocks ours waited.
SELECT (SELECT count(*) FROM (SELECT FROM transactions WHERE state = 'queued' AND lease IS NULL AND NOT held
                              LIMIT %(most_queued)s) q),
       (SELECT count(*) FROM (SELECT FROM transaction_attempts
                              WHERE network = %(network)s AND state IN ('signed', 'sent')
                                AND signed_at_height >= coalesce(blocks.last, 0) - %(fresh_blocks)s
                              LIMIT %(most_fresh)s) f),
       blocks.per_block, coalesce(included.number::float8 / greatest(blocks.number, 1), 0),
       coalesce(included.waited::float8, 0)
FROM (
    SELECT count(*) AS number, coalesce(avg(transactions), 0)::float8 AS per_block, max(index) AS last
    FROM (SELECT index, transactions FROM chain_blocks WHERE network = %(network)s
          ORDER BY index DESC LIMIT %(blocks)s) b
) blocks CROSS JOIN LATERAL (
    SELECT count(*) AS number, avg(block_index - sent_at_height) AS waited FROM transaction_attempts
    WHERE network = %(network)s AND block_index > blocks.last - %(blocks)s AND sent_at_height > 0
) included

-- name: lease
-- Tenants take turns, whatever the length of their queues; among a tenant's transactions `rank_at` counts. Wallets
-- with something to do are found by jumping through the index, not by reading the queue. A tenant whose live attempts
-- fill its window has no turn. Its room is counted in calls: what goes alone takes the room of a whole group.
WITH RECURSIVE lanes AS (
    (SELECT tenant_id, wallet_id FROM transactions WHERE state = 'queued' AND lease IS NULL AND NOT held
     ORDER BY tenant_id, wallet_id LIMIT 1)
    UNION ALL
    SELECT next.tenant_id, next.wallet_id FROM lanes l CROSS JOIN LATERAL (
        SELECT t.tenant_id, t.wallet_id FROM transactions t
        WHERE t.state = 'queued' AND t.lease IS NULL AND NOT t.held
          AND (t.tenant_id, t.wallet_id) > (l.tenant_id, l.wallet_id)
        ORDER BY t.tenant_id, t.wallet_id LIMIT 1
    ) next
), on_their_way AS MATERIALIZED (
    SELECT tenant_id, sum(attempts) AS attempts FROM (
        SELECT tenant_id, live AS attempts FROM wallet_reservations WHERE network = %(network)s AND live > 0
        UNION ALL
        -- What others are making of theirs.
        SELECT tenant_id, ceil(sum(CASE WHEN grouping = 'never' OR alone OR call_count > 1 THEN %(calls_each)s ELSE 1 END)
                               / %(calls_each)s::numeric)
        FROM transactions WHERE lease IS NOT NULL GROUP BY tenant_id
    ) a GROUP BY tenant_id
), open AS MATERIALIZED (
    SELECT l.tenant_id, l.wallet_id,
           (%(window)s - coalesce(m.attempts, 0)) * %(calls_each)s::bigint AS room
    FROM lanes l LEFT JOIN on_their_way m ON m.tenant_id = l.tenant_id
    JOIN tenants n ON n.id = l.tenant_id AND n.paused_at IS NULL
    JOIN wallets w ON (w.tenant_id, w.id) = (l.tenant_id, l.wallet_id) AND w.paused_at IS NULL
    WHERE coalesce(m.attempts, 0) < %(window)s
      AND NOT EXISTS (SELECT FROM wallet_reservations r
                      WHERE (r.tenant_id, r.wallet_id) = (l.tenant_id, l.wallet_id) AND r.waits_until > now())
), due AS MATERIALIZED (
    SELECT o.tenant_id, o.wallet_id, o.room, count(*) OVER (PARTITION BY o.tenant_id) AS lanes,
           row_number() OVER (PARTITION BY o.tenant_id ORDER BY f.rank_at) AS place
    FROM open o CROSS JOIN LATERAL (
        SELECT t.rank_at FROM transactions t
        WHERE t.tenant_id = o.tenant_id AND t.wallet_id = o.wallet_id
          AND t.state = 'queued' AND t.lease IS NULL AND NOT t.held AND t.available_at <= now()
          -- What is due ranks no later than that: the rest of the index need not be read.
          AND t.rank_at <= now() + make_interval(secs => %(longest_start_s)s)
        ORDER BY t.rank_at LIMIT 1
    ) f
), share AS MATERIALIZED (
    -- Most that is looked at of a tenant: its part of the batch, and as much again for three that have less than theirs.
    -- It is in no more wallets than that.
    SELECT least(%(limit)s, 4 * ceil(%(limit)s / greatest(count(DISTINCT tenant_id), 1)::float8))::int AS most FROM due
), first AS MATERIALIZED (
    -- As many of a tenant as it may get rank no later than `bound`, for the first few of its wallets are as many.
    SELECT d.tenant_id, d.wallet_id, d.room, s.most,
           nth_value(f.rank_at, s.most) OVER (PARTITION BY d.tenant_id ORDER BY f.rank_at
                                              ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS bound,
           row_number() OVER (PARTITION BY d.tenant_id, d.wallet_id) AS number
    FROM share s JOIN due d ON d.place <= s.most CROSS JOIN LATERAL (
        SELECT t.rank_at FROM transactions t
        WHERE t.tenant_id = d.tenant_id AND t.wallet_id = d.wallet_id
          AND t.state = 'queued' AND t.lease IS NULL AND NOT t.held AND t.available_at <= now()
          AND t.rank_at <= now() + make_interval(secs => %(longest_start_s)s)
        ORDER BY t.rank_at LIMIT ceil(s.most / d.lanes::float8)
    ) f
), candidates AS (
    SELECT c.ctid, c.rank_at, d.room, row_number() OVER turn AS place, sum(c.takes) OVER turn AS taken
    FROM first d
    CROSS JOIN LATERAL (
        SELECT t.ctid, t.rank_at,
               CASE WHEN t.grouping = 'never' OR t.alone OR t.call_count > 1 THEN %(calls_each)s ELSE 1 END AS takes
        FROM transactions t
        WHERE t.tenant_id = d.tenant_id AND t.wallet_id = d.wallet_id
          AND t.state = 'queued' AND t.lease IS NULL AND NOT t.held AND t.available_at <= now()
          AND t.rank_at <= least(d.bound, now() + make_interval(secs => %(longest_start_s)s))
        ORDER BY t.rank_at LIMIT d.most
    ) c
    WHERE d.number = 1
    WINDOW turn AS (PARTITION BY d.tenant_id ORDER BY c.rank_at, c.ctid)
)
UPDATE transactions t
SET lease = %(lease)s, lease_until = now() + make_interval(secs => %(lease_s)s), tries = tries + 1
-- By place in the table: the same statement has just read it, and looks at its state once more.
WHERE t.ctid = ANY(ARRAY(SELECT ctid FROM candidates WHERE taken <= room ORDER BY place, rank_at LIMIT %(limit)s))
  AND t.state = 'queued' AND t.lease IS NULL AND NOT t.held
RETURNING t.tenant_id, t.id, t.wallet_id, t.tries, t.script, t.call_count, t.valid_for_blocks, t.max_fee, t.network,
          t.grouping = 'never' OR t.alone, t.speed,
          -- Only what shared a transaction that failed as a whole has paid already.
          CASE WHEN t.alone THEN
              (SELECT coalesce(sum(i.system_fee + i.network_fee), 0)::bigint FROM transaction_attempt_intents i
               JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (i.tenant_id, i.txid) AND a.state = 'included'
               WHERE (i.tenant_id, i.transaction_id) = (t.tenant_id, t.id))
          ELSE 0 END,
          t.rank_at

-- --- what is leased -----------------------------------------------------------------------------------------------

-- name: renew
-- What is locked is being stored, sent or ended, or is renewed the next time: nobody waits here for rows in an order of
-- their own.
WITH intents AS (
    SELECT tenant_id, id FROM transactions WHERE lease IS NOT NULL AND lease = ANY(%(leases)s)
    FOR UPDATE SKIP LOCKED
), queued AS (
    UPDATE transactions t SET lease_until = now() + make_interval(secs => %(lease_s)s)
    FROM intents i WHERE (t.tenant_id, t.id) = (i.tenant_id, i.id)
), attempts AS (
    SELECT tenant_id, txid FROM transaction_attempts WHERE state = 'signed' AND lease = ANY(%(leases)s)
    FOR UPDATE SKIP LOCKED
)
UPDATE transaction_attempts a SET lease_until = now() + make_interval(secs => %(lease_s)s)
FROM attempts l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)

-- name: postpone
-- Back into the queue, for a while or at once; a null cause leaves the one it has.
UPDATE transactions t
SET lease = NULL, lease_until = NULL, available_at = now() + make_interval(secs => p.delay_s),
    cause = coalesce(p.cause, t.cause), updated_at = now()
FROM unnest(%(tenants)s::uuid[], %(ids)s::uuid[], %(delays)s::float8[], %(causes)s::text[]::json[])
     AS p (tenant_id, id, delay_s, cause)
WHERE (t.tenant_id, t.id) = (p.tenant_id, p.id) AND t.state = 'queued' AND t.lease = %(lease)s

-- name: reject
WITH changed AS (
    UPDATE transactions t
    SET state = 'rejected', cause = p.cause, lease = NULL, lease_until = NULL, updated_at = now(), events = events + 1
    FROM unnest(%(tenants)s::uuid[], %(ids)s::uuid[], %(causes)s::text[]::json[]) AS p (tenant_id, id, cause)
    WHERE (t.tenant_id, t.id) = (p.tenant_id, p.id) AND t.state = 'queued' AND t.lease = %(lease)s
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: reservations
SELECT r.tenant_id, r.wallet_id, r.reserved, r.height FROM wallet_reservations r
JOIN unnest(%(tenants)s::uuid[], %(wallets)s::uuid[]) AS w (tenant_id, wallet_id)
  ON (w.tenant_id, w.wallet_id) = (r.tenant_id, r.wallet_id)
WHERE r.network = %(network)s

-- name: lock_reservations
-- Until the transaction ends nobody else stores attempts of these wallets.
WITH missing AS (
    INSERT INTO wallet_reservations (tenant_id, wallet_id, network, reserved, height)
    SELECT w.tenant_id, w.wallet_id, %(network)s, 0, 0
    FROM unnest(%(tenants)s::uuid[], %(wallets)s::uuid[]) AS w (tenant_id, wallet_id)
    ORDER BY w.tenant_id, w.wallet_id
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE SET reserved = wallet_reservations.reserved
    RETURNING tenant_id, wallet_id, reserved, height
)
SELECT tenant_id, wallet_id, reserved, height FROM missing

-- name: wallets_wait
-- Also those that have never reserved anything; in the order of `lock_reservations`.
INSERT INTO wallet_reservations (tenant_id, wallet_id, network, reserved, height, waits_until)
SELECT w.tenant_id, w.wallet_id, %(network)s, 0, 0, now() + make_interval(secs => %(delay_s)s)
FROM unnest(%(tenants)s::uuid[], %(wallets)s::uuid[]) AS w (tenant_id, wallet_id)
ORDER BY w.tenant_id, w.wallet_id
ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE SET waits_until = excluded.waits_until

-- name: store
-- Only an attempt all of whose intents are still queued under this lease, and of nobody who was paused meanwhile, is
-- stored, and only what is stored is ever sent.
WITH carried AS (
    SELECT * FROM unnest(%(of)s::bytea[], %(positions)s::int[], %(ids)s::uuid[], %(system_fees)s::bigint[],
                         %(network_fees)s::bigint[]) AS c (txid, position, transaction_id, system_fee, network_fee)
), given AS (
    SELECT * FROM unnest(%(txids)s::bytea[], %(tenants)s::uuid[], %(wallets)s::uuid[], %(raws)s::bytea[],
                         %(grouped)s::boolean[], %(until)s::bigint[], %(attempt_system_fees)s::bigint[],
                         %(attempt_network_fees)s::bigint[], %(gas_out)s::bigint[], %(heights)s::bigint[],
                         %(sizes)s::int[])
             AS g (txid, tenant_id, wallet_id, raw, grouped, valid_until_block, system_fee, network_fee, gas_out,
                   signed_at_height, size)
), mine AS (
    SELECT t.tenant_id, t.id, g.txid FROM transactions t
    JOIN carried c ON c.transaction_id = t.id
    JOIN given g ON g.txid = c.txid AND g.tenant_id = t.tenant_id
    WHERE t.state = 'queued' AND t.lease = %(lease)s
    FOR UPDATE OF t
), complete AS (
    SELECT g.* FROM given g
    JOIN (SELECT txid, count(*) AS size FROM mine GROUP BY txid) m ON m.txid = g.txid AND m.size = g.size
    JOIN tenants n ON n.id = g.tenant_id AND n.paused_at IS NULL
    JOIN wallets w ON (w.tenant_id, w.id) = (g.tenant_id, g.wallet_id) AND w.paused_at IS NULL
), attempt AS (
    INSERT INTO transaction_attempts (tenant_id, txid, wallet_id, network, raw, grouped, valid_until_block,
                                      system_fee, network_fee, gas_out, signed_at_height, lease, lease_until)
    SELECT tenant_id, txid, wallet_id, %(network)s, raw, grouped, valid_until_block, system_fee, network_fee, gas_out,
           signed_at_height, %(lease)s, now() + make_interval(secs => %(lease_s)s)
    FROM complete
    RETURNING tenant_id, txid
), link AS (
    INSERT INTO transaction_attempt_intents (tenant_id, txid, position, transaction_id, system_fee, network_fee)
    SELECT a.tenant_id, a.txid, c.position, c.transaction_id, c.system_fee, c.network_fee
    FROM attempt a JOIN carried c ON c.txid = a.txid
), changed AS (
    UPDATE transactions t
    SET state = 'signed', txid = m.txid, network = %(network)s, cause = NULL, lease = NULL, lease_until = NULL,
        updated_at = now(), events = events + 1
    FROM mine m JOIN attempt a ON a.txid = m.txid
    WHERE (t.tenant_id, t.id) = (m.tenant_id, m.id)
    RETURNING t.tenant_id, t.id, t.events
), event AS (
    INSERT INTO transaction_events (tenant_id, transaction_id, number, state)
    SELECT tenant_id, id, events, 'signed' FROM changed
)
SELECT txid FROM attempt

-- name: lease_signed
-- Bytes that were stored and may or may not have been sent.
UPDATE transaction_attempts a
SET lease = %(lease)s, lease_until = now() + make_interval(secs => %(lease_s)s), tries = tries + 1
FROM (
    SELECT s.tenant_id, s.txid FROM transaction_attempts s
    JOIN tenants n ON n.id = s.tenant_id
    JOIN wallets w ON (w.tenant_id, w.id) = (s.tenant_id, s.wallet_id)
    WHERE s.state = 'signed' AND s.lease_until <= now()
      AND (s.kind = 'cancel' OR (n.paused_at IS NULL AND w.paused_at IS NULL))
      AND NOT EXISTS (SELECT FROM transaction_attempts r
                      WHERE (r.tenant_id, r.wallet_id) = (s.tenant_id, s.wallet_id) AND r.kind <> 'send'
                        AND r.state IN ('signed', 'sent') AND s.txid = ANY(r.conflicts_with))
    ORDER BY s.lease_until LIMIT %(limit)s
    FOR UPDATE OF s SKIP LOCKED
) due
WHERE (a.tenant_id, a.txid) = (due.tenant_id, due.txid)
-- Replacements are stored for others to send: at the first lease nobody has.
RETURNING a.tenant_id, a.txid, a.raw, a.network, a.tries, a.kind = 'send' OR a.tries > 1

-- name: mark_sent
-- Attempts are locked in one order everywhere, so that workers and the follower wait for each other and never in a
-- circle.
WITH locked AS (
    SELECT tenant_id, txid FROM transaction_attempts
    WHERE txid = ANY(%(txids)s) AND state = 'signed' ORDER BY txid FOR UPDATE
), attempt AS (
    UPDATE transaction_attempts a SET state = 'sent', sent_at_height = %(height)s, lease = NULL, lease_until = NULL
    FROM locked l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)
    RETURNING a.tenant_id, a.txid
), changed AS (
    UPDATE transactions t SET state = 'sent', cause = NULL, updated_at = now(), events = events + 1
    FROM attempt a JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (a.tenant_id, a.txid)
    WHERE (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id) AND t.state = 'signed'
    RETURNING t.tenant_id, t.id, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state)
SELECT tenant_id, id, events, 'sent' FROM changed

-- name: mark_resent
UPDATE transaction_attempts SET sent_at_height = %(height)s WHERE txid = ANY(%(txids)s) AND state = 'sent'

-- name: postpone_signed
-- To be sent again, the same bytes.
WITH given AS (
    SELECT * FROM unnest(%(txids)s::bytea[], %(delays)s::float8[], %(causes)s::text[]::json[])
             AS g (txid, delay_s, cause)
), locked AS (
    SELECT a.tenant_id, a.txid, g.delay_s, g.cause FROM transaction_attempts a JOIN given g ON g.txid = a.txid
    WHERE a.state = 'signed' AND a.lease = %(lease)s ORDER BY a.txid FOR UPDATE OF a
), attempt AS (
    UPDATE transaction_attempts a SET lease = NULL, lease_until = now() + make_interval(secs => l.delay_s)
    FROM locked l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)
    RETURNING a.tenant_id, a.txid, l.cause
)
UPDATE transactions t SET cause = a.cause, updated_at = now()
FROM attempt a JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (a.tenant_id, a.txid)
WHERE (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id) AND t.state = 'signed'

-- name: refuse
-- After `lock_attempts` and `lock_reservations_of`.
-- No node has it nor ever will. What shared it with others goes on alone.
WITH given AS (
    SELECT * FROM unnest(%(txids)s::bytea[], %(causes)s::text[]::json[]) AS g (txid, cause)
), locked AS (
    SELECT a.tenant_id, a.txid, g.cause FROM transaction_attempts a JOIN given g ON g.txid = a.txid
    WHERE a.state = 'signed' AND a.lease = %(lease)s ORDER BY a.txid FOR UPDATE OF a
), attempt AS (
    UPDATE transaction_attempts a SET state = 'refused', lease = NULL, lease_until = NULL
    FROM locked l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)
    RETURNING a.tenant_id, a.txid, a.kind, a.grouped, l.cause
), concerned AS (
    SELECT i.tenant_id, i.transaction_id, a.txid, a.kind, a.grouped, a.cause,
           -- What was to be replaced may still be included, or what replaces it.
           EXISTS (SELECT FROM transaction_attempt_intents o
                   JOIN transaction_attempts b ON (b.tenant_id, b.txid) = (o.tenant_id, o.txid)
                   WHERE (o.tenant_id, o.transaction_id) = (i.tenant_id, i.transaction_id)
                     AND b.state IN ('signed', 'sent') AND b.txid NOT IN (SELECT txid FROM locked)) AS goes_on
    FROM attempt a JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (a.tenant_id, a.txid)
), told AS (
    UPDATE transactions t SET cause = c.cause, updated_at = now()
    FROM concerned c
    WHERE c.goes_on AND c.kind <> 'send' AND (t.tenant_id, t.id) = (c.tenant_id, c.transaction_id)
      AND t.state IN ('signed', 'sent')
), changed AS (
    -- Whichever of its attempts was the last; those before it may have expired since it was sent.
    UPDATE transactions t
    SET state = n.state, txid = CASE WHEN n.state = 'rejected' THEN t.txid END,
        alone = t.alone OR n.grouped, cause = n.cause, available_at = now(), updated_at = now(), events = events + 1
    FROM (SELECT c.*, CASE WHEN c.grouped OR (c.kind <> 'send' AND w.on_expiry = 'rebuild') THEN 'queued'
                      ELSE 'rejected' END AS state
          FROM concerned c JOIN transactions w ON (w.tenant_id, w.id) = (c.tenant_id, c.transaction_id)) n
    WHERE NOT n.goes_on AND (t.tenant_id, t.id) = (n.tenant_id, n.transaction_id)
      AND t.state IN ('signed', 'sent')
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- --- what blocks say --------------------------------------------------------------------------------------------

-- name: unseen
-- Not what is to be replaced: its replacement is sent instead.
SELECT s.txid, s.raw FROM transaction_attempts s
WHERE s.network = %(network)s AND s.state = 'sent' AND s.valid_until_block > %(height)s
  AND s.sent_at_height <= %(height)s - %(blocks)s
  AND NOT EXISTS (SELECT FROM transaction_attempts r
                  WHERE (r.tenant_id, r.wallet_id) = (s.tenant_id, s.wallet_id) AND r.kind <> 'send'
                    AND r.state IN ('signed', 'sent') AND s.txid = ANY(r.conflicts_with))
ORDER BY s.sent_at_height LIMIT %(limit)s

-- name: live
SELECT txid, grouped FROM transaction_attempts WHERE network = %(network)s AND state IN ('signed', 'sent')

-- name: ours
SELECT txid, grouped FROM transaction_attempts WHERE txid = ANY(%(txids)s)

-- name: lock_attempts
-- With those that replace them or that they replace. What is decided by what else is live is decided in a statement
-- after this one: while this waits for a replacement to be stored, its own view of the table gets old.
WITH wanted AS (
    SELECT unnest(%(txids)s::bytea[]) AS txid
    UNION
    SELECT unnest(conflicts_with) FROM transaction_attempts WHERE txid = ANY(%(txids)s) AND kind <> 'send'
    UNION
    SELECT txid FROM transaction_attempts
    WHERE kind <> 'send' AND state IN ('signed', 'sent') AND conflicts_with && %(txids)s::bytea[]
)
SELECT a.txid FROM transaction_attempts a JOIN wanted w ON w.txid = a.txid ORDER BY a.txid FOR UPDATE OF a

-- name: lock_block
-- `lock_attempts` of those in a block together with those that expire with it: in two statements they would be locked
-- out of order.
WITH wanted AS (
    SELECT unnest(%(txids)s::bytea[]) AS txid
    UNION
    SELECT unnest(conflicts_with) FROM transaction_attempts WHERE txid = ANY(%(txids)s) AND kind <> 'send'
    UNION
    SELECT txid FROM transaction_attempts
    WHERE kind <> 'send' AND state IN ('signed', 'sent') AND conflicts_with && %(txids)s::bytea[]
    UNION
    SELECT txid FROM transaction_attempts
    WHERE network = %(network)s AND state IN ('signed', 'sent') AND valid_until_block <= %(index)s
)
SELECT a.txid, a.network = %(network)s AND a.state IN ('signed', 'sent') AND a.valid_until_block <= %(index)s
FROM transaction_attempts a JOIN wanted w ON w.txid = a.txid ORDER BY a.txid FOR UPDATE OF a

-- name: lock_reservations_of
-- Before statements change them, each in its order, and before intents are locked: who stores has them in this order.
SELECT FROM wallet_reservations
WHERE (tenant_id, wallet_id, network) IN (
    SELECT tenant_id, wallet_id, network FROM transaction_attempts WHERE txid = ANY(%(txids)s))
ORDER BY tenant_id, wallet_id, network FOR UPDATE

-- name: include
-- After `lock_attempts` or `lock_block`.
-- The chain is right whatever state we were in; the same block a second time changes nothing. Outcomes are of each
-- position, or of the whole attempt where the position is null.
WITH found AS (
    SELECT * FROM unnest(%(txids)s::bytea[], %(halted)s::boolean[]) AS f (txid, halted)
), locked AS (
    SELECT a.tenant_id, a.txid, f.halted FROM transaction_attempts a JOIN found f ON f.txid = a.txid
    WHERE a.block_index IS DISTINCT FROM %(index)s ORDER BY a.txid FOR UPDATE OF a
), attempt AS (
    UPDATE transaction_attempts a SET state = 'included', block_index = %(index)s, lease = NULL, lease_until = NULL
    FROM locked l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)
    RETURNING a.tenant_id, a.txid, a.grouped, a.conflicts_with, l.halted
), outcome AS (
    SELECT * FROM unnest(%(of)s::bytea[], %(positions)s::int[], %(states)s::text[], %(causes)s::text[]::json[],
                         %(results)s::text[]::json[]) AS o (txid, position, state, cause, result)
), carried AS (
    SELECT i.tenant_id, i.txid, a.conflicts_with, i.position, i.transaction_id, o.result,
           -- The whole transaction's FAULT is no answer for calls that shared it: they go on alone.
           CASE WHEN i.role = 'cancel' THEN 'cancelled' WHEN a.grouped AND NOT a.halted THEN 'queued'
                ELSE o.state END AS state,
           CASE WHEN i.role = 'execute' THEN o.cause END AS cause
    FROM attempt a
    JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (a.tenant_id, a.txid)
    LEFT JOIN outcome o ON o.txid = i.txid AND coalesce(o.position, i.position) = i.position
), replaced AS (
    -- Two attempts that carry the same intent conflict, see `conflicts_with`.
    UPDATE transaction_attempts r SET state = 'replaced', lease = NULL, lease_until = NULL
    FROM carried c JOIN transaction_attempt_intents i
      ON (i.tenant_id, i.transaction_id) = (c.tenant_id, c.transaction_id) AND i.txid <> c.txid
    WHERE (r.tenant_id, r.txid) = (i.tenant_id, i.txid) AND r.state IN ('signed', 'sent')
), result AS (
    UPDATE transaction_attempt_intents i SET result = c.result
    FROM carried c WHERE (i.tenant_id, i.txid, i.position) = (c.tenant_id, c.txid, c.position)
), changed AS (
    UPDATE transactions t
    SET state = c.state, updated_at = now(), events = events + 1, lease = NULL, lease_until = NULL,
        cause = CASE WHEN c.state = 'cancelled'
                     THEN json_build_object('code', 'cancelled', 'message', 'another transaction took its place')
                     WHEN c.cause IS NULL AND t.cancel_requested_at IS NOT NULL
                     THEN json_build_object('code', 'too_late', 'message', 'it was included before it was cancelled')
                     ELSE c.cause END,
        txid = CASE WHEN c.state <> 'queued' THEN c.txid END,
        block_index = CASE WHEN c.state <> 'queued' THEN %(index)s::bigint END,
        block_time = CASE WHEN c.state <> 'queued' THEN %(time)s::timestamptz END,
        alone = t.alone OR c.state = 'queued', available_at = now()
    FROM carried c
    WHERE (t.tenant_id, t.id) = (c.tenant_id, c.transaction_id)
      AND (c.state <> 'queued' OR (
          t.state IN ('signed', 'sent')
          -- Unless it has gone on with one that a block may still take beside this.
          AND NOT EXISTS (
              SELECT FROM transaction_attempt_intents o
              JOIN transaction_attempts b ON (b.tenant_id, b.txid) = (o.tenant_id, o.txid)
              WHERE (o.tenant_id, o.transaction_id) = (t.tenant_id, t.id) AND b.state IN ('signed', 'sent')
                AND b.txid <> c.txid AND b.txid <> ALL(c.conflicts_with) AND c.txid <> ALL(b.conflicts_with)
          )
      ))
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: expire
-- After `lock_block`.
-- All blocks up to this one were looked through, and an attempt is in none of them after its validUntilBlock. An
-- intent ends with the last of its attempts.
WITH locked AS (
    SELECT tenant_id, txid, valid_until_block FROM transaction_attempts
    WHERE network = %(network)s AND state IN ('signed', 'sent') AND valid_until_block <= %(index)s
    ORDER BY txid FOR UPDATE
), attempt AS (
    UPDATE transaction_attempts a SET state = 'expired', lease = NULL, lease_until = NULL
    FROM locked l WHERE (a.tenant_id, a.txid) = (l.tenant_id, l.txid)
    RETURNING a.tenant_id, a.txid, a.valid_until_block
), changed AS (
    UPDATE transactions t
    SET state = CASE t.on_expiry WHEN 'rebuild' THEN 'queued' ELSE 'expired' END,
        txid = CASE t.on_expiry WHEN 'rebuild' THEN NULL ELSE t.txid END,
        available_at = now(), updated_at = now(), events = events + 1,
        cause = json_build_object('code', 'expired', 'message',
                                  'in no block up to its validUntilBlock ' || a.valid_until_block)
    FROM attempt a JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (a.tenant_id, a.txid)
    WHERE (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id) AND t.state IN ('signed', 'sent')
      AND NOT EXISTS (
          SELECT FROM transaction_attempt_intents o
          JOIN transaction_attempts b ON (b.tenant_id, b.txid) = (o.tenant_id, o.txid)
          WHERE (o.tenant_id, o.transaction_id) = (t.tenant_id, t.id)
            AND b.state IN ('signed', 'sent') AND b.valid_until_block > %(index)s
      )
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: unconfirm
-- A private chain lost blocks: what they confirmed or let expire is on its way again, with the same bytes. Attempts
-- whose intents have gone on with others are never sent again: the node that lost the block has forgotten them.
WITH locked AS (
    SELECT tenant_id, txid FROM transaction_attempts
    WHERE network = %(network)s AND (block_index > %(index)s
                                     OR (state = 'expired' AND valid_until_block > %(index)s))
    ORDER BY txid FOR UPDATE
), undone AS MATERIALIZED (
    -- One by one: seen as a join of sets it would be one of whole tables.
    SELECT l.tenant_id, l.txid, c.current FROM locked l CROSS JOIN LATERAL (
        SELECT count(*) > 0 AS current FROM transaction_attempt_intents i
        JOIN transactions t ON (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id)
        WHERE (i.tenant_id, i.txid) = (l.tenant_id, l.txid) AND t.txid = l.txid
    ) c
), attempt AS (
    UPDATE transaction_attempts a
    SET state = CASE WHEN u.current THEN 'sent' ELSE 'replaced' END, sent_at_height = 0, block_index = NULL
    FROM undone u WHERE (a.tenant_id, a.txid) = (u.tenant_id, u.txid)
), result AS (
    UPDATE transaction_attempt_intents i SET result = NULL
    FROM undone u WHERE (i.tenant_id, i.txid) = (u.tenant_id, u.txid)
), changed AS (
    UPDATE transactions t
    SET state = 'sent', updated_at = now(), block_index = NULL, block_time = NULL, events = events + 1,
        cause = json_build_object('code', 'chain_rewound', 'message', 'the chain went back to block ' || %(index)s)
    FROM undone u JOIN transaction_attempt_intents i ON (i.tenant_id, i.txid) = (u.tenant_id, u.txid)
    WHERE u.current AND (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id) AND t.txid = u.txid
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- --- the pool ------------------------------------------------------------------------------------------------------

-- name: pool_size
SELECT transactions FROM worker_pool

-- name: set_pool_size
INSERT INTO worker_pool (transactions) VALUES (%(size)s)
ON CONFLICT (singleton) DO UPDATE SET transactions = excluded.transactions, updated_at = now()

-- --- what a wallet may spend on fees -----------------------------------------------------------------------------

-- name: limits
SELECT max_fee_per_transaction, max_fee_per_day FROM wallet_limits
WHERE tenant_id = %(tenant_id)s AND wallet_id = %(wallet_id)s

-- name: set_limits
INSERT INTO wallet_limits (tenant_id, wallet_id, max_fee_per_transaction, max_fee_per_day)
VALUES (%(tenant_id)s, %(wallet_id)s, %(max_fee_per_transaction)s, %(max_fee_per_day)s)
ON CONFLICT (tenant_id, wallet_id) DO UPDATE
SET max_fee_per_transaction = excluded.max_fee_per_transaction, max_fee_per_day = excluded.max_fee_per_day,
    updated_at = now()

-- name: lock_daily_limit
SELECT max_fee_per_day FROM wallet_limits
WHERE tenant_id = %(tenant_id)s AND wallet_id = %(wallet_id)s AND max_fee_per_day IS NOT NULL
FOR UPDATE

-- name: settle_fees
-- What ended gives back what it did not pay. Without a row in a block it paid nothing.
WITH ended AS (
    SELECT t.id, t.counted_day, t.counted_fee FROM transactions t
    WHERE t.tenant_id = %(tenant_id)s AND t.wallet_id = %(wallet_id)s AND t.counted_fee IS NOT NULL
      AND t.state IN ('confirmed', 'faulted', 'expired', 'rejected', 'cancelled')
    FOR UPDATE
), paid AS (
    SELECT i.transaction_id AS id, sum(i.system_fee + i.network_fee) AS datoshi
    FROM ended e
    JOIN transaction_attempt_intents i ON i.tenant_id = %(tenant_id)s AND i.transaction_id = e.id
    JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (i.tenant_id, i.txid) AND a.state = 'included'
    GROUP BY i.transaction_id
), settled AS (
    UPDATE transactions t SET counted_fee = NULL FROM ended e WHERE t.tenant_id = %(tenant_id)s AND t.id = e.id
), unused AS (
    SELECT e.counted_day, sum(e.counted_fee - coalesce(p.datoshi, 0)) AS datoshi
    FROM ended e LEFT JOIN paid p ON p.id = e.id GROUP BY e.counted_day
)
UPDATE wallet_fee_days d SET datoshi = greatest(d.datoshi - u.datoshi, 0)
FROM unused u WHERE d.tenant_id = %(tenant_id)s AND d.wallet_id = %(wallet_id)s AND d.day = u.counted_day

-- name: counted_fees
SELECT datoshi FROM wallet_fee_days
WHERE tenant_id = %(tenant_id)s AND wallet_id = %(wallet_id)s AND day = %(day)s

-- name: count_fee
INSERT INTO wallet_fee_days (tenant_id, wallet_id, day, datoshi)
VALUES (%(tenant_id)s, %(wallet_id)s, %(day)s, %(datoshi)s)
ON CONFLICT (tenant_id, wallet_id, day) DO UPDATE SET datoshi = wallet_fee_days.datoshi + excluded.datoshi

-- name: mark_counted
-- What was counted for it before stays in its day.
UPDATE transactions SET counted_fee = coalesce(counted_fee, 0) + %(datoshi)s, counted_day = %(day)s
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- --- replacing what is signed, see `replace.py` ------------------------------------------------------------------

-- name: replaceable
SELECT state, txid, wallet_id, speed, cancel_requested_at IS NOT NULL FROM transactions
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: live_of
-- The attempts of an intent that a block may take.
SELECT a.txid, a.grouped, a.network, a.valid_until_block, a.system_fee, a.network_fee
FROM transaction_attempt_intents i
JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (i.tenant_id, i.txid)
WHERE i.tenant_id = %(tenant_id)s AND i.transaction_id = %(id)s AND a.state IN ('signed', 'sent')
ORDER BY a.txid

-- name: lock_live
SELECT a.txid FROM transaction_attempt_intents i
JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (i.tenant_id, i.txid)
WHERE i.tenant_id = %(tenant_id)s AND i.transaction_id = %(id)s AND a.state IN ('signed', 'sent')
ORDER BY a.txid FOR UPDATE OF a

-- name: carried
-- Positions of those that are not carried out come last. The last column is what a transaction that it shared before, and
-- that failed as a whole, has cost it.
SELECT t.id, t.script, i.role = 'cancel', i.system_fee, i.network_fee, t.valid_for_blocks,
       t.max_fee, coalesce(t.counted_fee, 0),
       (SELECT coalesce(sum(s.system_fee + s.network_fee), 0)::bigint FROM transaction_attempt_intents s
        JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (s.tenant_id, s.txid)
        WHERE (s.tenant_id, s.transaction_id) = (t.tenant_id, t.id) AND a.state = 'included')
FROM transaction_attempt_intents i
JOIN transactions t ON (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id)
WHERE i.tenant_id = %(tenant_id)s AND i.txid = %(txid)s ORDER BY i.position

-- name: cancel_queued
WITH changed AS (
    UPDATE transactions
    SET state = 'cancelled', lease = NULL, lease_until = NULL, updated_at = now(), events = events + 1,
        cause = json_build_object('code', 'cancelled', 'message', 'cancelled before it was signed')
    WHERE tenant_id = %(tenant_id)s AND id = %(id)s AND state = 'queued'
    RETURNING tenant_id, id, state, cause, events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: speed_up_queued
UPDATE transactions SET speed = %(speed)s, max_fee = coalesce(%(max_fee)s, max_fee), updated_at = now()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s AND state = 'queued'
RETURNING coalesce(counted_fee, 0)

-- name: store_replacement
-- Its lease has ended, so that the next worker who looks sends it. Of it and what it replaces one can be in the
-- chain, and that one may be counted already: it counts as signed long ago.
WITH attempt AS (
    INSERT INTO transaction_attempts (tenant_id, txid, wallet_id, network, raw, kind, conflicts_with, gas_out, grouped,
                                      valid_until_block, system_fee, network_fee, lease_until)
    VALUES (%(tenant_id)s, %(txid)s, %(wallet_id)s, %(network)s, %(raw)s, %(kind)s, %(conflicts_with)s, %(gas_out)s,
            %(grouped)s, %(valid_until_block)s, %(system_fee)s, %(network_fee)s, now())
    RETURNING tenant_id, txid
)
INSERT INTO transaction_attempt_intents (tenant_id, txid, position, transaction_id, role, system_fee, network_fee)
SELECT a.tenant_id, a.txid, c.position - 1, c.id, c.role, c.system_fee, c.network_fee
FROM attempt a, unnest(%(ids)s::uuid[], %(roles)s::text[], %(system_fees)s::bigint[], %(network_fees)s::bigint[])
                WITH ORDINALITY AS c (id, role, system_fee, network_fee, position)

-- name: ask_replacement
WITH changed AS (
    UPDATE transactions
    SET cancel_requested_at = CASE WHEN %(cancel)s THEN coalesce(cancel_requested_at, now()) END,
        speed = coalesce(%(speed)s, speed), max_fee = coalesce(%(max_fee)s, max_fee), cause = %(cause)s,
        updated_at = now(), events = events + 1
    WHERE tenant_id = %(tenant_id)s AND id = %(id)s
    RETURNING tenant_id, id, state, cause, events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: attempts_of
SELECT a.txid, a.kind, a.state, i.role, a.conflicts_with, i.system_fee, i.network_fee, a.valid_until_block,
       a.block_index, a.signed_at
FROM transaction_attempt_intents i
JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (i.tenant_id, i.txid)
WHERE i.tenant_id = %(tenant_id)s AND i.transaction_id = %(id)s ORDER BY a.signed_at, a.txid
