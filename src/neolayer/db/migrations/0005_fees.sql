-- What a wallet may spend on fees; a wallet without a row, and a null, is not limited. Datoshi.
CREATE TABLE wallet_limits (
    tenant_id               uuid NOT NULL,
    wallet_id               uuid NOT NULL,
    -- System fee + network fee.
    max_fee_per_transaction bigint CHECK (max_fee_per_transaction >= 0),
    max_fee_per_day         bigint CHECK (max_fee_per_day >= 0),
    updated_at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, wallet_id),
    FOREIGN KEY (tenant_id, wallet_id) REFERENCES wallets (tenant_id, id)
);

-- Fees of wallets with a limit for each day: the most that what is under way may cost, and what ended did cost.
CREATE TABLE wallet_fee_days (
    tenant_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    -- UTC.
    day       date NOT NULL,
    datoshi   bigint NOT NULL CHECK (datoshi >= 0),
    PRIMARY KEY (tenant_id, wallet_id, day)
);

ALTER TABLE transactions
    -- Which of the fees that recent full blocks took it pays.
    ADD speed       text NOT NULL DEFAULT 'standard' CHECK (speed IN ('economy', 'standard', 'fast', 'urgent')),
    -- The part of its day's sum that it may still give back, and the day; null when it is in none.
    ADD counted_fee bigint,
    ADD counted_day date;
CREATE INDEX transactions_counted ON transactions (tenant_id, wallet_id)
    WHERE counted_fee IS NOT NULL AND state IN ('confirmed', 'faulted', 'expired', 'rejected', 'cancelled');
