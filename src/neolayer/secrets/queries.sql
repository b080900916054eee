-- name: reserve
-- Two writers get two versions. The row's own version moves when its ciphertext is stored.
INSERT INTO secrets (tenant_id, name, version, issued) VALUES (%(tenant_id)s, %(name)s, 0, 1)
ON CONFLICT (tenant_id, name) DO UPDATE SET issued = secrets.issued + 1
RETURNING issued

-- name: state
SELECT version, issued FROM secrets WHERE tenant_id = %(tenant_id)s AND name = %(name)s

-- name: epochs
-- The oldest and the newest in use.
SELECT coalesce(min(seal_epoch), 0), coalesce(max(seal_epoch), 0) FROM secrets WHERE ciphertext IS NOT NULL

-- name: store
-- Not when a writer who came later was faster.
UPDATE secrets
SET version = %(version)s, ciphertext = %(ciphertext)s, uploaded = %(uploaded)s, seal_epoch = %(epoch)s,
    updated_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND version < %(version)s
RETURNING name, version, uploaded, created_at, updated_at

-- name: list
SELECT name, version, uploaded, created_at, updated_at FROM secrets
WHERE tenant_id = %(tenant_id)s AND ciphertext IS NOT NULL ORDER BY name

-- name: delete
UPDATE secrets SET ciphertext = NULL, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND ciphertext IS NOT NULL

-- name: sealed
SELECT name, version, ciphertext FROM secrets
WHERE tenant_id = %(tenant_id)s AND name = ANY(%(names)s) AND ciphertext IS NOT NULL ORDER BY name

-- name: of_older_epochs
SELECT tenant_id, name, version, ciphertext FROM secrets
WHERE seal_epoch < %(epoch)s AND ciphertext IS NOT NULL AND (tenant_id, name) > (%(tenant_id)s, %(name)s)
ORDER BY tenant_id, name LIMIT %(limit)s

-- name: store_resealed
-- Not over a value that was set or deleted meanwhile.
UPDATE secrets SET ciphertext = new.ciphertext, seal_epoch = %(epoch)s
FROM unnest(%(tenant_ids)s::uuid[], %(names)s::text[], %(versions)s::integer[], %(ciphertexts)s::bytea[])
    AS new (tenant_id, name, version, ciphertext)
WHERE secrets.tenant_id = new.tenant_id AND secrets.name = new.name AND secrets.version = new.version
  AND secrets.ciphertext IS NOT NULL AND secrets.seal_epoch < %(epoch)s
