ALTER TABLE transactions
    -- In which order they came, whatever the clocks of API processes show, which ids are made from.
    ADD arrival bigint GENERATED ALWAYS AS IDENTITY;
DROP INDEX transactions_fifo;
CREATE INDEX transactions_fifo ON transactions (tenant_id, fifo_key, arrival)
    WHERE fifo_key IS NOT NULL AND state IN ('queued', 'signed', 'sent');

-- The key first: by the tenant alone this index finds nothing, so no plan that was made while the tables were empty
-- looks up a transaction by reading all of its tenant's.
ALTER TABLE transactions DROP CONSTRAINT transactions_tenant_id_idempotency_key_key,
    ADD UNIQUE (idempotency_key, tenant_id);
