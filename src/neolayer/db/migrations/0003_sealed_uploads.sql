-- How the value came: encrypted to the enclave by the client, or through the host in the open.
ALTER TABLE secrets ADD COLUMN uploaded text NOT NULL DEFAULT 'plain' CHECK (uploaded IN ('sealed', 'plain'));
-- Of the key under which the enclave sealed `ciphertext`.
ALTER TABLE secrets ADD COLUMN seal_epoch integer NOT NULL DEFAULT 0;
-- Every write looks up the newest epoch, a rotation looks for older ones.
CREATE INDEX secrets_by_epoch ON secrets (seal_epoch) WHERE ciphertext IS NOT NULL;
