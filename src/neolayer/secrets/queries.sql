-- name: next_version
-- Two writers get two versions. The row's own version moves when its ciphertext is stored.
INSERT INTO secrets (tenant_id, name, version, issued) VALUES (%(tenant_id)s, %(name)s, 0, 1)
ON CONFLICT (tenant_id, name) DO UPDATE SET issued = secrets.issued + 1
RETURNING issued

-- name: store
-- Not when a writer who came later was faster.
UPDATE secrets SET version = %(version)s, ciphertext = %(ciphertext)s, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND version < %(version)s
RETURNING name, version, created_at, updated_at

-- name: list
SELECT name, version, created_at, updated_at FROM secrets
WHERE tenant_id = %(tenant_id)s AND ciphertext IS NOT NULL ORDER BY name

-- name: delete
UPDATE secrets SET ciphertext = NULL, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND ciphertext IS NOT NULL

-- name: sealed
SELECT name, version, ciphertext FROM secrets
WHERE tenant_id = %(tenant_id)s AND name = ANY(%(names)s) AND ciphertext IS NOT NULL ORDER BY name
