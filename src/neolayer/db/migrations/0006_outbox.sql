-- What happened, in the database transaction in which it happened. Read in the order of `written`, below the oldest
-- transaction that still runs, so that no reader misses a row that is committed late.
CREATE TABLE outbox (
    tenant_id uuid NOT NULL,
    written   xid8 NOT NULL DEFAULT pg_current_xact_id(),
    sequence  bigint GENERATED ALWAYS AS IDENTITY,
    -- Of what: `transaction`.
    kind      text NOT NULL,
    -- Which one, and its how many-th event this is: the event's own name, the same for ever.
    subject   uuid NOT NULL,
    number    integer NOT NULL,
    data      json NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (written, sequence)
);
-- For those that come back: their tenant's events since then.
CREATE INDEX outbox_of ON outbox (tenant_id, written, sequence);
CREATE INDEX outbox_age ON outbox (at);

-- Rows below this position were removed.
CREATE TABLE outbox_horizon (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written   xid8 NOT NULL
);
INSERT INTO outbox_horizon (written) VALUES ('0');

-- No statement that changes a transaction's state can forget it. Runs when the statement is over, so that
-- `transactions` shows what it made of it.
CREATE FUNCTION outbox_of_transactions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (tenant_id, kind, subject, number, data, at)
    SELECT n.tenant_id, 'transaction', n.transaction_id, n.number,
           json_build_object('id', n.transaction_id, 'number', n.number, 'state', n.state, 'cause', n.cause,
                             'txid', '0x' || encode(reverse(t.txid), 'hex'), 'block', t.block_index),
           n.at
    FROM new_rows n JOIN transactions t ON (t.tenant_id, t.id) = (n.tenant_id, n.transaction_id)
    ORDER BY n.transaction_id, n.number;
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_of_transactions AFTER INSERT ON transaction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION outbox_of_transactions();
