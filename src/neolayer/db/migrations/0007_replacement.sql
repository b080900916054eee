ALTER TABLE transactions
    -- Somebody asked to cancel it after it was signed: it is not signed again, whatever becomes of its attempts.
    ADD cancel_requested_at timestamptz;

-- What is to be cancelled ends where others would go on. The statements that change states see it by RETURNING.
CREATE FUNCTION end_what_is_to_be_cancelled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.state = 'cancelled';
    RETURN NEW;
END $$;
CREATE TRIGGER end_what_is_to_be_cancelled BEFORE UPDATE ON transactions FOR EACH ROW
    WHEN (NEW.cancel_requested_at IS NOT NULL AND NEW.state IN ('queued', 'rejected', 'expired'))
    EXECUTE FUNCTION end_what_is_to_be_cancelled();

-- Live replacements, of which there are few: what one of them names is not sent again.
CREATE INDEX transaction_attempts_replacing ON transaction_attempts (tenant_id, wallet_id)
    WHERE kind <> 'send' AND state IN ('signed', 'sent');
