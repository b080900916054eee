-- name: next_version
-- Takes the row's lock, so that two writers get two versions.
INSERT INTO secrets (tenant_id, name, version) VALUES (%(tenant_id)s, %(name)s, 1)
ON CONFLICT (tenant_id, name) DO UPDATE SET version = secrets.version + 1, updated_at = now()
RETURNING version

-- name: store
UPDATE secrets SET ciphertext = %(ciphertext)s WHERE tenant_id = %(tenant_id)s AND name = %(name)s
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
