-- name: lock_tenant
-- Watches of one tenant are made one after the other, so that their bound holds.
SELECT pg_advisory_xact_lock(hashtextextended(concat('watches ', %(tenant_id)s::uuid), 0))

-- name: count
SELECT count(*) FROM watches WHERE tenant_id = %(tenant_id)s

-- name: insert
INSERT INTO watches (tenant_id, id, network, contract, event, after_block)
VALUES (%(tenant_id)s, %(id)s, %(network)s, %(contract)s, %(event)s, %(after_block)s)
RETURNING id, contract, event, after_block, events, created_at

-- name: same
SELECT id FROM watches
WHERE (tenant_id, network, contract) = (%(tenant_id)s, %(network)s, %(contract)s)
  AND event IS NOT DISTINCT FROM %(event)s

-- name: list
SELECT id, contract, event, after_block, events, created_at FROM watches
WHERE tenant_id = %(tenant_id)s AND id < %(before)s
ORDER BY id DESC LIMIT %(limit)s

-- name: show
SELECT id, contract, event, after_block, events, created_at FROM watches
WHERE (tenant_id, id) = (%(tenant_id)s, %(id)s)

-- name: delete
DELETE FROM watches WHERE (tenant_id, id) = (%(tenant_id)s, %(id)s) RETURNING id

-- name: contracts
SELECT DISTINCT contract FROM watches WHERE network = %(network)s AND after_block < %(index)s

-- name: count_up
-- Which watch is told of which notification (by its position in the arrays), and as its how many-th. One that was
-- removed meanwhile is told of nothing.
WITH told AS (
    SELECT w.tenant_id, w.id, n.position, row_number() OVER (PARTITION BY w.id ORDER BY n.position) AS nth
    FROM unnest(%(contracts)s::bytea[], %(names)s::text[]) WITH ORDINALITY AS n (contract, name, position)
    JOIN watches w ON w.contract = n.contract AND (w.event IS NULL OR w.event = n.name)
    WHERE w.network = %(network)s AND w.after_block < %(index)s
), counted AS (
    UPDATE watches w SET events = w.events + c.count
    FROM (SELECT tenant_id, id, count(*) FROM told GROUP BY tenant_id, id) c
    WHERE (w.tenant_id, w.id) = (c.tenant_id, c.id)
    RETURNING w.tenant_id, w.id, w.events - c.count AS before
)
SELECT told.position - 1, tenant_id, id, counted.before + told.nth
FROM told JOIN counted USING (tenant_id, id) ORDER BY told.position, id

-- name: rewind
UPDATE watches SET events = events + 1, after_block = least(after_block, %(index)s)
WHERE network = %(network)s RETURNING tenant_id, id, events
