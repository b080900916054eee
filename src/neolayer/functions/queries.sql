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
                               secrets, egress)
VALUES (%(tenant_id)s, %(function_id)s, %(number)s, %(source)s, %(code_hash)s, %(timeout_ms)s, %(cpu_ms)s,
        %(memory_mb)s, %(secrets)s, %(egress)s)

-- name: by_name
SELECT f.id, f.name, f.version, v.source, v.code_hash, v.timeout_ms, v.cpu_ms, v.memory_mb, v.secrets, v.egress,
       f.created_at, f.updated_at
FROM functions f
JOIN function_versions v ON (v.tenant_id, v.function_id, v.number) = (f.tenant_id, f.id, f.version)
WHERE f.tenant_id = %(tenant_id)s AND f.name = %(name)s AND f.deleted_at IS NULL

-- name: list
SELECT f.id, f.name, f.version, NULL, v.code_hash, v.timeout_ms, v.cpu_ms, v.memory_mb, v.secrets, v.egress,
       f.created_at, f.updated_at
FROM functions f
JOIN function_versions v ON (v.tenant_id, v.function_id, v.number) = (f.tenant_id, f.id, f.version)
WHERE f.tenant_id = %(tenant_id)s AND f.id < %(before)s AND f.deleted_at IS NULL
ORDER BY f.id DESC LIMIT %(limit)s

-- name: delete
UPDATE functions SET deleted_at = now()
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND deleted_at IS NULL

-- name: copy_executions
COPY executions (tenant_id, id, function_id, function, version, status, output, error, logs, cold,
                 wall_us, cpu_us, heap_bytes, fetches, created_at) FROM STDIN

-- name: insert_execution
-- One by one, where a COPY of many failed; some may have been written by it.
INSERT INTO executions (tenant_id, id, function_id, function, version, status, output, error, logs, cold,
                        wall_us, cpu_us, heap_bytes, fetches, created_at)
VALUES (%(tenant_id)s, %(id)s, %(function_id)s, %(function)s, %(version)s, %(status)s, %(output)s, %(error)s,
        %(logs)s, %(cold)s, %(wall_us)s, %(cpu_us)s, %(heap_bytes)s, %(fetches)s, %(created_at)s)
ON CONFLICT (tenant_id, id) DO NOTHING

-- name: execution
SELECT id, function, version, status, output, error, cold, wall_us, cpu_us, heap_bytes, fetches, created_at
FROM executions WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: execution_logs
SELECT logs FROM executions WHERE tenant_id = %(tenant_id)s AND id = %(id)s

-- name: list_executions
SELECT id, function, version, status, output, error, cold, wall_us, cpu_us, heap_bytes, fetches, created_at
FROM executions WHERE tenant_id = %(tenant_id)s AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s

-- name: list_executions_of
SELECT id, function, version, status, output, error, cold, wall_us, cpu_us, heap_bytes, fetches, created_at
FROM executions WHERE tenant_id = %(tenant_id)s AND function = %(function)s AND id < %(before)s
ORDER BY id DESC LIMIT %(limit)s
