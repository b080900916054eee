-- name: insert_tenant
INSERT INTO tenants (id, name) VALUES (%(id)s, %(name)s) ON CONFLICT (name) DO NOTHING RETURNING id

-- name: tenant_by_name
SELECT id FROM tenants WHERE name = %(name)s

-- name: pause_tenant
UPDATE tenants SET pause_reason = %(reason)s, paused_at = coalesce(paused_at, now()) WHERE name = %(name)s RETURNING id

-- name: resume_tenant
UPDATE tenants SET pause_reason = NULL, paused_at = NULL WHERE name = %(name)s RETURNING id

-- name: insert_key
INSERT INTO api_keys (tenant_id, id, name, hash, prefix)
VALUES (%(tenant_id)s, %(id)s, %(name)s, %(hash)s, %(prefix)s)
RETURNING id, name, prefix, created_at, last_used_at, revoked_at

-- name: key_by_hash
SELECT tenant_id, id FROM api_keys WHERE hash = %(hash)s AND revoked_at IS NULL

-- name: list_keys
SELECT id, name, prefix, created_at, last_used_at, revoked_at FROM api_keys
WHERE tenant_id = %(tenant_id)s AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s

-- name: revoke_key
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
WHERE tenant_id = %(tenant_id)s AND id = %(id)s
RETURNING id, name, prefix, created_at, last_used_at, revoked_at

-- name: touch_keys
UPDATE api_keys SET last_used_at = now() WHERE id = ANY(%(ids)s)
