"""Offering a signed transaction to several nodes: one acceptance is enough, one refusal is not."""

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Iterable, Sequence
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


#: A node's answer to each of several transactions; null where it said nothing about one.
type _Said = list[SendOutcome | None]


class Broadcast:
    """Sends go to the best ``options.broadcast`` nodes at once, and to others in the place of those that fail."""

    def __init__(self, pool: NodePool, asker: Asker, options: PoolOptions) -> None:
        self._pool = pool
        self._asker = asker
        # Without choice of nodes it is plain failover.
        self._width = options.broadcast if options.select else 1
        #: Sends that go on although one node has accepted.
        self._background: set[asyncio.Task[_Said]] = set()

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
        (outcome,) = await self.send_many([raw])
        if isinstance(outcome, NodeUnavailable):
            raise outcome
        return outcome

    async def send_many(self, many: Sequence[bytes]) -> list[SendOutcome | NodeUnavailable]:
        """Several at once, each node asked for all of them in one request; a `NodeUnavailable` as of `send` in the
        place of one of which no node said anything.

        Raises:
            WrongNetwork: all nodes are of another network.
        """
        if not many:
            return []
        self._pool.begin()
        calls = [("sendrawtransaction", [base64.b64encode(raw).decode()]) for raw in many]
        question = Question(calls, batch=len(many) > 1)
        waiting = deque(self._pool.selection.ranking.order)
        running: dict[asyncio.Task[_Said], Node] = {}
        answers: list[_Said] = []
        failures: list[tuple[Node, NodeFailed]] = []
        try:
            while waiting or running:
                while waiting and len(running) + len(answers) < self._width:
                    node = waiting.popleft()
                    running[asyncio.create_task(self._offer(node, question))] = node
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    node = running.pop(task)
                    try:
                        answers.append(task.result())
                    except NodeFailed as failure:
                        failures.append((node, failure))
                        continue
                    self._pool.selection.answered(node)
                best = [_most_hopeful(each) for each in zip(*answers, strict=True)]
                if best and all(outcome and outcome.kind == "accepted" for outcome in best):
                    break
        finally:
            for task in running:
                self._background.add(task)
                task.add_done_callback(self._ended)
        if not answers and failures and all(failure.kind == "network" for _, failure in failures):
            raise WrongNetwork(_text(failures))
        said_of = list(zip(*answers, strict=True)) or [()] * len(many)
        settled = (self._settled(raw, said, failures) for raw, said in zip(many, said_of, strict=True))
        return list(await asyncio.gather(*settled))

    async def _offer(self, node: Node, question: Question) -> "_Said":
        answer = await self._asker.attempt(node, question)
        said: list[SendOutcome | None] = []
        trouble = ""
        for reply in answer.replies:
            try:
                reply.value()
            except RpcError as error:
                kind = SEND_KINDS.get(error.node_code)
                # An internal error, a missing method: the node said nothing about the transaction.
                outcome = SendOutcome(kind, error.node_code, error.detail, answer.repeated) if kind else None
                said.append(outcome)
                trouble = error.detail
            else:
                said.append(SendOutcome("accepted"))
        if not any(said):
            raise NodeFailed("http", f"sendrawtransaction: {trouble}")
        return said

    async def _settled(
        self, raw: bytes, said: Sequence[SendOutcome | None], failures: Sequence[tuple[Node, NodeFailed]]
    ) -> SendOutcome | NodeUnavailable:
        """Before it is called failed: another attempt may have brought it to a node.

        Args:
            said: of this transaction, by the nodes that answered; a node that said nothing of it may have it.
        """
        best = _most_hopeful(said)
        if best is not None and best.kind == "accepted":
            return best
        ambiguous = any(failure.maybe_reached for _, failure in failures) or any(
            outcome is None or outcome.ambiguous for outcome in said
        )
        if best is None or ambiguous or best.kind in ("expired", "rejected"):
            try:
                transaction = hash_of_raw(raw)
            except ValueError:
                pass  # no transaction at all: nobody has it
            else:
                if await self._anyone_knows(transaction):
                    log.info("transaction %s seemed to fail and is known to a node", transaction)
                    return SendOutcome("accepted")
        if best is not None:
            return SendOutcome(best.kind, best.node_code, best.message, ambiguous)
        return NodeUnavailable(_text(failures) or "no node said anything about the transaction")

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

    def _ended(self, task: "asyncio.Task[_Said]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()


def _most_hopeful(outcomes: Iterable[SendOutcome | None]) -> SendOutcome | None:
    """Of what nodes said about one transaction."""
    return min(
        (outcome for outcome in outcomes if outcome is not None),
        key=lambda outcome: _HOPE.index(outcome.kind),
        default=None,
    )


def _text(failures: Sequence[tuple[Node, NodeFailed]]) -> str:
    return "; ".join(f"{node.name}: {failure}" for node, failure in failures)
