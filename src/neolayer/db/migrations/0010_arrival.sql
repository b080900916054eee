ALTER TABLE transactions
    -- In which order they came, whatever the clocks of API processes show, which ids are made from.
    ADD arrival bigint GENERATED ALWAYS AS IDENTITY;
DROP INDEX transactions_fifo;
CREATE INDEX transactions_fifo ON transactions (tenant_id, fifo_key, arrival)
    WHERE fifo_key IS NOT NULL AND state IN ('queued', 'signed', 'sent');
