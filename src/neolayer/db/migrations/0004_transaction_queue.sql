-- While a pause lasts nothing more is signed for the tenant, or for the wallet.
ALTER TABLE tenants
    ADD paused_at    timestamptz,
    ADD pause_reason text,
    ADD CHECK ((paused_at IS NULL) = (pause_reason IS NULL));
ALTER TABLE wallets
    ADD paused_at    timestamptz,
    ADD pause_reason text,
    ADD CHECK ((paused_at IS NULL) = (pause_reason IS NULL));

ALTER TABLE transactions DROP CONSTRAINT transactions_state_check;
ALTER TABLE transactions
    ADD CONSTRAINT transactions_state_check
        CHECK (state IN ('queued', 'signed', 'sent', 'confirmed', 'faulted', 'expired', 'rejected', 'cancelled')),
    -- May share an on-chain transaction with others of its wallet, or has one of its own.
    ADD grouping         text NOT NULL DEFAULT 'auto' CHECK (grouping IN ('auto', 'never')),
    -- No longer grouped: an on-chain transaction that it shared was refused or ended in FAULT.
    ADD alone            boolean NOT NULL DEFAULT false,
    ADD call_count       smallint NOT NULL DEFAULT 1,
    -- Of those with the same key one is sent when the one before is final.
    ADD fifo_key         text,
    ADD not_before       timestamptz,
    ADD not_before_block bigint,
    -- What happens when no block took it: it ends, or is signed anew.
    ADD on_expiry        text NOT NULL DEFAULT 'end' CHECK (on_expiry IN ('end', 'rebuild')),
    -- Waits for its turn among those of its key, or for a block.
    ADD held             boolean NOT NULL DEFAULT false,
    -- Place in its tenant's queue, lowest first: when it is due, less the time that its priority is worth.
    ADD rank_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Only while queued: new with every lease, so that whoever lost one cannot store what it signed.
    ADD lease            uuid,
    ADD lease_until      timestamptz;
UPDATE transactions
SET call_count = json_array_length(calls), rank_at = created_at, available_at = least(available_at, now());
ALTER TABLE transactions ALTER call_count DROP DEFAULT, ALTER rank_at DROP DEFAULT;
-- Now only a pause between tries, or `not_before`; leases have their own columns.
ALTER TABLE transactions DROP lease_owner;

-- An on-chain transaction: signed bytes, stored before they are first sent. It carries one intent or several.
ALTER TABLE transaction_attempts
    ADD wallet_id      uuid,
    -- Carries intents out; or replaces earlier attempts that it names in Conflicts.
    ADD kind           text NOT NULL DEFAULT 'send' CHECK (kind IN ('send', 'cancel', 'speed_up')),
    ADD conflicts_with bytea[] NOT NULL DEFAULT '{}',
    -- GAS that its calls move out of the wallet beside the fees, as the simulation showed; datoshi.
    ADD gas_out        bigint NOT NULL DEFAULT 0,
    -- The script isolates its intents and leaves two stack items for each, see `grouping.py`.
    ADD grouped        boolean NOT NULL DEFAULT false,
    -- `signed` and `sent` are live: a block may take them. Of the others no block will: it is in one, its
    -- validUntilBlock has passed, a node refused it at the only time that it was sent, or one that conflicts
    -- with it is in a block.
    ADD state          text NOT NULL DEFAULT 'signed'
        CHECK (state IN ('signed', 'sent', 'included', 'expired', 'refused', 'replaced')),
    ADD block_index    bigint,
    -- Only while signed.
    ADD lease          uuid,
    ADD lease_until    timestamptz,
    ADD tries          integer NOT NULL DEFAULT 0;
UPDATE transaction_attempts a
SET wallet_id = t.wallet_id, block_index = t.block_index, lease_until = now(),
    state = CASE t.state WHEN 'signed' THEN 'signed' WHEN 'sent' THEN 'sent' WHEN 'expired' THEN 'expired'
            WHEN 'rejected' THEN 'refused' ELSE 'included' END
FROM transactions t WHERE (t.tenant_id, t.id) = (a.tenant_id, a.transaction_id);
ALTER TABLE transaction_attempts
    ALTER wallet_id SET NOT NULL,
    ADD FOREIGN KEY (tenant_id, wallet_id) REFERENCES wallets (tenant_id, id);

-- Which intents an attempt carries. No foreign keys here and at events: one statement writes a row and what it refers
-- to, and looking each up again is a tenth of the work of the database.
CREATE TABLE transaction_attempt_intents (
    tenant_id      uuid NOT NULL,
    txid           bytea NOT NULL,
    -- Order of their calls in the script.
    position       smallint NOT NULL,
    transaction_id uuid NOT NULL,
    -- What becomes of the intent when the attempt is included: its calls are carried out, or it is cancelled.
    role           text NOT NULL DEFAULT 'execute' CHECK (role IN ('execute', 'cancel')),
    -- Its share of the attempt's fees; datoshi. Shares add up to the fees exactly.
    system_fee     bigint NOT NULL,
    network_fee    bigint NOT NULL,
    -- Of its calls, once included: {vmstate, exception, gas_consumed, stack}.
    result         json,
    PRIMARY KEY (tenant_id, txid, position)
);
INSERT INTO transaction_attempt_intents
SELECT tenant_id, txid, 0, transaction_id, 'execute', system_fee, network_fee, result FROM transaction_attempts;
CREATE INDEX transaction_attempt_intents_of ON transaction_attempt_intents (tenant_id, transaction_id);
DROP INDEX transaction_attempts_of;
ALTER TABLE transaction_attempts DROP transaction_id, DROP result;

ALTER TABLE transaction_events DROP CONSTRAINT transaction_events_tenant_id_transaction_id_fkey;
DROP INDEX transactions_work;
CREATE INDEX transactions_queue ON transactions (tenant_id, wallet_id, rank_at)
    WHERE state = 'queued' AND lease IS NULL AND NOT held;
CREATE INDEX transactions_leased ON transactions (lease_until) WHERE lease IS NOT NULL;
CREATE INDEX transactions_fifo ON transactions (tenant_id, fifo_key, id)
    WHERE fifo_key IS NOT NULL AND state IN ('queued', 'signed', 'sent');
-- Whose turn it is: at most one of each key.
CREATE INDEX transactions_fifo_turn ON transactions (tenant_id, fifo_key)
    WHERE fifo_key IS NOT NULL AND NOT held AND state IN ('queued', 'signed', 'sent');
CREATE INDEX transactions_scheduled ON transactions (not_before_block) WHERE held AND fifo_key IS NULL;
DROP INDEX transactions_by_state;
CREATE INDEX transactions_by_state ON transactions (state, tenant_id);
DROP INDEX transactions_by_block;
CREATE INDEX transaction_attempts_work ON transaction_attempts (lease_until) WHERE state = 'signed';
CREATE INDEX transaction_attempts_live ON transaction_attempts (network, valid_until_block)
    WHERE state IN ('signed', 'sent');
CREATE INDEX transaction_attempts_by_block ON transaction_attempts (network, block_index)
    WHERE block_index IS NOT NULL;

-- What a wallet's live attempts may cost it: the fees, which nodes' memory pools add up, and the GAS they move away.
-- Kept by the triggers below, whoever writes attempts.
CREATE TABLE wallet_reservations (
    tenant_id   uuid NOT NULL,
    wallet_id   uuid NOT NULL,
    network     bigint NOT NULL,
    -- Datoshi.
    reserved    bigint NOT NULL,
    -- Of the latest block that took one of them: a balance read below it still holds what that block spent.
    height      bigint NOT NULL,
    -- Nothing is leased before, because the wallet lacks GAS.
    waits_until timestamptz,
    PRIMARY KEY (tenant_id, wallet_id, network),
    FOREIGN KEY (tenant_id, wallet_id) REFERENCES wallets (tenant_id, id)
);
INSERT INTO wallet_reservations
SELECT tenant_id, wallet_id, network,
       coalesce(sum(system_fee + network_fee) FILTER (WHERE state IN ('signed', 'sent')), 0),
       coalesce(max(block_index), 0)
FROM transaction_attempts GROUP BY tenant_id, wallet_id, network;

CREATE FUNCTION reserve_new_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height)
    SELECT tenant_id, wallet_id, network, sum(system_fee + network_fee + gas_out), 0
    FROM new_rows WHERE state IN ('signed', 'sent')
    GROUP BY tenant_id, wallet_id, network ORDER BY tenant_id, wallet_id, network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE SET reserved = r.reserved + excluded.reserved;
    RETURN NULL;
END $$;
CREATE TRIGGER reserve_new_attempts AFTER INSERT ON transaction_attempts
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION reserve_new_attempts();

CREATE FUNCTION reserve_changed_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height)
    SELECT n.tenant_id, n.wallet_id, n.network,
           sum((n.system_fee + n.network_fee + n.gas_out)
               * ((n.state IN ('signed', 'sent'))::integer - (o.state IN ('signed', 'sent'))::integer)),
           coalesce(max(n.block_index), 0)
    FROM new_rows n JOIN old_rows o ON (o.tenant_id, o.txid) = (n.tenant_id, n.txid)
    WHERE (n.state IN ('signed', 'sent')) <> (o.state IN ('signed', 'sent'))
    GROUP BY n.tenant_id, n.wallet_id, n.network ORDER BY n.tenant_id, n.wallet_id, n.network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE
    SET reserved = r.reserved + excluded.reserved, height = greatest(r.height, excluded.height), waits_until = NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER reserve_changed_attempts AFTER UPDATE ON transaction_attempts
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION reserve_changed_attempts();

-- What an operator set for all workers of the deployment; without a row their own settings count.
CREATE TABLE worker_pool (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Batches of transactions that one worker process works on at a time.
    transactions smallint NOT NULL CHECK (transactions BETWEEN 0 AND 256),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

-- How full blocks are. Unknown for those that were seen before this.
ALTER TABLE chain_blocks ADD transactions integer;
