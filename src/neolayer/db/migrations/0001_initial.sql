-- Tenant first in every key: one day the tables may be distributed by it.

CREATE TABLE tenants (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    tenant_id    uuid NOT NULL REFERENCES tenants (id),
    id           uuid NOT NULL,
    name         text NOT NULL,
    -- SHA-256 of the whole key; the key itself is shown once and kept nowhere.
    hash         bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    -- First characters, so that people recognize a key in a list.
    prefix       text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at   timestamptz,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE wallets (
    tenant_id   uuid NOT NULL REFERENCES tenants (id),
    id          uuid NOT NULL,
    name        text NOT NULL,
    public_key  bytea NOT NULL CHECK (length(public_key) = 33),
    script_hash bytea NOT NULL CHECK (length(script_hash) = 20),
    -- Only the enclave can open it.
    sealed_key  bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE TABLE secrets (
    tenant_id  uuid NOT NULL REFERENCES tenants (id),
    name       text NOT NULL,
    -- Of the ciphertext.
    version    integer NOT NULL,
    -- Highest version ever given out; none is used twice, also after a deletion.
    issued     integer NOT NULL,
    -- Only the enclave can open it; null before the first value is stored, and once deleted.
    ciphertext bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE functions (
    tenant_id  uuid NOT NULL REFERENCES tenants (id),
    id         uuid NOT NULL,
    name       text NOT NULL,
    version    integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX functions_name ON functions (tenant_id, name) WHERE deleted_at IS NULL;

-- Immutable.
CREATE TABLE function_versions (
    tenant_id   uuid NOT NULL,
    function_id uuid NOT NULL,
    number      integer NOT NULL,
    source      text NOT NULL,
    code_hash   bytea NOT NULL CHECK (length(code_hash) = 32),
    timeout_ms  integer NOT NULL,
    cpu_ms      integer NOT NULL,
    memory_mb   integer NOT NULL,
    secrets     text[] NOT NULL,
    egress      text[] NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, function_id, number),
    FOREIGN KEY (tenant_id, function_id) REFERENCES functions (tenant_id, id)
);

CREATE TABLE executions (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    function_id uuid NOT NULL,
    function    text NOT NULL,
    version     integer NOT NULL,
    status      text NOT NULL CHECK (status IN ('succeeded', 'failed')),
    output      text,
    error       json,
    logs        json,
    cold        boolean NOT NULL,
    wall_us     integer NOT NULL,
    cpu_us      integer NOT NULL,
    heap_bytes  bigint NOT NULL,
    fetches     integer NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX executions_of_function ON executions (tenant_id, function, id DESC);

-- An intent and what became of it.
CREATE TABLE transactions (
    tenant_id        uuid NOT NULL REFERENCES tenants (id),
    id               uuid NOT NULL,
    wallet_id        uuid NOT NULL,
    idempotency_key  text NOT NULL,
    -- SHA-256 of the request, so that a reused key with another body is noticed.
    request_hash     bytea NOT NULL,
    -- What is asked for: calls as given, and the script built from them.
    calls            json NOT NULL,
    script           bytea NOT NULL,
    priority         smallint NOT NULL,
    valid_for_blocks integer NOT NULL,
    -- Upper bound of system fee + network fee; datoshi.
    max_fee          bigint,
    execution_id     uuid,
    -- Magic of the network it was accepted for; null while no node could be asked.
    network          bigint,

    state            text NOT NULL CHECK (state IN ('queued', 'signed', 'sent', 'confirmed', 'faulted',
                                                    'expired', 'rejected')),
    -- Why it is in this state, where that needs saying: {code, message}.
    cause            json,
    txid             bytea,
    block_index      bigint,
    block_time       timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),

    -- Not to be touched by a worker before this time: a lease, or a pause between tries.
    available_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_owner      uuid,
    tries            integer NOT NULL DEFAULT 0,
    -- Number of its latest event.
    events           integer NOT NULL DEFAULT 1,

    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, idempotency_key),
    FOREIGN KEY (tenant_id, wallet_id) REFERENCES wallets (tenant_id, id)
);
CREATE INDEX transactions_work ON transactions (priority DESC, available_at) WHERE state IN ('queued', 'signed');
CREATE INDEX transactions_by_state ON transactions (state);
CREATE INDEX transactions_by_block ON transactions (block_index) WHERE block_index IS NOT NULL;

-- Signed bytes, stored before they are first sent.
CREATE TABLE transaction_attempts (
    tenant_id         uuid NOT NULL,
    transaction_id    uuid NOT NULL,
    txid              bytea NOT NULL CHECK (length(txid) = 32),
    network           bigint NOT NULL,
    raw               bytea NOT NULL,
    valid_until_block bigint NOT NULL,
    system_fee        bigint NOT NULL,
    network_fee       bigint NOT NULL,
    signed_at         timestamptz NOT NULL DEFAULT now(),
    -- Height of the chain when last sent; null before the first send.
    sent_at_height    bigint,
    -- From the application log once included: {vmstate, exception, gas_consumed, stack}.
    result            json,
    PRIMARY KEY (tenant_id, txid),
    FOREIGN KEY (tenant_id, transaction_id) REFERENCES transactions (tenant_id, id)
);
-- Blocks name transactions, not tenants.
CREATE INDEX transaction_attempts_txid ON transaction_attempts (txid);
CREATE INDEX transaction_attempts_of ON transaction_attempts (tenant_id, transaction_id);

CREATE TABLE transaction_events (
    tenant_id      uuid NOT NULL,
    transaction_id uuid NOT NULL,
    number         integer NOT NULL,
    state          text NOT NULL,
    cause          json,
    at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, transaction_id, number),
    FOREIGN KEY (tenant_id, transaction_id) REFERENCES transactions (tenant_id, id)
);

-- The follower's cursor is the highest row of its network; the last few thousand are kept to find where a
-- private chain that lost blocks parts from what was seen.
CREATE TABLE chain_blocks (
    network bigint NOT NULL,
    index   bigint NOT NULL,
    hash    bytea NOT NULL,
    time    timestamptz NOT NULL,
    PRIMARY KEY (network, index)
);
