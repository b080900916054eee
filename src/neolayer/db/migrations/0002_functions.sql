-- What a version is deployed with, beside its limits.
ALTER TABLE function_versions
    -- What calls share: everything a warm isolate of the version keeps, or nothing.
    ADD isolation    text NOT NULL DEFAULT 'version' CHECK (isolation IN ('version', 'call')),
    -- Runs of one asynchronous execution.
    ADD max_attempts smallint NOT NULL DEFAULT 3 CHECK (max_attempts BETWEEN 1 AND 10);

-- One row is the whole of an alias, so that a switch is one write. The alias `live` is what the plain name stands
-- for; while it has no row that is the latest version.
CREATE TABLE function_aliases (
    tenant_id   uuid NOT NULL,
    function_id uuid NOT NULL,
    name        text NOT NULL,
    -- Two arrays side by side; a version's share is its weight by the sum of all.
    versions    integer[] NOT NULL CHECK (cardinality(versions) > 0),
    weights     integer[] NOT NULL CHECK (cardinality(weights) = cardinality(versions)),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, function_id, name),
    FOREIGN KEY (tenant_id, function_id) REFERENCES functions (tenant_id, id)
);

ALTER TABLE executions DROP CONSTRAINT executions_status_check;
ALTER TABLE executions
    -- Those that are not over yet, and `dead` ones, have a row in `execution_queue`, too.
    ADD CONSTRAINT executions_status_check
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'dead', 'cancelled')),
    -- Asked for over HTTP and waited for, over HTTP and not waited for, by another function.
    ADD kind            text NOT NULL DEFAULT 'sync' CHECK (kind IN ('sync', 'async', 'invoke')),
    ADD parent_id       uuid,
    -- Which run of an asynchronous execution this row tells of.
    ADD attempt         smallint NOT NULL DEFAULT 1,
    -- What followed the @ of the name that was called; null for the plain name.
    ADD alias           text,
    -- Null: not measured.
    ADD queue_us        integer,
    ADD peak_heap_bytes bigint,
    ADD bytes_in        integer,
    ADD bytes_out       integer,
    -- Microseconds of each phase of a cold start.
    ADD phases          json,
    -- The transaction that wrote this row last. Whoever follows executions reads those of transactions that are
    -- over, in this order, and so misses none, whatever the order in which they were committed.
    ADD written         xid8 NOT NULL DEFAULT pg_current_xact_id();
-- Ever growing: the cheapest kind of index to write.
CREATE INDEX executions_written ON executions (written);
-- Costs nothing for what succeeds.
CREATE INDEX executions_not_succeeded ON executions (tenant_id, id DESC) WHERE status <> 'succeeded';

-- Asynchronous executions that are to run, are running, or may be run again by hand.
CREATE TABLE execution_queue (
    tenant_id    uuid NOT NULL,
    execution_id uuid NOT NULL,
    function_id  uuid NOT NULL,
    -- Of the API key that asked for it.
    key_id       uuid NOT NULL,
    -- As it was called, with what followed the @.
    target       text NOT NULL,
    input        bytea NOT NULL,
    state        text NOT NULL CHECK (state IN ('queued', 'running', 'dead')),
    -- Runs that ended in a failure, since it was queued or replayed.
    failures     smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL,
    -- Leases since the last run that ended: more than a few mean that workers die of it.
    leases       smallint NOT NULL DEFAULT 0,
    -- Not to be touched before this time: the end of a lease, or of a pause between runs.
    available_at timestamptz NOT NULL DEFAULT now(),
    -- New with every lease, so that whoever lost one cannot write.
    lease        uuid,
    -- When it was declared dead.
    dead_at      timestamptz,
    PRIMARY KEY (tenant_id, execution_id),
    FOREIGN KEY (tenant_id, execution_id) REFERENCES executions (tenant_id, id)
);
CREATE INDEX execution_queue_work ON execution_queue (tenant_id, available_at) WHERE state <> 'dead';

-- The first call with an idempotency key; its answer is the execution's.
CREATE TABLE invoke_keys (
    tenant_id    uuid NOT NULL,
    key          text NOT NULL,
    -- SHA-256 of what was asked, so that a reused key is noticed.
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    execution_id uuid NOT NULL,
    done         boolean NOT NULL,
    -- Until then the first call may be running; after it its process is gone.
    lease_until  timestamptz NOT NULL,
    lease        uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX invoke_keys_age ON invoke_keys (created_at);
