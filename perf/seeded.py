"""A database with a long history, for `perf.plans`: what months of use leave, and a full queue before it.

Rows are made by the database itself, past the triggers, which would make them one statement at a time; what the
triggers keep is filled in here.
"""

from typing import Final

from neolayer.db.pool import Connection

#: Magic of the network that all of it is on.
NETWORK: Final = 860_833_102
TENANTS: Final = 50
WALLETS: Final = 1_000
#: Transactions that blocks took, each.
PER_BLOCK: Final = 500
#: Attempts that wait for their block.
LIVE: Final = 1_536
#: Of the queue: held for a block, in lines of FIFO keys, due at a later time.
SCHEDULED: Final = 2_000
FIFO: Final = 2_000
LATER: Final = 2_000

_TENANTS = """
INSERT INTO tenants (id, name)
SELECT md5('tenant' || t)::uuid, 'tenant-' || t FROM generate_series(0, %(tenants)s - 1) t
"""
_WALLETS = """
INSERT INTO wallets (tenant_id, id, name, public_key, script_hash, sealed_key)
SELECT md5('tenant' || w %% %(tenants)s)::uuid, md5('wallet' || w)::uuid, 'wallet-' || w,
       decode(lpad(to_hex(w), 66, '0'), 'hex'), decode(lpad(to_hex(w), 40, '0'), 'hex'), '\\x00'
FROM generate_series(0, %(wallets)s - 1) w
"""
_TRANSACTIONS = """
INSERT INTO transactions (tenant_id, id, wallet_id, idempotency_key, request_hash, calls, script, call_count,
                          priority, valid_for_blocks, state, txid, network, block_index, block_time, available_at,
                          rank_at, created_at, updated_at, held, fifo_key, not_before_block, events, tries, cause)
SELECT md5('tenant' || w %% %(tenants)s)::uuid, uuidv7(created - now()), md5('wallet' || w)::uuid, 'key-' || g,
       sha256(g::text::bytea),
       json_build_array(json_build_object('contract', 'GasToken', 'method', 'transfer', 'args', json_build_array(
           'NQsBLtfPjNNyhfhTJpBLZmbkYxPwCLv7Mb', 'Nadia4GBzUavRs1T6S9UYk8BXkPG6xVZj8', g::text, null))),
       decode(repeat('0c', 98), 'hex'), 1, 1, 100, s.state,
       CASE WHEN s.state NOT IN ('queued', 'rejected', 'cancelled') THEN sha256(('tx' || g)::bytea) END,
       CASE WHEN s.state <> 'queued' THEN %(network)s END,
       CASE WHEN s.state IN ('confirmed', 'faulted') THEN 1 + g / %(per_block)s END,
       CASE WHEN s.state IN ('confirmed', 'faulted') THEN created END,
       CASE WHEN s.place BETWEEN 0 AND %(later)s - 1 THEN now() + interval '1 day' ELSE created END,
       CASE WHEN s.place BETWEEN 0 AND %(later)s - 1 THEN now() + interval '1 day' ELSE created END,
       created, created, s.place BETWEEN %(later)s AND %(later)s + %(scheduled)s + %(fifo)s - 1,
       CASE WHEN s.place - %(later)s - %(scheduled)s BETWEEN 0 AND %(fifo)s - 1 THEN 'line-' || w END,
       CASE WHEN s.place BETWEEN %(later)s AND %(later)s + %(scheduled)s - 1 THEN 10 * %(rows)s END,
       CASE s.state WHEN 'queued' THEN 1 WHEN 'sent' THEN 3 WHEN 'rejected' THEN 2 ELSE 4 END,
       1, CASE WHEN s.state = 'rejected' THEN '{"code": "simulation_faulted", "message": "FAULT"}'::json END
FROM generate_series(0::bigint, %(rows)s - 1) g
CROSS JOIN LATERAL (
    SELECT now() - interval '100 ms' * (%(rows)s - g) AS created, abs(hashint8(g)::bigint) %% %(wallets)s AS w
) c
CROSS JOIN LATERAL (
    -- Of each hundred.
    SELECT CASE WHEN g %% 100 < 93 THEN 'confirmed' WHEN g %% 100 < 95 THEN 'faulted'
           WHEN g %% 100 < 97 THEN 'expired' WHEN g %% 100 < 99 THEN 'rejected' ELSE 'cancelled' END AS state
) f
CROSS JOIN LATERAL (
    SELECT CASE WHEN g < %(final)s THEN f.state WHEN g < %(final)s + %(live)s THEN 'sent'
           ELSE 'queued' END AS state, g - %(final)s - %(live)s AS place
) s
"""
_ATTEMPTS = """
INSERT INTO transaction_attempts (tenant_id, txid, wallet_id, network, raw, valid_until_block, system_fee,
                                  network_fee, signed_at, sent_at_height, state, block_index, signed_at_height)
SELECT tenant_id, txid, wallet_id, network, decode(repeat('00', 250), 'hex'),
       CASE state WHEN 'sent' THEN b.next + 97 WHEN 'expired' THEN get_byte(txid, 0) * b.next / 300
       ELSE block_index + 97 END,
       997775, 123452, created_at, coalesce(block_index - 1, b.next - 1),
       CASE state WHEN 'sent' THEN 'sent' WHEN 'expired' THEN 'expired' ELSE 'included' END, block_index,
       coalesce(block_index - 1, b.next - 1)
FROM transactions, (SELECT 1 + %(final)s / %(per_block)s AS next) b WHERE txid IS NOT NULL
"""
_CARRIED = """
INSERT INTO transaction_attempt_intents (tenant_id, txid, position, transaction_id, system_fee, network_fee,
                                         result)
SELECT tenant_id, txid, 0, id, 997775, 123452,
       CASE WHEN block_index IS NOT NULL
            THEN '{"vmstate": "HALT", "exception": null, "gas_consumed": 997775, "stack": []}'::json END
FROM transactions WHERE txid IS NOT NULL
"""
_EVENTS = """
INSERT INTO transaction_events (tenant_id, transaction_id, number, state, at)
SELECT tenant_id, id, n, CASE WHEN n = events THEN state ELSE (ARRAY['queued', 'signed', 'sent'])[n] END,
       created_at + interval '1 s' * n
FROM transactions CROSS JOIN LATERAL generate_series(1, events) n
"""
#: Of the latest quarter: older ones were removed. Some thousand rows of each database transaction.
_OUTBOX = """
INSERT INTO outbox (tenant_id, written, kind, subject, number, data, at)
SELECT tenant_id, (10 + row_number() OVER (ORDER BY at) / 5000)::text::xid8, 'transaction', transaction_id, number,
       json_build_object('id', transaction_id, 'number', number, 'state', state, 'cause', null, 'txid', null,
                         'block', null), at
FROM transaction_events WHERE at > now() - interval '25 ms' * %(rows)s
"""
#: Of each line of a FIFO key the first has its turn.
_TURNS = """
UPDATE transactions t SET held = false
FROM (SELECT DISTINCT ON (tenant_id, fifo_key) tenant_id, id FROM transactions WHERE fifo_key IS NOT NULL
      ORDER BY tenant_id, fifo_key, id) f
WHERE (t.tenant_id, t.id) = (f.tenant_id, f.id)
"""
_BLOCKS = """
INSERT INTO chain_blocks (network, index, hash, time, transactions)
SELECT %(network)s, i, sha256(i::text::bytea), now(), %(per_block)s
FROM (SELECT %(final)s / %(per_block)s AS last) b, generate_series(b.last - 999, b.last) i
"""
_RESERVATIONS = """
INSERT INTO wallet_reservations (tenant_id, wallet_id, network, reserved, height, live)
SELECT w.tenant_id, w.id, %(network)s, count(a.txid) * 1121227, 0, count(a.txid)
FROM wallets w LEFT JOIN transaction_attempts a ON (a.tenant_id, a.wallet_id) = (w.tenant_id, w.id)
     AND a.state = 'sent'
GROUP BY w.tenant_id, w.id
"""


async def seed(connection: Connection, rows: int) -> None:
    """Fill an empty, migrated database: nine tenths of ``rows`` transactions are final, the rest waits.

    Args:
        connection: in autocommit mode.
    """
    params = {
        "rows": rows, "final": rows * 9 // 10 // PER_BLOCK * PER_BLOCK, "network": NETWORK, "tenants": TENANTS,
        "wallets": WALLETS, "per_block": PER_BLOCK, "live": LIVE, "scheduled": SCHEDULED, "fifo": FIFO,
        "later": LATER,
    }  # fmt: skip
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("SET statement_timeout = 0")
    parts = (
        _TENANTS,
        _WALLETS,
        _TRANSACTIONS,
        _TURNS,
        _ATTEMPTS,
        _CARRIED,
        _EVENTS,
        _OUTBOX,
        _BLOCKS,
        _RESERVATIONS,
    )
    for part in parts:
        await connection.execute(part.encode(), params)
    await connection.execute("RESET session_replication_role")
    # One number for each database transaction, as the outbox has them.
    await connection.execute(
        "DO $$ BEGIN FOR n IN 1..(SELECT max(written)::text::int FROM outbox) LOOP"
        " PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )
    await connection.execute("VACUUM ANALYZE")
