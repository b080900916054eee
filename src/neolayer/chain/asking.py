"""From a question to an answer: which node, how long, when another one, and how often."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from operator import is_not
from typing import Any, Final

import stamina

from neolayer.chain.errors import NodeUnavailable, WrongNetwork
from neolayer.chain.methods import FENCED_ROUNDS, Policy, label_of, policy_of
from neolayer.chain.metrics import HEDGES, SPARED
from neolayer.chain.node import FAILOVER_S, Node
from neolayer.chain.pool import NodePool, PoolOptions
from neolayer.chain.transport import Answer, NodeFailed, Request, Transport

#: Extra load by hedges: a share of all reads, and so many in a row after a quiet time.
HEDGE_SHARE: Final = 0.05
HEDGE_BURST: Final = 10.0
#: Pauses between going through the nodes, doubled, with jitter up to the last one; seconds.
_PAUSE_S: Final = (0.05, 0.8, 0.05)

_fence: ContextVar[int] = ContextVar("fence", default=-1)


@contextlib.contextmanager
def fenced(height: int) -> Iterator[None]:
    """Reads within are not answered by a node that lacks this block: what is done because of it sees it."""
    token = _fence.set(max(height, _fence.get()))
    try:
        yield
    finally:
        _fence.reset(token)


class Question:
    """Calls for one node to answer together."""

    def __init__(
        self,
        calls: Sequence[tuple[str, Sequence[Any]]],
        *,
        batch: bool,
        min_height: int | None = None,
        heights: bool = False,
    ) -> None:
        """
        Args:
            min_height: the node must have this block; beside it the fence of the context counts, see `fenced`.
            heights: the answer tells at which height it was given.
        """
        self.min_height = max(_fence.get(), -1 if min_height is None else min_height)
        self.request = Request(calls, batch=batch, heights=heights or self.min_height >= 0)
        self.label = label_of(calls)
        self.policy: Policy = policy_of(calls)
        if self.min_height >= 0 and self.policy.rounds > 1:
            self.policy = Policy(self.policy.hedged, self.policy.shared, FENCED_ROUNDS)

    @property
    def key(self) -> bytes:
        """Equal for questions that the same answer fits."""
        return b"%d %s" % (self.min_height, self.request.body)


class Asker:
    """Asks the nodes of a pool."""

    def __init__(self, pool: NodePool, transport: Transport, options: PoolOptions, *, timeout_s: float) -> None:
        """
        Args:
            timeout_s: for one attempt at one node.
        """
        self._pool = pool
        self._transport = transport
        self._options = options
        self._timeout_s = timeout_s
        self._hedges = HEDGE_BURST
        self._in_flight: dict[bytes, asyncio.Task[tuple[Answer, Node]]] = {}
        self._leaving: set[asyncio.Task[Answer]] = set()

    async def close(self) -> None:
        for task in (*self._in_flight.values(), *self._leaving):
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), *self._leaving, return_exceptions=True)

    async def ask(self, question: Question) -> tuple[Answer, Node]:
        """The answer and who gave it.

        Raises:
            NodeUnavailable: no node gave a usable answer.
            WrongNetwork: all nodes are of another network.
        """
        self._pool.begin()
        if not (self._options.keep and question.policy.shared):
            return await self._go_through(question)
        flight = self._in_flight.get(question.key)
        if flight is None:
            flight = self._in_flight[question.key] = asyncio.create_task(self._go_through(question))
            flight.add_done_callback(lambda done: self._landed(question.key, done))
        else:
            SPARED.labels("shared").inc()
        return await asyncio.shield(flight)

    def _landed(self, key: bytes, done: asyncio.Task[tuple[Answer, Node]]) -> None:
        del self._in_flight[key]
        if not done.cancelled():
            done.exception()  # seen, also when everybody who asked has left

    async def _go_through(self, question: Question) -> tuple[Answer, Node]:
        first_s, last_s, jitter_s = _PAUSE_S
        async for attempt in stamina.retry_context(
            on=NodeUnavailable,
            attempts=question.policy.rounds,
            timeout=None,
            wait_initial=first_s,
            wait_max=last_s,
            wait_jitter=jitter_s,
        ):
            with attempt:
                return await self._race(question)
        raise AssertionError("the last attempt returns or raises")

    async def _race(self, question: Question) -> tuple[Answer, Node]:
        """One time through the nodes: the next one when one fails, or beside one that is slow."""
        waiting = deque(self._candidates(question))
        running: dict[asyncio.Task[Answer], Node] = {}
        failures: list[tuple[Node, NodeFailed]] = []
        hedged = False
        self._hedges = min(self._hedges + HEDGE_SHARE, HEDGE_BURST)
        try:
            while waiting or running:
                if not running:
                    node = waiting.popleft()
                    if not waiting:
                        # Nobody to race with: no task is needed.
                        try:
                            answer = await self.attempt(node, question)
                        except NodeFailed as failure:
                            failures.append((node, failure))
                            continue
                        return self._won(answer, node)
                    running[asyncio.create_task(self.attempt(node, question))] = node
                    asked_s = time.monotonic()
                patience_s, reason = self._patience(question, running, waiting, hedged=hedged)
                wait_s = None if patience_s is None else max(0.0, asked_s + patience_s - time.monotonic())
                done, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    asked_before = [running[other] for other in takewhile(partial(is_not, task), running)]
                    node = running.pop(task)
                    try:
                        answer = task.result()
                    except NodeFailed as failure:
                        failures.append((node, failure))
                        continue
                    for slower in asked_before:
                        slower.overtaken(question.label, time.monotonic())
                    return self._won(answer, node)
                if not done:
                    if reason == "hedge":
                        hedged = True
                        self._hedges -= 1
                    HEDGES.labels(reason).inc()
                    node = waiting.popleft()
                    running[asyncio.create_task(self.attempt(node, question))] = node
                    asked_s = time.monotonic()
        finally:
            for task in running:
                self._leave(task)
        raise self._unanswered(failures)

    def _patience(
        self,
        question: Question,
        running: dict[asyncio.Task[Answer], Node],
        waiting: Sequence[Node],
        *,
        hedged: bool,
    ) -> tuple[float | None, str]:
        """How long the asked nodes have before the next one is asked as well, and why it would be."""
        if not waiting or not question.policy.hedged:
            return None, ""
        failover_s = FAILOVER_S if self._options.select else None
        if self._options.hedge and not hedged and self._hedges >= 1:
            node = next(iter(running.values()))
            hedge_s = node.hedge_after_s(question.label)
            if failover_s is None or hedge_s < failover_s:
                return hedge_s, "hedge"
        return failover_s, "failover"

    def _candidates(self, question: Question) -> list[Node]:
        """Best first, but before them those that are known to have the needed block and that have a free place."""
        nodes = self._pool.selection.ranking.order
        if question.min_height < 0 and not nodes[0].limit.full:
            return list(nodes)
        needed = question.min_height
        return sorted(nodes, key=lambda node: ((node.height or -1) < needed, node.limit.full))

    def _won(self, answer: Answer, node: Node) -> tuple[Answer, Node]:
        self._pool.selection.answered(node)
        return answer, node

    async def attempt(self, node: Node, question: Question) -> Answer:
        """Ask one node, once.

        Raises:
            NodeFailed: no usable answer from it.
        """
        await node.limit.acquire()
        begun_s = time.monotonic()
        posted = False
        try:
            if node.version is None:
                await self._pool.introduce(node)
                begun_s = time.monotonic()
            posted = True
            answer = await self._transport.post(node.url, question.request, self._timeout_s)
            now_s = time.monotonic()
            node.answered(question.label, now_s - begun_s, now_s)
            if answer.after is not None:
                node.told_height(answer.after, now_s)
            if answer.before is not None and answer.before < question.min_height:
                raise NodeFailed("behind", f"it is at block {answer.before}, {question.min_height} is needed")
        except NodeFailed as failure:
            if posted:
                now_s = time.monotonic()
                node.failed(question.label, failure, now_s - begun_s, now_s)
                self._pool.selection.changed()
            raise
        except asyncio.CancelledError:
            now_s = time.monotonic()
            if posted:
                node.abandoned(question.label, now_s - begun_s, now_s)
            raise
        finally:
            node.limit.release()
        return answer

    def _leave(self, task: asyncio.Task[Answer]) -> None:
        """Somebody else was faster."""
        task.cancel()
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Answer]) -> None:
        self._leaving.discard(task)
        if not task.cancelled():
            task.exception()
        self._pool.selection.changed()

    def _unanswered(self, failures: Sequence[tuple[Node, NodeFailed]]) -> NodeUnavailable | WrongNetwork:
        asked = {node.url for node, _ in failures}
        strangers = [
            f"{node.name}: network {node.stranger}, expected {self._pool.network}"
            for node in self._pool.nodes
            if node.stranger is not None and node.url not in asked
        ]
        text = "; ".join([*(f"{node.name}: {failure}" for node, failure in failures), *strangers])
        if all(failure.kind == "network" for _, failure in failures):
            return WrongNetwork(text)
        return NodeUnavailable(text)
