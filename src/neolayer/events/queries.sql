-- name: now
-- Below this nothing can appear any more.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text

-- name: horizon
SELECT written::text FROM outbox_horizon

-- name: of_tenant
SELECT written::text, sequence, tenant_id, kind, subject, number, data, at FROM outbox
WHERE tenant_id = %(tenant_id)s AND (written, sequence) > (%(after)s::text::xid8, %(sequence)s)
  AND written < %(until)s::text::xid8
-- Not by the text of it, which has the name of the column.
ORDER BY outbox.written, sequence LIMIT %(limit)s

-- name: of_tenants
-- The first of each, and of those the first: so what a long way back holds is not read and sorted as a whole.
SELECT o.written::text, o.sequence, o.tenant_id, o.kind, o.subject, o.number, o.data, o.at
FROM unnest(%(tenants)s::uuid[]) AS n (tenant_id) CROSS JOIN LATERAL (
    SELECT * FROM outbox
    WHERE outbox.tenant_id = n.tenant_id AND (written, sequence) > (%(after)s::text::xid8, %(sequence)s)
      AND written < %(until)s::text::xid8
    ORDER BY written, sequence LIMIT %(limit)s
) o
ORDER BY o.written, o.sequence LIMIT %(limit)s

-- name: append
INSERT INTO outbox (tenant_id, kind, subject, number, data)
SELECT n.tenant_id, n.kind, n.subject, n.number, n.data::json
FROM unnest(%(tenant_id)s::uuid[], %(kind)s::text[], %(subject)s::uuid[], %(number)s::bigint[], %(data)s::text[])
    WITH ORDINALITY AS n (tenant_id, kind, subject, number, data, position)
ORDER BY n.position

-- name: prune
WITH gone AS (
    -- By place in the table, which never changes for them: by their keys they would be joined with the whole table.
    DELETE FROM outbox WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM outbox WHERE at < now() - make_interval(hours => %(hours)s) ORDER BY at LIMIT %(limit)s))
    RETURNING written
), moved AS (
    UPDATE outbox_horizon SET written = greatest(written, (SELECT max(written) FROM gone))
    WHERE EXISTS (SELECT FROM gone)
)
SELECT count(*) FROM gone
