-- --- versions and aliases -------------------------------------------------------------------------------

-- name: insert_function
INSERT INTO functions (tenant_id, id, name, version) VALUES (%(tenant_id)s, %(id)s, %(name)s, 1)
ON CONFLICT (tenant_id, name) WHERE deleted_at IS NULL DO NOTHING
RETURNING id, version

-- name: next_version
UPDATE functions SET version = version + 1, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND deleted_at IS NULL
RETURNING id, version

-- name: insert_version
INSERT INTO function_versions (tenant_id, function_id, number, source, code_hash, timeout_ms, cpu_ms, memory_mb,
                               secrets, egress, isolation, max_attempts)
VALUES (%(tenant_id)s, %(function_id)s, %(number)s, %(source)s, %(code_hash)s, %(timeout_ms)s, %(cpu_ms)s,
        %(memory_mb)s, %(secrets)s, %(egress)s, %(isolation)s, %(max_attempts)s)

-- name: hold_live
-- Where `live` follows the latest version it stays at the one before.
INSERT INTO function_aliases (tenant_id, function_id, name, versions, weights)
VALUES (%(tenant_id)s, %(function_id)s, 'live', ARRAY[%(number)s - 1], ARRAY[100])
ON CONFLICT (tenant_id, function_id, name) DO NOTHING

-- name: by_name
SELECT f.id, f.name, f.version, a.versions, a.weights, v.code_hash, v.timeout_ms, v.cpu_ms, v.memory_mb, v.secrets,
       v.egress, v.isolation, v.max_attempts, f.created_at, f.updated_at, v.source
FROM functions f
JOIN function_versions v ON (v.tenant_id, v.function_id, v.number) = (f.tenant_id, f.id, f.version)
LEFT JOIN function_aliases a ON (a.tenant_id, a.function_id, a.name) = (f.tenant_id, f.id, 'live')
WHERE f.tenant_id = %(tenant_id)s AND f.name = %(name)s AND f.deleted_at IS NULL

-- name: list
SELECT f.id, f.name, f.version, a.versions, a.weights, v.code_hash, v.timeout_ms, v.cpu_ms, v.memory_mb, v.secrets,
       v.egress, v.isolation, v.max_attempts, f.created_at, f.updated_at, NULL
FROM functions f
JOIN function_versions v ON (v.tenant_id, v.function_id, v.number) = (f.tenant_id, f.id, f.version)
LEFT JOIN function_aliases a ON (a.tenant_id, a.function_id, a.name) = (f.tenant_id, f.id, 'live')
WHERE f.tenant_id = %(tenant_id)s AND f.id < %(before)s AND f.deleted_at IS NULL
ORDER BY f.id DESC LIMIT %(limit)s

-- name: delete
UPDATE functions SET deleted_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND deleted_at IS NULL
RETURNING id

-- name: list_versions
SELECT number, NULL, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, isolation, max_attempts, created_at
FROM function_versions
WHERE tenant_id = %(tenant_id)s AND function_id = %(function_id)s AND number < %(before)s
ORDER BY number DESC LIMIT %(limit)s

-- name: version
SELECT number, source, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, isolation, max_attempts, created_at
FROM function_versions
WHERE tenant_id = %(tenant_id)s AND function_id = %(function_id)s AND number = %(number)s

-- name: function
SELECT id, version, updated_at FROM functions
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND deleted_at IS NULL

-- name: lock_function
-- Neither deleted nor deployed while an alias is written.
SELECT id, version FROM functions
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND deleted_at IS NULL FOR UPDATE

-- name: aliases
SELECT name, versions, weights, updated_at FROM function_aliases
WHERE tenant_id = %(tenant_id)s AND function_id = %(function_id)s ORDER BY name

-- name: put_alias
INSERT INTO function_aliases (tenant_id, function_id, name, versions, weights)
VALUES (%(tenant_id)s, %(function_id)s, %(name)s, %(versions)s, %(weights)s)
ON CONFLICT (tenant_id, function_id, name)
DO UPDATE SET versions = EXCLUDED.versions, weights = EXCLUDED.weights, updated_at = now()
RETURNING updated_at

-- name: delete_alias
DELETE FROM function_aliases
WHERE tenant_id = %(tenant_id)s AND function_id = %(function_id)s AND name = %(name)s

-- name: resolve
SELECT f.id, f.version, a.versions, a.weights FROM functions f
LEFT JOIN function_aliases a ON (a.tenant_id, a.function_id, a.name) = (f.tenant_id, f.id, %(alias)s)
WHERE f.tenant_id = %(tenant_id)s AND f.name = %(name)s AND f.deleted_at IS NULL

-- name: runnable
SELECT f.id, f.name, v.number, v.source, v.code_hash, v.timeout_ms, v.cpu_ms, v.memory_mb, v.secrets, v.egress,
       v.isolation, v.max_attempts
FROM functions f
JOIN function_versions v ON (v.tenant_id, v.function_id) = (f.tenant_id, f.id)
WHERE f.tenant_id = %(tenant_id)s AND f.id = %(function_id)s AND f.deleted_at IS NULL
  AND v.number = ANY(%(numbers)s)

-- --- executions -----------------------------------------------------------------------------------------

-- name: copy_executions
COPY executions (tenant_id, id, function_id, function, version, status, output, error, logs, cold,
                 wall_us, cpu_us, heap_bytes, fetches, created_at, kind, parent_id, attempt, alias, queue_us,
                 peak_heap_bytes, bytes_in, bytes_out, phases) FROM STDIN

-- name: insert_execution
-- One by one, where a COPY of many failed; some may have been written by it.
INSERT INTO executions (tenant_id, id, function_id, function, version, status, output, error, logs, cold,
                        wall_us, cpu_us, heap_bytes, fetches, created_at, kind, parent_id, attempt, alias, queue_us,
                        peak_heap_bytes, bytes_in, bytes_out, phases)
VALUES (%(tenant_id)s, %(id)s, %(function_id)s, %(function)s, %(version)s, %(status)s, %(output)s, %(error)s,
        %(logs)s, %(cold)s, %(wall_us)s, %(cpu_us)s, %(heap_bytes)s, %(fetches)s, %(created_at)s, %(kind)s,
        %(parent_id)s, %(attempt)s, %(alias)s, %(queue_us)s, %(peak_heap_bytes)s, %(bytes_in)s, %(bytes_out)s,
        %(phases)s)
ON CONFLICT (tenant_id, id) DO NOTHING

-- name: execution_logs
SELECT logs FROM executions WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: watermark
-- All transactions before this one are over: what they wrote is all there will ever be of them.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text

-- --- asynchronous executions ----------------------------------------------------------------------------

-- name: queue_full
SELECT 1 FROM execution_queue WHERE tenant_id = %(tenant_id)s AND state <> 'dead' OFFSET %(most)s - 1 LIMIT 1

-- name: enqueue
INSERT INTO execution_queue (tenant_id, execution_id, function_id, key_id, target, input, state, max_attempts)
VALUES (%(tenant_id)s, %(id)s, %(function_id)s, %(key_id)s, %(target)s, %(input)s, 'queued', %(max_attempts)s)

-- name: lease_executions
-- Fair between tenants: the one with the fewest runs comes first, whatever the length of its queue. Tenants are found
-- by jumping through the index, not by reading the queue.
WITH RECURSIVE tenants AS (
    (SELECT tenant_id FROM execution_queue WHERE state <> 'dead' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT q.tenant_id FROM execution_queue q
            WHERE q.state <> 'dead' AND q.tenant_id > t.tenant_id ORDER BY q.tenant_id LIMIT 1)
    FROM tenants t WHERE t.tenant_id IS NOT NULL
), candidates AS (
    SELECT q.tenant_id, q.execution_id, running.number + q.place AS place
    FROM tenants t
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM execution_queue r
        WHERE r.tenant_id = t.tenant_id AND r.state = 'running' AND r.available_at > now()
    ) running
    CROSS JOIN LATERAL (
        SELECT d.tenant_id, d.execution_id, row_number() OVER (ORDER BY d.available_at) AS place
        FROM (SELECT tenant_id, execution_id, available_at FROM execution_queue
              WHERE tenant_id = t.tenant_id AND state <> 'dead' AND available_at <= now()
              ORDER BY available_at LIMIT %(limit)s) d
    ) q
    WHERE running.number + q.place <= %(per_tenant)s
    ORDER BY place LIMIT %(limit)s
), free AS (
    SELECT q.tenant_id, q.execution_id FROM execution_queue q
    JOIN candidates c ON (c.tenant_id, c.execution_id) = (q.tenant_id, q.execution_id)
    WHERE q.state <> 'dead' AND q.available_at <= now()
    FOR UPDATE OF q SKIP LOCKED
), leased AS (
    UPDATE execution_queue q
    SET state = 'running', lease = gen_random_uuid(), leases = q.leases + 1,
        available_at = now() + make_interval(secs => %(lease_s)s)
    FROM free WHERE (q.tenant_id, q.execution_id) = (free.tenant_id, free.execution_id)
    RETURNING q.*
), begun AS (
    UPDATE executions e SET status = 'running', attempt = least(e.attempt + 1, 32767), written = pg_current_xact_id()
    FROM leased WHERE (e.tenant_id, e.id) = (leased.tenant_id, leased.execution_id)
    RETURNING e.tenant_id, e.id, e.version, e.alias, e.attempt
)
SELECT l.tenant_id, l.execution_id, l.function_id, l.key_id, l.input, l.failures, l.max_attempts, l.leases, l.lease,
       b.version, b.alias, b.attempt
FROM leased l JOIN begun b ON (b.tenant_id, b.id) = (l.tenant_id, l.execution_id)

-- name: renew_leases
UPDATE execution_queue q SET available_at = now() + make_interval(secs => %(lease_s)s)
FROM unnest(%(tenants)s::uuid[], %(ids)s::uuid[], %(leases)s::uuid[]) AS mine (tenant_id, execution_id, lease)
WHERE (q.tenant_id, q.execution_id, q.lease) = (mine.tenant_id, mine.execution_id, mine.lease)

-- name: leave_queue
DELETE FROM execution_queue
WHERE tenant_id = %(tenant_id)s AND execution_id = %(id)s AND lease = %(lease)s

-- name: retry
UPDATE execution_queue
SET state = 'queued', failures = failures + %(failed)s, leases = 0, lease = NULL,
    available_at = now() + make_interval(secs => %(delay_s)s)
WHERE tenant_id = %(tenant_id)s AND execution_id = %(id)s AND lease = %(lease)s

-- name: bury
UPDATE execution_queue SET state = 'dead', failures = failures + 1, leases = 0, lease = NULL, dead_at = now()
WHERE tenant_id = %(tenant_id)s AND execution_id = %(id)s AND lease = %(lease)s

-- name: write_attempt
UPDATE executions
SET status = %(status)s, output = %(output)s, error = %(error)s, logs = %(logs)s, cold = %(cold)s,
    wall_us = %(wall_us)s, cpu_us = %(cpu_us)s, heap_bytes = %(heap_bytes)s, fetches = %(fetches)s,
    queue_us = %(queue_us)s, peak_heap_bytes = %(peak_heap_bytes)s, bytes_out = %(bytes_out)s, phases = %(phases)s,
    written = pg_current_xact_id()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: write_status
UPDATE executions SET status = %(status)s, error = coalesce(%(error)s, error), written = pg_current_xact_id()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: write_not_started
UPDATE executions SET status = 'queued', attempt = attempt - 1, written = pg_current_xact_id()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: cancel
DELETE FROM execution_queue WHERE tenant_id = %(tenant_id)s AND execution_id = %(id)s AND state = 'queued'

-- name: dead
SELECT q.function_id, q.target FROM execution_queue q
WHERE q.tenant_id = %(tenant_id)s AND q.execution_id = %(id)s AND q.state = 'dead' FOR UPDATE

-- name: replay
UPDATE execution_queue
SET state = 'queued', failures = 0, leases = 0, available_at = now(), dead_at = NULL, function_id = %(function_id)s,
    max_attempts = %(max_attempts)s
WHERE tenant_id = %(tenant_id)s AND execution_id = %(id)s

-- name: write_replay
UPDATE executions SET status = 'queued', version = %(version)s, written = pg_current_xact_id()
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: end_of_function
-- What waits ends with its function; what runs ends by itself. Dead ones can no longer be replayed.
WITH ended AS (
    DELETE FROM execution_queue
    WHERE tenant_id = %(tenant_id)s AND function_id = %(function_id)s AND state <> 'running'
    RETURNING tenant_id, execution_id, state
)
UPDATE executions e
SET status = 'failed', written = pg_current_xact_id(),
    error = CASE ended.state WHEN 'queued' THEN %(error)s::json ELSE e.error END
FROM ended WHERE (e.tenant_id, e.id) = (ended.tenant_id, ended.execution_id)

-- name: count_queue
SELECT state, count(*) FROM execution_queue GROUP BY state

-- name: forget_dead
WITH old AS (
    DELETE FROM execution_queue WHERE state = 'dead' AND dead_at < now() - make_interval(days => %(days)s)
    RETURNING tenant_id, execution_id
)
UPDATE executions e SET status = 'failed', written = pg_current_xact_id()
FROM old WHERE (e.tenant_id, e.id) = (old.tenant_id, old.execution_id)

-- --- idempotency ----------------------------------------------------------------------------------------

-- name: claim_key
-- A key is free when it was never used, is a day old, or its first call was lost with its process. The last runs
-- again as the same execution, so that its transactions stay the same.
INSERT INTO invoke_keys (tenant_id, key, request_hash, execution_id, done, lease, lease_until)
VALUES (%(tenant_id)s, %(key)s, %(request_hash)s, %(id)s, %(done)s, %(lease)s,
        now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (tenant_id, key) DO UPDATE
SET request_hash = EXCLUDED.request_hash, done = EXCLUDED.done, lease = EXCLUDED.lease,
    lease_until = EXCLUDED.lease_until,
    execution_id = CASE WHEN invoke_keys.created_at < now() - interval '24 hours' THEN EXCLUDED.execution_id
                        ELSE invoke_keys.execution_id END,
    created_at = CASE WHEN invoke_keys.created_at < now() - interval '24 hours' THEN now()
                      ELSE invoke_keys.created_at END
WHERE invoke_keys.created_at < now() - interval '24 hours'
   OR (NOT invoke_keys.done AND invoke_keys.lease_until < now()
       AND invoke_keys.request_hash = EXCLUDED.request_hash)
RETURNING execution_id

-- name: key
SELECT request_hash, execution_id, done FROM invoke_keys WHERE tenant_id = %(tenant_id)s AND key = %(key)s

-- name: settle_key
UPDATE invoke_keys SET done = true WHERE tenant_id = %(tenant_id)s AND key = %(key)s AND lease = %(lease)s

-- name: release_key
DELETE FROM invoke_keys
WHERE tenant_id = %(tenant_id)s AND key = %(key)s AND lease = %(lease)s AND NOT done

-- name: first_result
SELECT status, output, error, cold FROM executions WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: forget_keys
DELETE FROM invoke_keys WHERE created_at < now() - interval '24 hours'
