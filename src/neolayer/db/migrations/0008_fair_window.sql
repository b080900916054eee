ALTER TABLE transaction_attempts
    -- Height of the chain when it was signed. What no block took for some blocks since then counts for its own tenant
    -- only; 0 is long ago.
    ADD signed_at_height bigint NOT NULL DEFAULT 0;
CREATE INDEX transaction_attempts_fresh ON transaction_attempts (network, signed_at_height)
    WHERE state IN ('signed', 'sent');
-- Of those that expired, which are few: what a private chain that lost blocks lets go on.
CREATE INDEX transaction_attempts_expired ON transaction_attempts (network, valid_until_block) WHERE state = 'expired';

ALTER TABLE wallet_reservations
    -- Attempts that a block may still take.
    ADD live integer NOT NULL DEFAULT 0;
UPDATE wallet_reservations r SET live = a.live
FROM (SELECT tenant_id, wallet_id, network, count(*) AS live FROM transaction_attempts
      WHERE state IN ('signed', 'sent') GROUP BY tenant_id, wallet_id, network) a
WHERE (r.tenant_id, r.wallet_id, r.network) = (a.tenant_id, a.wallet_id, a.network);

CREATE OR REPLACE FUNCTION reserve_new_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height, live)
    SELECT tenant_id, wallet_id, network, sum(system_fee + network_fee + gas_out), 0, count(*)
    FROM new_rows WHERE state IN ('signed', 'sent')
    GROUP BY tenant_id, wallet_id, network ORDER BY tenant_id, wallet_id, network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE
    SET reserved = r.reserved + excluded.reserved, live = r.live + excluded.live;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION reserve_changed_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO wallet_reservations AS r (tenant_id, wallet_id, network, reserved, height, live)
    SELECT n.tenant_id, n.wallet_id, n.network, sum((n.system_fee + n.network_fee + n.gas_out) * c.sign),
           coalesce(max(n.block_index), 0), sum(c.sign)
    FROM new_rows n JOIN old_rows o ON (o.tenant_id, o.txid) = (n.tenant_id, n.txid)
    CROSS JOIN LATERAL (
        SELECT (n.state IN ('signed', 'sent'))::integer - (o.state IN ('signed', 'sent'))::integer AS sign
    ) c
    WHERE c.sign <> 0
    GROUP BY n.tenant_id, n.wallet_id, n.network ORDER BY n.tenant_id, n.wallet_id, n.network
    ON CONFLICT (tenant_id, wallet_id, network) DO UPDATE
    SET reserved = r.reserved + excluded.reserved, live = r.live + excluded.live,
        height = greatest(r.height, excluded.height), waits_until = NULL;
    RETURN NULL;
END $$;
