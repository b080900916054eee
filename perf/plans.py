"""What each statement of the queue, the follower and the event stream costs with a long history.

A database of its own is filled with ``--rows`` transactions, nine tenths of them final, see `perf.seeded`. Each
statement that runs per request, batch, block or second is then explained with its real parameters, in a database
transaction that is rolled back. Times are the server's, planning included, of the third run. `prepared` is what
the seventh to ninth run of the prepared statement take as a client sees them: by then PostgreSQL may have gone
over to a plan for all parameters.

    python -m perf.plans --rows 1000000 --write docs/performance/plans.md
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from neolayer.core.ids import uuid7
from neolayer.db.migrations import migrate
from neolayer.db.sql import load_queries
from neolayer.supervisor.places import HOME_MARK, Places
from neolayer.supervisor.postgres import Postgres
from neolayer.supervisor.stack import Stack
from neolayer.transactions.queue import MOST_QUEUED
from perf.seeded import LIVE, NETWORK, PER_BLOCK, TENANTS, WALLETS, seed

_SQL: Final = {room: load_queries(f"neolayer.{room}") for room in ("transactions", "events", "chain")}
#: What a statement that runs for each batch, block or second may take; ms.
AIM_MS: Final = 5.0
BATCH: Final = 128
_LEASE: Final = uuid7()
_RUNS: Final = 9

type Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A statement with parameters, and how often it runs."""

    room: str
    name: str
    #: A request, a batch, a block, a second; or a rarer occasion.
    per: str
    params: Params
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one statement cost."""

    case: Case
    ms: float
    prepared_ms: float
    #: Pages of 8 KiB that it looked at.
    pages: int
    #: Rows that the nodes of the plan read from tables and indexes.
    read: int
    returned: int

    @property
    def met(self) -> bool:
        return self.ms <= AIM_MS


class Sample:
    """Rows that parameters are made of."""

    def __init__(self, rows: dict[str, list[TupleRow]]) -> None:
        #: tenant, wallet, id, txid: live, final, queued.
        self.sent, self.final, self.queued = rows["sent"], rows["final"], rows["queued"]
        self.wallets: list[TupleRow] = rows["wallets"]
        self.height: int = rows["height"][0][0]
        self.crowd: Params = {"tenant_id": self.final[0][0]}

    @classmethod
    async def of(cls, connection: AsyncConnection[TupleRow]) -> "Sample":
        found = {}
        for name, query in {
            "sent": b"SELECT tenant_id, wallet_id, id, txid FROM transactions WHERE state = 'sent' ORDER BY id",
            "final": b"SELECT tenant_id, wallet_id, id, txid, idempotency_key FROM transactions"
            b" WHERE state = 'confirmed' ORDER BY id DESC LIMIT 1000",
            "queued": b"SELECT tenant_id, wallet_id, id, txid FROM transactions"
            b" WHERE state = 'queued' AND NOT held ORDER BY id DESC LIMIT 1000",
            "wallets": b"SELECT tenant_id, id FROM wallets ORDER BY id LIMIT 50",
            "height": b"SELECT max(index) FROM chain_blocks",
        }.items():
            found[name] = await (await connection.execute(query)).fetchall()
        return cls(found)


def _requests(sample: Sample) -> Iterator[Case]:
    tenant, wallet, id, txid, known = sample.final[0]
    key = {"tenant_id": tenant, "id": id}
    sent = {"tenant_id": sample.sent[0][0], "id": sample.sent[0][2]}
    queued = {"tenant_id": sample.queued[0][0], "id": sample.queued[0][2]}
    new = {
        "tenant_id": tenant, "id": uuid7(), "wallet_id": wallet, "idempotency_key": "new",
        "request_hash": b"x" * 32, "calls": "[]", "script": b"x" * 98, "call_count": 1, "priority": 1,
        "head_start_s": 0.0, "valid_for_blocks": 100, "max_fee": None, "grouping": "auto",
        "fifo_key": None, "not_before": None,
        "not_before_block": None, "on_expiry": "end", "speed": "standard", "execution_id": None,
        "network": NETWORK,
    }  # fmt: skip
    yield Case("transactions", "insert", "request", new)
    terms = {"tenant_id": tenant, "wallet_id": wallet}
    yield Case("transactions", "terms", "request", terms | {"idempotency_key": known}, "key known")
    yield Case("transactions", "terms", "request", terms | {"idempotency_key": "new"}, "key new")
    yield Case("transactions", "by_id", "request", key)
    page = {"tenant_id": tenant, "before": "ffffffff-ffff-ffff-ffff-ffffffffffff", "limit": 20}
    for state in (None, "confirmed", "queued", "sent", "rejected", "signed"):
        yield Case("transactions", "list", "request", page | {"state": state}, f"state {state or 'any'}")
    yield Case("transactions", "events", "request", key)
    yield Case("transactions", "attempts_of", "request", key)
    yield Case("transactions", "limits", "request", {"tenant_id": tenant, "wallet_id": wallet})
    yield Case("transactions", "lock_daily_limit", "request", {"tenant_id": tenant, "wallet_id": wallet})
    yield Case("transactions", "settle_fees", "request", {"tenant_id": tenant, "wallet_id": wallet})
    yield Case("transactions", "replaceable", "request", sent)
    yield Case("transactions", "live_of", "request", sent)
    yield Case("transactions", "lock_live", "request", sent)
    yield Case("transactions", "carried", "request", {"tenant_id": tenant, "txid": txid})
    yield Case("transactions", "cancel_queued", "request", queued)
    yield Case(
        "transactions",
        "clock_went_back",
        "clock step",
        {"lease_s": 30.0, "pause_s": 10.0, "latest_start_s": 600.0},
    )
    yield Case("transactions", "count_queued", "second", {"most": 1_000_000})
    yield Case("transactions", "count_queued_of", "second", {"tenant_id": tenant, "most": 100_000})
    yield Case("transactions", "count_unfinished", "/metrics", {})
    yield Case("transactions", "count_final", "/metrics", {}, "at most 1/200 of the time")


def _queue(sample: Sample) -> Iterator[Case]:
    params = {"network": NETWORK, "lease": uuid7(), "lease_s": 30.0, "longest_start_s": 600.0}
    for limit, each in ((BATCH, 1), (4 * BATCH, 16)):
        window = {"limit": limit, "window": 3 * 512, "calls_each": each}
        yield Case("transactions", "lease", "batch", params | window, f"{limit} intents")
    traffic = {"network": NETWORK, "blocks": 8, "fresh_blocks": 3, "most_fresh": LIVE, "most_queued": MOST_QUEUED}
    yield Case("transactions", "traffic", "0.2 s", traffic)
    yield Case("transactions", "reclaim", "second", {})
    yield Case("transactions", "release_scheduled", "second", {"height": sample.height})
    yield Case("transactions", "release_fifo", "second", {"height": sample.height})
    yield Case("transactions", "lease_signed", "batch", params | {"limit": BATCH})
    yield Case("transactions", "renew", "second", {"leases": [_LEASE], "lease_s": 30.0}, f"{BATCH} intents")
    mine = [row[:3] for row in sample.queued[:BATCH]]
    given = {"lease": _LEASE, "tenants": [row[0] for row in mine], "ids": [row[2] for row in mine]}
    causes = {"causes": ['{"code": "x"}'] * BATCH}
    yield Case("transactions", "postpone", "batch", given | causes | {"delays": [1.0] * BATCH})
    yield Case("transactions", "reject", "batch", given | causes)
    wallets = {
        "tenants": [row[0] for row in sample.wallets], "wallets": [row[1] for row in sample.wallets],
        "network": NETWORK,
    }  # fmt: skip
    yield Case("transactions", "reservations", "batch", wallets, "50 wallets")
    yield Case("transactions", "lock_reservations", "batch", wallets, "50 wallets")
    yield Case("transactions", "wallets_wait", "batch", wallets | {"delay_s": 1.0}, "50 wallets")
    yield Case("transactions", "store", "batch", _stored(mine), f"{BATCH} attempts")
    yield Case("transactions", "pool_size", "rarely", {})


def _stored(mine: list[tuple[Any, ...]]) -> Params:
    txids = [os.urandom(32) for _ in mine]
    each = len(mine)
    return {
        "lease": _LEASE, "lease_s": 30.0, "network": NETWORK, "txids": txids, "tenants": [row[0] for row in mine],
        "wallets": [row[1] for row in mine], "raws": [b"x" * 250] * each, "grouped": [False] * each,
        "until": [10**6] * each, "attempt_system_fees": [997775] * each, "attempt_network_fees": [123452] * each,
        "gas_out": [1] * each, "heights": [10**5] * each, "sizes": [1] * each, "of": txids,
        "positions": [0] * each, "ids": [row[2] for row in mine], "system_fees": [997775] * each,
        "network_fees": [123452] * each,
    }  # fmt: skip


def _blocks(sample: Sample) -> Iterator[Case]:
    batch = [bytes(row[3]) for row in sample.sent[:BATCH]]
    block = [bytes(row[3]) for row in sample.sent[:PER_BLOCK]]
    at = {"network": NETWORK, "height": sample.height, "index": sample.height + 1}
    yield Case(
        "transactions", "mark_sent", "batch", {"txids": batch, "height": 1}, f"{BATCH} attempts, made signed"
    )
    waits = {"lease": _LEASE, "txids": batch, "causes": ['{"code": "x"}'] * BATCH}
    yield Case("transactions", "postpone_signed", "batch", waits | {"delays": [1.0] * BATCH}, "made signed")
    yield Case("transactions", "lock_attempts", "batch", {"txids": batch})
    yield Case("transactions", "refuse", "batch", waits, "made signed")
    yield Case("transactions", "unseen", "second", at | {"blocks": 3, "limit": 100})
    yield Case("transactions", "unseen", "second", at | {"height": sample.height + 9, "blocks": 3, "limit": 100},
               "all are to be sent again")  # fmt: skip
    yield Case("transactions", "mark_resent", "second", at | {"txids": batch})
    yield Case("transactions", "live", "start", at)
    yield Case("transactions", "ours", "block", at | {"txids": block})
    yield Case("transactions", "lock_block", "block", at | {"txids": block})
    yield Case("transactions", "lock_reservations_of", "block", at | {"txids": block})
    included = {
        "txids": block, "halted": [True] * PER_BLOCK, "of": block, "positions": [None] * PER_BLOCK,
        "states": ["confirmed"] * PER_BLOCK, "causes": [None] * PER_BLOCK,
        "results": ['{"vmstate": "HALT"}'] * PER_BLOCK, "time": datetime.now(UTC),
    }  # fmt: skip
    yield Case("transactions", "include", "block", at | included, f"{PER_BLOCK} attempts")
    yield Case("transactions", "expire", "block", at, "none expires")
    yield Case("transactions", "expire", "block", at | {"index": 10**9}, f"all {LIVE} expire")
    yield Case("transactions", "unconfirm", "rewind", at | {"index": sample.height - 1}, f"{PER_BLOCK} attempts")
    yield Case("chain", "cursor", "block", at)
    yield Case("chain", "hash_at", "block", at | {"index": sample.height})
    yield Case("chain", "insert", "block", at | {"hash": b"x" * 32, "time": datetime.now(UTC), "transactions": 1})
    yield Case("chain", "forget_below", "block", at | {"index": sample.height - 998})
    yield Case("chain", "rewind", "rewind", at | {"index": sample.height - 1})


async def _stream(connection: AsyncConnection[TupleRow], sample: Sample) -> list[Case]:
    row = await (await connection.execute(b"SELECT max(written)::text, min(written)::text FROM outbox")).fetchone()
    assert row is not None
    new = {"after": str(int(row[0]) - 1), "sequence": 0, "until": str(int(row[0]) + 1), "limit": 500}
    back = new | {"after": row[1]}
    tenants = {"tenants": [one[0] for one in sample.wallets[:20]]}
    return [
        Case("events", "now", "0.2 s", {}),
        Case("events", "horizon", "request", {}),
        Case("events", "of_tenant", "request", back | sample.crowd, "comes back from the beginning"),
        Case("events", "of_tenants", "0.2 s", new | tenants, "20 tenants, what is new"),
        Case("events", "of_tenants", "0.2 s", back | tenants, "20 tenants, from the beginning"),
        Case("events", "prune", "10 min", {"hours": 24 * 7, "limit": 10_000}, "nothing is old"),
        Case("events", "prune", "10 min", {"hours": 1, "limit": 10_000}, "10,000 are old"),
    ]


# --- measuring --------------------------------------------------------------------------------------------------


async def measured(connection: AsyncConnection[TupleRow], case: Case) -> Plan:
    """Each run is undone, so that the next finds the same rows."""
    query = _SQL[case.room][case.name]
    explained: Any = None
    for _ in range(3):
        async with connection.transaction(force_rollback=True):
            await _ready(connection, case)
            cursor = await connection.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, case.params)
            row = await cursor.fetchone()
            assert row is not None
            explained = row[0][0]
    times = []
    for _ in range(_RUNS):
        async with connection.transaction(force_rollback=True):
            await _ready(connection, case)
            begun = time.perf_counter()
            await connection.execute(query, case.params, prepare=True)
            times.append((time.perf_counter() - begun) * 1000)
    plan = explained["Plan"]
    return Plan(
        case,
        explained["Planning Time"] + explained["Execution Time"],
        statistics.median(times[6:]),
        plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        _read(plan),
        round(plan["Actual Rows"] * plan["Actual Loops"]),
    )


async def _ready(connection: AsyncConnection[TupleRow], case: Case) -> None:
    """What must be so before: leased, or signed and not yet sent."""
    if case.name in ("postpone", "reject", "store", "renew"):
        ids = case.params.get("ids") or (await _some_queued(connection))
        await connection.execute(
            b"UPDATE transactions SET lease = %(lease)s, lease_until = now() + interval '30 s'"
            b" WHERE id = ANY(%(ids)s)",
            {"lease": _LEASE, "ids": ids},
        )
    if case.name in ("mark_sent", "postpone_signed", "refuse"):
        params = {"txids": case.params["txids"], "lease": _LEASE}
        await connection.execute(
            b"UPDATE transaction_attempts SET state = 'signed', lease = %(lease)s, lease_until = now()"
            b" WHERE txid = ANY(%(txids)s)",
            params,
        )
        await connection.execute(
            b"UPDATE transactions t SET state = 'signed' FROM transaction_attempt_intents i"
            b" WHERE i.txid = ANY(%(txids)s) AND (t.tenant_id, t.id) = (i.tenant_id, i.transaction_id)",
            params,
        )


async def _some_queued(connection: AsyncConnection[TupleRow]) -> list[Any]:
    query = b"SELECT id FROM transactions WHERE state = 'queued' AND lease IS NULL AND NOT held LIMIT 128"
    return [row[0] for row in await (await connection.execute(query)).fetchall()]


def _read(plan: dict[str, Any]) -> int:
    """Rows that scans of tables and indexes gave or threw away."""
    rows = 0.0
    if "Relation Name" in plan and plan["Node Type"] != "ModifyTable":
        rows = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return round(rows) + sum(_read(part) for part in plan.get("Plans", ()))


def report(plans: list[Plan], rows: int) -> str:
    lines = [
        "# Plans of the queue's statements",
        "",
        f"`python -m perf.plans --rows {rows}` on {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}: {rows:,}"
        f" transactions, nine tenths final, {LIVE:,} on their way, the rest queued, of {WALLETS:,} wallets of"
        f" {TENANTS} tenants, with their attempts, events and outbox. Times are PostgreSQL's for one run with its"
        " plan; `prepared` is the prepared statement after six runs, as a client sees it. `read` counts the rows"
        " that scans looked at, `pages` those of 8 KiB. Aim for what runs per batch, block or second:"
        f" {AIM_MS:g} ms; what handles a whole block's or batch's rows is in proportion to them, and not to the"
        " history.",
        "",
        "| statement | per | ms | prepared, ms | pages | read | returned | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for plan in plans:
        case = plan.case
        lines.append(
            f"| `{case.room}.{case.name}` | {case.per} | {plan.ms:.2f} | {plan.prepared_ms:.2f} | {plan.pages} |"
            f" {plan.read} | {plan.returned} | {case.note} |"
        )
    return "\n".join(lines) + "\n"


async def run(url: str, options: argparse.Namespace) -> list[Plan]:
    await migrate(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        begun = time.monotonic()
        await seed(connection, options.rows)
        print(f"{options.rows} transactions made in {time.monotonic() - begun:.0f} s", flush=True)
        sample = await Sample.of(connection)
        cases = [*_requests(sample), *_queue(sample), *_blocks(sample), *await _stream(connection, sample)]
        plans = []
        for case in cases:
            if options.only and case.name not in options.only:
                continue
            plan = await measured(connection, case)
            plans.append(plan)
            print(
                f"{case.room}.{case.name:22} {plan.ms:9.2f} ms {plan.prepared_ms:9.2f} ms prepared"
                f" {plan.pages:8} pages {plan.read:9} read {plan.returned:6} returned  {case.note}",
                flush=True,
            )
        return plans


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", help="names of statements")
    parser.add_argument("--write", type=Path, help="write the report there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = Places.open(Path(folder))
        postgres = Postgres.open(places, {HOME_MARK: str(places.home)})
        stack = Stack([postgres.part()], watch=lambda event: None)
        try:
            await stack.start()
            plans = await run(postgres.url, options)
        finally:
            await stack.stop()
            places.tidy()
    if options.write:
        options.write.write_text(report(plans, options.rows))


if __name__ == "__main__":
    asyncio.run(main())
