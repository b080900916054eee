-- name: insert
WITH inserted AS (
    INSERT INTO transactions (tenant_id, id, wallet_id, idempotency_key, request_hash, calls, script, priority,
                              valid_for_blocks, max_fee, execution_id, network, state)
    VALUES (%(tenant_id)s, %(id)s, %(wallet_id)s, %(idempotency_key)s, %(request_hash)s, %(calls)s, %(script)s,
            %(priority)s, %(valid_for_blocks)s, %(max_fee)s, %(execution_id)s, %(network)s, 'queued')
    ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
    RETURNING tenant_id, id, state
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state)
SELECT tenant_id, id, 1, state FROM inserted

-- name: by_key
SELECT id, request_hash FROM transactions
WHERE tenant_id = %(tenant_id)s AND idempotency_key = %(idempotency_key)s

-- name: by_id
SELECT t.id, t.wallet_id, t.state, t.cause, t.calls, t.priority, t.valid_for_blocks, t.max_fee, t.execution_id, t.txid,
       a.valid_until_block, a.system_fee, a.network_fee, t.block_index, t.block_time, a.result,
       t.created_at, t.updated_at
FROM transactions t
LEFT JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
WHERE t.tenant_id = %(tenant_id)s AND t.id = %(id)s

-- name: list
SELECT t.id, t.wallet_id, t.state, t.cause, t.calls, t.priority, t.valid_for_blocks, t.max_fee, t.execution_id, t.txid,
       a.valid_until_block, a.system_fee, a.network_fee, t.block_index, t.block_time, a.result,
       t.created_at, t.updated_at
FROM transactions t
LEFT JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
WHERE t.tenant_id = %(tenant_id)s AND t.id < %(before)s
  AND (%(state)s::text IS NULL OR t.state = %(state)s)
ORDER BY t.id DESC LIMIT %(limit)s

-- name: events
SELECT number, state, cause, at FROM transaction_events
WHERE tenant_id = %(tenant_id)s AND transaction_id = %(id)s ORDER BY number

-- name: lease
UPDATE transactions t
SET available_at = now() + make_interval(secs => %(lease_s)s), lease_owner = %(owner)s, tries = tries + 1
FROM (
    SELECT tenant_id, id FROM transactions
    WHERE state IN ('queued', 'signed') AND available_at <= now()
    ORDER BY priority DESC, available_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) due
WHERE (t.tenant_id, t.id) = (due.tenant_id, due.id)
RETURNING t.tenant_id, t.id, t.state, t.tries, t.script, t.valid_for_blocks, t.max_fee, t.wallet_id,
          t.network

-- name: store_signed
-- Only the owner of the lease may do this: bytes of a worker that lost its lease are never stored, hence never sent.
WITH signed AS (
    UPDATE transactions
    SET state = 'signed', txid = %(txid)s, network = %(network)s, cause = NULL, updated_at = now(),
        events = events + 1
    WHERE tenant_id = %(tenant_id)s AND id = %(id)s AND state = 'queued' AND lease_owner = %(owner)s
    RETURNING tenant_id, id, events
), attempt AS (
    INSERT INTO transaction_attempts (tenant_id, transaction_id, txid, network, raw, valid_until_block, system_fee,
                                      network_fee)
    SELECT tenant_id, id, %(txid)s, %(network)s, %(raw)s, %(valid_until_block)s, %(system_fee)s, %(network_fee)s
    FROM signed
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state)
SELECT tenant_id, id, events, 'signed' FROM signed

-- name: change_state
WITH changed AS (
    UPDATE transactions
    SET state = %(state)s, cause = %(cause)s, updated_at = now(), available_at = now(), events = events + 1
    WHERE tenant_id = %(tenant_id)s AND id = %(id)s AND state = %(from)s
    RETURNING tenant_id, id, state, cause, events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: postpone
UPDATE transactions
SET available_at = now() + make_interval(secs => %(delay_s)s), lease_owner = NULL, cause = %(cause)s, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s AND state = %(state)s

-- name: attempt
SELECT raw, txid, network FROM transaction_attempts
WHERE tenant_id = %(tenant_id)s AND transaction_id = %(id)s
ORDER BY signed_at DESC LIMIT 1

-- name: mark_sent
UPDATE transaction_attempts SET sent_at_height = %(height)s WHERE txid = %(txid)s

-- name: unseen
SELECT a.txid, a.raw FROM transactions t
JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
WHERE t.state = 'sent' AND a.network = %(network)s AND a.valid_until_block > %(height)s
  AND a.sent_at_height <= %(height)s - %(blocks)s
ORDER BY a.sent_at_height LIMIT 200

-- name: live
SELECT a.txid FROM transactions t
JOIN transaction_attempts a ON (a.tenant_id, a.txid) = (t.tenant_id, t.txid)
WHERE t.state IN ('signed', 'sent') AND a.network = %(network)s

-- name: ours
SELECT txid FROM transaction_attempts WHERE txid = ANY(%(txids)s)

-- name: include
-- The chain is right whatever state we were in; the same block a second time changes nothing.
WITH found AS (
    SELECT * FROM unnest(%(txids)s::bytea[], %(states)s::text[], %(results)s::text[]::json[], %(exceptions)s::text[])
             AS f (txid, state, result, exception)
), attempt AS (
    UPDATE transaction_attempts a SET result = f.result
    FROM found f WHERE a.txid = f.txid
    RETURNING a.tenant_id, a.transaction_id, a.txid, f.state, f.exception
), changed AS (
    UPDATE transactions t
    SET state = attempt.state, txid = attempt.txid, block_index = %(index)s, block_time = %(time)s, updated_at = now(),
        events = events + 1,
        cause = CASE attempt.state WHEN 'faulted'
                THEN json_build_object('code', 'vm_fault', 'message', attempt.exception) END
    FROM attempt
    WHERE (t.tenant_id, t.id) = (attempt.tenant_id, attempt.transaction_id)
      AND t.block_index IS DISTINCT FROM %(index)s
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: expire
-- All blocks up to this one were looked through, and a transaction is in none of them after its validUntilBlock.
WITH changed AS (
    UPDATE transactions t
    SET state = 'expired', updated_at = now(), events = events + 1,
        cause = json_build_object('code', 'expired', 'message',
                                  'in no block up to its validUntilBlock ' || a.valid_until_block)
    FROM transaction_attempts a
    WHERE (a.tenant_id, a.txid) = (t.tenant_id, t.txid) AND t.state IN ('signed', 'sent') AND a.network = %(network)s
      AND a.valid_until_block <= %(index)s
    RETURNING t.tenant_id, t.id, t.state, t.cause, t.events
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: unconfirm
-- A private chain lost blocks: what they confirmed or let expire is on its way again, with the same bytes.
WITH changed AS (
    UPDATE transactions t
    SET state = 'sent', updated_at = now(), block_index = NULL, block_time = NULL, events = events + 1,
        cause = json_build_object('code', 'chain_rewound', 'message', 'the chain went back to block ' || %(index)s)
    FROM transaction_attempts a
    WHERE (a.tenant_id, a.txid) = (t.tenant_id, t.txid) AND a.network = %(network)s
      AND (t.block_index > %(index)s OR (t.state = 'expired' AND a.valid_until_block > %(index)s))
    RETURNING t.tenant_id, t.id, t.txid, t.state, t.cause, t.events
), again AS (
    UPDATE transaction_attempts a SET sent_at_height = 0, result = NULL FROM changed
    WHERE (a.tenant_id, a.txid) = (changed.tenant_id, changed.txid)
)
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, cause)
SELECT tenant_id, id, events, state, cause FROM changed

-- name: count_by_state
SELECT state, count(*) FROM transactions GROUP BY state
