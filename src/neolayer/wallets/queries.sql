-- name: insert
INSERT INTO wallets (tenant_id, id, name, public_key, script_hash, sealed_key)
VALUES (%(tenant_id)s, %(id)s, %(name)s, %(public_key)s, %(script_hash)s, %(sealed_key)s)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at

-- name: list
SELECT tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at FROM wallets
WHERE tenant_id = %(tenant_id)s AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s

-- name: by_id
SELECT tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at FROM wallets
WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: by_name
SELECT tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at FROM wallets
WHERE tenant_id = %(tenant_id)s AND name = %(name)s

-- name: pause
UPDATE wallets SET pause_reason = %(reason)s, paused_at = coalesce(paused_at, now())
WHERE tenant_id = %(tenant_id)s AND id = %(id)s
RETURNING tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at

-- name: resume
UPDATE wallets SET pause_reason = NULL, paused_at = NULL
WHERE tenant_id = %(tenant_id)s AND id = %(id)s
RETURNING tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at
