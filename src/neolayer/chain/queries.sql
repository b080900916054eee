-- name: cursor
SELECT index, hash FROM chain_blocks WHERE network = %(network)s ORDER BY index DESC LIMIT 1

-- name: hash_at
SELECT hash FROM chain_blocks WHERE network = %(network)s AND index = %(index)s

-- name: insert
-- Fails when another follower was faster: its transaction counts then, not this one.
INSERT INTO chain_blocks (network, index, hash, time, transactions)
VALUES (%(network)s, %(index)s, %(hash)s, %(time)s, %(transactions)s)

-- name: forget_below
DELETE FROM chain_blocks WHERE network = %(network)s AND index < %(index)s

-- name: rewind
DELETE FROM chain_blocks WHERE network = %(network)s AND index > %(index)s
