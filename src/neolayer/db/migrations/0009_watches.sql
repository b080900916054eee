-- Contracts whose notifications a tenant is told of.
CREATE TABLE watches (
    tenant_id   uuid NOT NULL REFERENCES tenants,
    id          uuid NOT NULL,
    -- Magic of the network that the contract is on.
    network     bigint NOT NULL,
    contract    bytea NOT NULL CHECK (octet_length(contract) = 20),
    -- Null: whatever the contract notifies of.
    event       text,
    -- The height when it was made: what blocks above it notify of is told.
    after_block bigint NOT NULL,
    -- How many were told, and so the number of the last one.
    events      bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE NULLS NOT DISTINCT (tenant_id, network, contract, event)
);
CREATE INDEX watches_of ON watches (network, contract);

-- A busy contract notifies more than 2³¹ times.
ALTER TABLE outbox ALTER COLUMN number TYPE bigint;
