"""Stored bytes on their way to a node, many at a time, and what its answers mean.

Only a refusal of bytes that were sent once, with an answer, ends them. Where an answer was lost, by this worker or
by one that died, a node may have them: then only the chain can tell, at validUntilBlock.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.rpc import MAX_BATCH, RpcClient, SendOutcome
from neolayer.core.errors import ServiceError
from neolayer.core.types import Hash256
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.pricing import Pricing
from neolayer.transactions.queue import Cause, cause_json

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: Between tries while something is down, doubled from the first to the second; seconds.
RETRY_S: Final = (0.25, 2.0)
#: What a refusal that may pass is called.
_WAITS: Final = {"funds": "waiting_for_gas", "retry": "mempool_full"}


def delay_s(tries: int) -> float:
    """Before the next try, the number of tries known."""
    first, last = RETRY_S
    return min(last, first * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1)  # noqa: S311 - jitter


@dataclass(frozen=True, slots=True)
class Signed:
    """Stored bytes under a lease."""

    txid: bytes
    raw: bytes
    tries: int
    #: An earlier lease, of ours or of a worker that died, may have sent them without hearing the answer.
    maybe_sent: bool


@dataclass(slots=True)
class _Answers:
    sent: list[bytes] = field(default_factory=list)
    refused: list[tuple[bytes, Cause]] = field(default_factory=list)
    waiting: list[tuple[Signed, Cause]] = field(default_factory=list)


class Sender:
    def __init__(self, database: Database, rpc: RpcClient, pricing: Pricing, *, requests: int = 4) -> None:
        """
        Args:
            requests: HTTP requests at a time.
        """
        self._database = database
        self._rpc = rpc
        self._pricing = pricing
        self._free = asyncio.Semaphore(requests)

    async def send(self, lease: UUID, signed: Sequence[Signed]) -> None:
        """Send each once, and write down what became of it.

        Raises:
            DatabaseUnavailable: that could not be written; the lease ends, and the same bytes are sent again.
        """
        parts = [signed[start : start + MAX_BATCH] for start in range(0, len(signed), MAX_BATCH)]
        await asyncio.gather(*(self._send(lease, part) for part in parts))

    async def _send(self, lease: UUID, part: Sequence[Signed]) -> None:
        answers = _Answers()
        height = None
        try:
            height = (await self._pricing.policy()).height
            async with self._free:
                outcomes = await self._rpc.send_raw_transactions([one.raw for one in part])
        except ServiceError as error:
            # When no answer comes the bytes stay signed, and whoever takes them next knows that they may be known.
            outcomes = [_unheard(error)] * len(part)
        for one, outcome in zip(part, outcomes, strict=True):
            await self._judge(answers, one, outcome)
        await self._write(lease, answers, height)

    async def _judge(self, answers: _Answers, one: Signed, outcome: SendOutcome | NodeUnavailable) -> None:
        if isinstance(outcome, NodeUnavailable):
            answers.waiting.append((one, {"code": outcome.code, "message": outcome.detail}))
            return
        ambiguous = one.maybe_sent or outcome.ambiguous
        cause: dict[str, Any] = {"message": outcome.message, "node_code": outcome.node_code}
        if outcome.kind == "rejected" and ambiguous and await self._known(one.txid):
            outcome = SendOutcome("accepted")
        match outcome.kind:
            case "accepted":
                answers.sent.append(one.txid)
            case "rejected" if not ambiguous:
                answers.refused.append((one.txid, {"code": "rejected_by_node"} | cause))
            case kind:
                answers.waiting.append((one, {"code": _WAITS.get(kind, kind)} | cause))

    async def _known(self, txid: bytes) -> bool:
        try:
            return await self._rpc.knows(Hash256(txid))
        except ServiceError:
            return False

    async def _write(self, lease: UUID, answers: _Answers, height: int | None) -> None:
        if answers.sent:
            await self._database.execute(_SQL["mark_sent"], {"txids": answers.sent, "height": height})
        if answers.refused:
            params = {
                "lease": lease,
                "txids": [txid for txid, _ in answers.refused],
                "causes": [cause_json(cause) for _, cause in answers.refused],
            }
            async with self._database.transaction() as connection:
                await connection.execute(_SQL["lock_attempts"], params)
                await connection.execute(_SQL["lock_reservations_of"], params)
                await connection.execute(_SQL["refuse"], params)
        if answers.waiting:
            params = {
                "lease": lease,
                "txids": [one.txid for one, _ in answers.waiting],
                "delays": [delay_s(one.tries) for one, _ in answers.waiting],
                "causes": [cause_json(cause) for _, cause in answers.waiting],
            }
            await self._database.execute(_SQL["postpone_signed"], params)


def _unheard(error: ServiceError) -> NodeUnavailable:
    return error if isinstance(error, NodeUnavailable) else NodeUnavailable(error.detail)
