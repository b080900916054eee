ALTER TABLE transactions
    -- In which order they came, whatever the clocks of API processes show, which ids are made from.
    ADD arrival bigint;
-- What came before has the order that held for it, that of ids: rows lie in the table as they were last written.
UPDATE transactions t SET arrival = o.place
FROM (SELECT tenant_id, id, row_number() OVER (ORDER BY id) AS place FROM transactions) o
WHERE (t.tenant_id, t.id) = (o.tenant_id, o.id);
ALTER TABLE transactions ALTER arrival SET NOT NULL, ALTER arrival ADD GENERATED ALWAYS AS IDENTITY;
SELECT setval(pg_get_serial_sequence('transactions', 'arrival'), max(arrival)) FROM transactions HAVING count(*) > 0;
DROP INDEX transactions_fifo;
CREATE INDEX transactions_fifo ON transactions (tenant_id, fifo_key, arrival)
    WHERE fifo_key IS NOT NULL AND state IN ('queued', 'signed', 'sent');

-- The key first: by the tenant alone this index finds nothing, so no plan that was made while the tables were empty
-- looks up a transaction by reading all of its tenant's.
ALTER TABLE transactions DROP CONSTRAINT transactions_tenant_id_idempotency_key_key,
    ADD UNIQUE (idempotency_key, tenant_id);
