"""Who locks what while somebody else has it: two at a time on the same rows, stopped at a row that a third holds.

The third session is the gate: it holds one row, the first runs into it with whatever it has locked by then, the
second runs into either; then the gate opens. A circle would end in PostgreSQL's `deadlock detected` (40P01), which
whoever called would see.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from neolayer.chain.executions import NOTHING_HEARD
from neolayer.chain.rpc import Block
from neolayer.core.types import Hash256
from neolayer.transactions.attempts import Attempt
from neolayer.transactions.errors import TooLate
from neolayer.transactions.queue import Batch
from neolayer.transactions.sending import Sender, Signed
from tests.transactions.conftest import Room
from tests.transactions.test_pipeline import stranger
from tests.transactions.test_queue import queue_of

#: Transfers of one round; an attempt each.
MANY: Final = 5
GATES: Final = {
    "attempt": b"SELECT FROM transaction_attempts WHERE txid = %(txid)s FOR UPDATE",
    "intent": b"SELECT FROM transactions WHERE id = %(id)s FOR UPDATE",
    "reservation": b"SELECT FROM wallet_reservations WHERE wallet_id = %(wallet)s FOR UPDATE",
}


@dataclass
class Round:
    """Attempts that are stored and in blocks, and of which the service knows neither that they were sent."""

    room: Room
    batch: Batch
    stored: list[Attempt]
    blocks: list[Block]

    @classmethod
    async def begin(cls, room: Room) -> "Round":
        for _ in range(MANY):
            await room.submit(stranger(), 1, group="never")
        batch = await queue_of(room).lease(MANY)
        stored = await room.pipeline()._preparer.prepare(batch, 1)
        assert len(stored) == MANY
        await room.node.next_block()
        outcomes = await room.node.rpc.send_raw_transactions([one.raw for one in stored])
        assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"accepted"}
        heights = set()
        for one in stored:
            await room.node.devnet.wait(room.node.rpc, Hash256(one.txid))
            heights.add(await room.node.rpc.transaction_height(Hash256(one.txid)) or 0)
        blocks = [await room.node.rpc.get_block(height) for height in sorted(heights)]
        return cls(room, batch, sorted(stored, key=lambda one: one.txid), blocks)

    @property
    def middle(self) -> Attempt:
        """Some are locked before it, some after."""
        return self.stored[MANY // 2]

    # --- what meets -------------------------------------------------------------------------------------------

    async def block(self) -> None:
        for block in self.blocks:
            await self.room.monitor.process(block, NOTHING_HEARD)

    async def sent(self) -> None:
        parts = self.room.parts
        signed = [Signed(one.txid, one.raw, 0, maybe_sent=False) for one in reversed(self.stored)]
        await Sender(parts.database, parts.rpc, parts.pricing).send(self.batch.lease, signed)

    async def cancel(self) -> None:
        with contextlib.suppress(TooLate):
            await self.room.parts.replacements.cancel(self.room.tenant_id, self.intent, None)

    async def speed_up(self) -> None:
        with contextlib.suppress(TooLate):
            await self.room.parts.replacements.speed_up(self.room.tenant_id, self.intent, "urgent", None)

    async def store(self) -> None:
        """Another batch of the same wallet."""
        await self.room.submit(stranger(), 1, group="never")
        batch = await queue_of(self.room).lease(MANY)
        assert len(await self.room.pipeline()._preparer.prepare(batch, 1)) == len(batch.intents) == 1

    async def renew(self) -> None:
        await queue_of(self.room).renew([self.batch.lease])

    async def reclaim(self) -> None:
        await queue_of(self.room).wake(None)

    # ----------------------------------------------------------------------------------------------------------

    @property
    def intent(self) -> UUID:
        return self.middle.shares[0].intent.id

    @asynccontextmanager
    async def gate(self, kind: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Holds one row until it is closed."""
        url = self.room.parts.settings.database_url
        assert url is not None
        async with await psycopg.AsyncConnection.connect(url) as connection:
            params = {"txid": self.middle.txid, "id": self.intent, "wallet": self.room.wallet.id}
            await connection.execute(GATES[kind], params)
            yield connection
            await connection.rollback()

    async def settles(self, task: asyncio.Task[None], waiting: int) -> None:
        """Until a task has ended, or so many sessions wait for rows."""
        query = b"""SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        async with asyncio.timeout(10):
            while not task.done():
                row = await self.room.parts.database.fetch_one(query)
                assert row is not None
                if row[0] >= waiting:
                    return
                await asyncio.sleep(0.01)

    async def meet(self, kind: str, first: str, second: str) -> None:
        async with self.gate(kind):
            one = asyncio.create_task(getattr(self, first)())
            await self.settles(one, 1)
            held = not one.done()
            other = asyncio.create_task(getattr(self, second)())
            await self.settles(other, 1 + held)
        async with asyncio.timeout(10):
            await asyncio.gather(one, other)


PAIRS: Final = [
    (first, second)
    for first, second in itertools.permutations(("block", "sent", "cancel", "speed_up", "store"), 2)
    if {first, second} & {"block", "sent"}
]


@pytest.mark.parametrize("kind", GATES)
async def test_whoever_meets_on_one_row_waits_in_no_circle(room: Room, kind: str) -> None:
    await room.monitor.load_cursor()
    for first, second in PAIRS:
        round = await Round.begin(room)
        await round.meet(kind, first, second)
        if "block" not in (first, second):
            await round.block()
        states = await room.parts.database.fetch(
            b"SELECT DISTINCT t.state, a.state FROM transactions t"
            b" JOIN transaction_attempts a USING (tenant_id, txid) WHERE a.txid = ANY(%(txids)s)",
            {"txids": [one.txid for one in round.stored]},
        )
        assert states == [("confirmed", "included")], (kind, first, second)
        await end_others(room)
    counted = await room.parts.database.fetch(b"SELECT sum(live), sum(reserved) FROM wallet_reservations")
    assert counted == [(0, 0)]


@pytest.mark.parametrize("kind", GATES)
async def test_what_renews_and_reclaims_leases_waits_for_nobody(room: Room, kind: str) -> None:
    await room.monitor.load_cursor()
    round = await Round.begin(room)
    async with round.gate(kind):
        block = asyncio.create_task(round.block())
        await round.settles(block, 1)
        assert not block.done()
        async with asyncio.timeout(2):
            await round.renew()
            await round.reclaim()
        assert not block.done()
    await block


async def end_others(room: Room) -> None:
    """What rounds have stored besides ends as if its blocks had passed."""
    await room.parts.database.execute(
        b"UPDATE transaction_attempts SET state = 'expired' WHERE state IN ('signed', 'sent')"
    )
    await room.parts.database.execute(
        b"UPDATE transactions SET state = 'expired' WHERE state IN ('signed', 'sent')"
    )


async def test_a_block_with_what_was_given_up_meets_a_batch_that_has_it_again(room: Room) -> None:
    """One node refused it, another took it. The batch holds the wallet's reservation and wants the intent; the
    block has others of the wallet, so it wants both, too."""
    await room.monitor.load_cursor()
    round = await Round.begin(room)
    given_up = {"txids": [round.middle.txid]}
    await room.parts.database.execute(
        b"UPDATE transaction_attempts SET state = 'refused', lease = NULL WHERE txid = ANY(%(txids)s)", given_up
    )
    await room.parts.database.execute(
        b"UPDATE transactions SET state = 'queued', txid = NULL, available_at = now() WHERE txid = ANY(%(txids)s)",
        given_up,
    )
    batch = await queue_of(room).lease(MANY)
    assert [intent.id for intent in batch.intents] == [round.intent]
    stored: list[Attempt] = []

    async def store() -> None:
        stored.extend(await room.pipeline()._preparer.prepare(batch, 1))

    async with round.gate("intent"):
        block = asyncio.create_task(round.block())
        await round.settles(block, 1)
        batched = asyncio.create_task(store())
        await round.settles(batched, 2)
        assert not block.done()
        assert not batched.done()
    async with asyncio.timeout(10):
        await asyncio.gather(block, batched)
    # The block came first: nothing more is signed for what it has confirmed.
    assert stored == []
    states = await room.parts.database.fetch(b"SELECT state, count(*) FROM transactions GROUP BY state")
    assert states == [("confirmed", MANY)]
