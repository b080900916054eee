"""From sent to final: what blocks say about our transactions.

One follower confirms everything of a block with one lookup and one database transaction, which also moves the
cursor: after a crash the block is either fully processed or not at all. What ran in it the node tells by itself;
what was not heard is asked for in one batch.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.executions import Executions
from neolayer.chain.follower import BlockFollower, Cursor
from neolayer.chain.rpc import MAX_BATCH, ApplicationLog, Block, RpcClient
from neolayer.chain.seen import SeenBlocks
from neolayer.core.errors import ServiceError
from neolayer.core.text import storable
from neolayer.core.types import Hash256
from neolayer.db.notices import notify
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.transactions.grouping import outcomes
from neolayer.transactions.model import TOPIC
from neolayer.transactions.queue import Cause, Queue, cause_json
from neolayer.watches.service import Watches

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: How often sent transactions that no block shows are looked for; seconds.
RESEND_S: Final = 1.0
#: Where a node tells how a transaction ended and nothing more.
NO_LOG: Final = "no node gives its application log: it may be too long"
#: Blocks before the first cursor whose hashes are recorded.
KNOWN_BEFORE_START: Final = 20


class Monitor:
    """Implements the follower's `BlockConsumer`."""

    def __init__(
        self,
        database: Database,
        rpc: RpcClient,
        queue: Queue,
        watches: Watches,
        *,
        resend_after_blocks: int,
    ) -> None:
        self._database = database
        self._watches = watches
        self._queue = queue
        self._rpc = rpc
        self._resend_after_blocks = resend_after_blocks
        self._network = 0
        self._seen = SeenBlocks(database, 0)
        self.follower = BlockFollower(rpc, self)

    async def run(self) -> None:
        """Follow the chain and resend what it does not show, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.follower.run())
            tasks.create_task(self._resend())

    # --- BlockConsumer --------------------------------------------------------------------------------

    async def load_cursor(self) -> Cursor | None:
        self._network = (await self._rpc.version()).network
        self._seen = SeenBlocks(self._database, self._network)
        return await self._seen.cursor()

    async def start_at(self, cursor: Cursor) -> None:
        """Without a cursor, what was sent before may be in blocks that the follower will never see."""
        rows = await self._database.fetch(_SQL["live"], {"network": self._network})
        for txid, grouped in rows:
            hash_ = Hash256(bytes(txid))
            height = await self._rpc.transaction_height(hash_)
            if height is not None and height <= cursor.index:
                block = await self._rpc.get_block(height)
                logs = await self._asked([hash_])
                async with self._database.transaction() as connection:
                    await connection.execute(_SQL["lock_attempts"], {"txids": [txid]})
                    await self._include(connection, block, [(logs[0], grouped)])
        # A private chain killed right after the first start may go back behind it: know some blocks before, too.
        indexes = range(max(cursor.index - KNOWN_BEFORE_START, 0), cursor.index)
        hashes = await self._rpc.batch([("getblockhash", [index]) for index in indexes])
        earlier = [Cursor(index, Hash256.parse(hash_)) for index, hash_ in zip(indexes, hashes, strict=True)]
        async with self._database.transaction() as connection:
            for known in (*earlier, cursor):
                await self._seen.advance(connection, known, datetime.now(UTC))

    async def process(self, block: Block, executions: Executions) -> None:
        ours: list[tuple[ApplicationLog, bool]] = []
        if block.transactions:
            params = {"txids": [hash_.data for hash_ in block.transactions]}
            rows = await self._database.fetch(_SQL["ours"], params)
            if rows:
                logs = await self._logs([Hash256(bytes(txid)) for txid, _ in rows], executions)
                ours = [(log, grouped) for log, (_, grouped) in zip(logs, rows, strict=True)]
        notifications = await self._watches.notifications(self._network, block, executions)
        async with self._database.transaction() as connection:
            expired = await self._lock(connection, block, ours)
            if ours:
                await self._include(connection, block, ours)
            if expired:
                await connection.execute(_SQL["expire"], {"network": self._network, "index": block.index})
            if notifications:
                await self._watches.publish(connection, self._network, block, notifications)
            await self._seen.advance(
                connection, Cursor(block.index, block.hash), _time(block), len(block.transactions)
            )
            if ours or expired:
                await notify(connection, TOPIC)
        # The block is done with. Were this lost, the workers would do it within a second.
        with contextlib.suppress(ServiceError):
            await self._queue.wake(block.index)

    async def hash_at(self, index: int) -> Hash256 | None:
        return await self._seen.hash_at(index)

    async def rewind(self, cursor: Cursor) -> None:
        async with self._database.transaction() as connection:
            await self._seen.rewind(connection, cursor.index)
            await self._watches.rewind(connection, self._network, cursor)
            undone = await connection.execute(_SQL["unconfirm"], {"network": self._network, "index": cursor.index})
        _log.warning("the chain went back to block %d: %d transactions wait again", cursor.index, undone.rowcount)

    # --------------------------------------------------------------------------------------------------

    async def _logs(self, transactions: Sequence[Hash256], executions: Executions) -> list[ApplicationLog]:
        """In their order; the node is asked for those that were not heard."""
        logs = {hash_: executions.of_transaction(hash_) for hash_ in transactions}
        missing = [hash_ for hash_, log in logs.items() if log is None]
        asked = {log.hash: log for log in await self._asked(missing)} if missing else {}
        return [log or asked[hash_] for hash_, log in logs.items()]

    async def _asked(self, transactions: Sequence[Hash256]) -> list[ApplicationLog]:
        """Of one whose log cannot be had, as contracts can make it very long, it is known at least how it ended:
        it must not keep all others from being confirmed."""
        try:
            return await self._rpc.application_logs(transactions)
        except NodeUnavailable:
            if len(transactions) > 1:
                middle = len(transactions) // 2
                return [*await self._asked(transactions[:middle]), *await self._asked(transactions[middle:])]
            (transaction,) = transactions
            halted = await self._rpc.ended_in_halt(transaction)
            if halted is None:
                raise
            _log.warning("no node gives the application log of %s", transaction)
            return [ApplicationLog(transaction, "HALT" if halted else "FAULT", NO_LOG, 0, [], [])]

    async def _include(
        self, connection: Connection, block: Block, ours: list[tuple[ApplicationLog, bool]]
    ) -> None:
        """``ours``: the logs of a block's transactions, and whether each carries a group; all are locked."""
        decided = [outcome for log, grouped in ours for outcome in _outcomes(log, grouped)]
        params = {
            "txids": [log.hash.data for log, _ in ours],
            "halted": [log.halted for log, _ in ours],
            "of": [outcome.txid for outcome in decided],
            "positions": [outcome.position for outcome in decided],
            "states": [outcome.state for outcome in decided],
            "causes": [cause_json(outcome.cause) for outcome in decided],
            "results": [outcome.result for outcome in decided],
            "index": block.index,
            "time": _time(block),
        }
        await connection.execute(_SQL["include"], params)

    async def _lock(self, connection: Connection, block: Block, ours: list[tuple[ApplicationLog, bool]]) -> bool:
        """All that a block decides about, in the order in which workers lock it; returns whether any expires."""
        params = {"network": self._network, "index": block.index, "txids": [log.hash.data for log, _ in ours]}
        rows = await (await connection.execute(_SQL["lock_block"], params)).fetchall()
        expired = any(expires for _, expires in rows)
        if rows:
            await connection.execute(_SQL["lock_reservations_of"], {"txids": [txid for txid, _ in rows]})
        return expired

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            cursor = self.follower.cursor
            if cursor is None or self.follower.connected == "down":
                continue
            try:
                await self._resend_unseen(cursor.index)
            except ServiceError as error:
                _log.warning("resending waits: %s", error.detail)

    async def _resend_unseen(self, height: int) -> None:
        """A node that was restarted has an empty memory pool, and pools drop what they hold silently."""
        while True:
            rows = await self._database.fetch(
                _SQL["unseen"],
                {
                    "network": self._network,
                    "height": height,
                    "blocks": self._resend_after_blocks,
                    "limit": MAX_BATCH,
                },
            )
            if not rows:
                return
            outcomes = await self._rpc.send_raw_transactions([bytes(raw) for _, raw in rows])
            unheard = [outcome for outcome in outcomes if isinstance(outcome, NodeUnavailable)]
            if len(unheard) == len(rows):
                raise unheard[0]
            for (txid, _), outcome in zip(rows, outcomes, strict=True):
                # One that no node can tell anything about must not keep the others from being sent.
                if isinstance(outcome, NodeUnavailable) or outcome.kind != "accepted":
                    _log.info("resent %s: %s", Hash256(bytes(txid)), outcome)
            params = {"txids": [txid for txid, _ in rows], "height": height}
            await self._database.execute(_SQL["mark_resent"], params)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a block says of one intent of a transaction."""

    txid: bytes
    #: Null: of all of them.
    position: int | None
    state: str
    cause: Cause | None
    #: JSON of {vmstate, exception, gas_consumed, stack}.
    result: str


def _outcomes(log: ApplicationLog, grouped: bool) -> list[_Outcome]:
    txid = log.hash.data
    # Contracts choose these words, as any bytes.
    exception = None if log.exception is None else storable(log.exception)
    if not log.halted:
        message = f"the transaction that it shared ended in FAULT: {exception}" if grouped else exception
        cause = {"code": "group_faulted" if grouped else "vm_fault", "message": message}
        return [_Outcome(txid, None, "faulted", cause, _result_json(log, exception, log.stack))]
    if log.exception == NO_LOG or (grouped and not log.stack):
        cause = {"code": "result_unknown", "message": NO_LOG}
        return [_Outcome(txid, None, "confirmed", cause, _result_json(log, exception, log.stack))]
    if not grouped:
        return [_Outcome(txid, None, "confirmed", None, _result_json(log, exception, log.stack))]
    return [
        _Outcome(
            txid,
            position,
            "confirmed" if one.succeeded else "faulted",
            one.cause,
            _result_json(log, one.cause["message"] if one.cause else None, [one.item]),
        )
        for position, one in enumerate(outcomes(log.stack))
    ]


def _result_json(log: ApplicationLog, exception: str | None, stack: list[Any]) -> str:
    # json.dumps writes lone surrogates as escapes, where msgspec would raise.
    return json.dumps(
        {"vmstate": log.vmstate, "exception": exception, "gas_consumed": log.gas_consumed, "stack": stack}
    )


def _time(block: Block) -> datetime:
    return datetime.fromtimestamp(block.time_ms / 1000, UTC)
