"""Offering a signed transaction to several nodes: one acceptance is enough, one refusal is not."""

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from neolayer.chain.answers import SEND_KINDS, SendKind, SendOutcome
from neolayer.chain.asking import Asker, Question
from neolayer.chain.errors import NodeUnavailable, RpcError, WrongNetwork
from neolayer.chain.node import Node
from neolayer.chain.pool import NodePool, PoolOptions
from neolayer.chain.transport import NodeFailed
from neolayer.chain.txid import hash_of_raw
from neolayer.core.types import Hash256

log = logging.getLogger(__name__)

#: For asking whether any node has a transaction that seems to have failed; seconds (eRPC's budget).
LOOK_UP_S: Final = 3.0
#: When nodes refuse for different reasons the one that leaves most hope counts: a node that is behind takes a good
#: ``valid_until_block`` for one too far ahead.
_HOPE: Final[tuple[SendKind, ...]] = ("accepted", "retry", "funds", "expired", "rejected")


class Broadcast:
    """Sends go to the best ``options.broadcast`` nodes at once, and to others in the place of those that fail."""

    def __init__(self, pool: NodePool, asker: Asker, options: PoolOptions) -> None:
        self._pool = pool
        self._asker = asker
        # Without choice of nodes it is plain failover.
        self._width = options.broadcast if options.select else 1
        #: Sends that go on although one node has accepted.
        self._background: set[asyncio.Task[SendOutcome]] = set()

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def send(self, raw: bytes) -> SendOutcome:
        """
        Raises:
            NodeUnavailable: ambiguous, a node may have taken it; none says so.
            WrongNetwork: all nodes are of another network.
        """
        self._pool.begin()
        question = Question([("sendrawtransaction", [base64.b64encode(raw).decode()])], batch=False)
        waiting = deque(self._pool.selection.ranking.order)
        running: dict[asyncio.Task[SendOutcome], Node] = {}
        refusals: list[SendOutcome] = []
        failures: list[tuple[Node, NodeFailed]] = []
        try:
            while waiting or running:
                while waiting and len(running) + len(refusals) < self._width:
                    node = waiting.popleft()
                    running[asyncio.create_task(self._offer(node, question))] = node
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    node = running.pop(task)
                    try:
                        outcome = task.result()
                    except NodeFailed as failure:
                        failures.append((node, failure))
                        continue
                    self._pool.selection.answered(node)
                    if outcome.kind == "accepted":
                        return outcome
                    refusals.append(outcome)
        finally:
            for task in running:
                self._background.add(task)
                task.add_done_callback(self._ended)
        return await self._unaccepted(raw, refusals, failures)

    async def _offer(self, node: Node, question: Question) -> SendOutcome:
        (reply,) = (await self._asker.attempt(node, question)).replies
        try:
            reply.value()
        except RpcError as error:
            kind = SEND_KINDS.get(error.node_code)
            if kind is None:
                # An internal error, a missing method: the node said nothing about the transaction.
                raise NodeFailed("http", f"sendrawtransaction: {error.detail}") from None
            return SendOutcome(kind, error.node_code, error.detail)
        return SendOutcome("accepted")

    async def _unaccepted(
        self, raw: bytes, refusals: Sequence[SendOutcome], failures: Sequence[tuple[Node, NodeFailed]]
    ) -> SendOutcome:
        """Before it is called failed: another attempt may have brought it to a node."""
        best = min(refusals, key=lambda refusal: _HOPE.index(refusal.kind), default=None)
        maybe_reached = any(failure.maybe_reached for _, failure in failures)
        if best is None or maybe_reached or best.kind in ("expired", "rejected"):
            try:
                transaction = hash_of_raw(raw)
            except ValueError:
                pass  # no transaction at all: nobody has it
            else:
                if await self._anyone_knows(transaction):
                    log.info("transaction %s seemed to fail and is known to a node", transaction)
                    return SendOutcome("accepted")
        if best is not None:
            return SendOutcome(best.kind, best.node_code, best.message, maybe_reached)
        text = "; ".join(f"{node.name}: {failure}" for node, failure in failures)
        if failures and all(failure.kind == "network" for _, failure in failures):
            raise WrongNetwork(text)
        raise NodeUnavailable(text)

    async def _anyone_knows(self, transaction: Hash256) -> bool:
        """Whether a node of our network has it, in a block or in its memory pool; silence is no."""
        question = Question([("getrawtransaction", [str(transaction), 0])], batch=False)

        async def has(node: Node) -> bool:
            try:
                (reply,) = (await self._asker.attempt(node, question)).replies
                reply.value()
            except (NodeFailed, RpcError):
                return False
            return True

        tasks = [asyncio.create_task(has(node)) for node in self._pool.nodes if node.stranger is None]
        try:
            async with asyncio.timeout(LOOK_UP_S):
                for found in asyncio.as_completed(tasks):
                    if await found:
                        return True
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return False

    def _ended(self, task: asyncio.Task[SendOutcome]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()
