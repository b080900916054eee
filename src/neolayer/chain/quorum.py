"""What the majority of the nodes says of the chain. Nothing is called confirmed on the word of one of several."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from neolayer.chain.asking import Asker, Question
from neolayer.chain.errors import BlockDisputed, NodeUnavailable, RpcError
from neolayer.chain.node import Node
from neolayer.chain.pool import NodePool
from neolayer.chain.transport import NodeFailed
from neolayer.core.types import Hash256

#: How long a new block may be known to a minority only; nodes have it within a fraction of a second of each
#: other, and those that fail are not counted after 2.7 s (`Judge.silent_s`); seconds.
AGREEMENT_S: Final = 4.0
#: Before a node is asked again for a block that it did not have, doubled up to the second; seconds.
_AGAIN_S: Final = (0.02, 0.2)
#: A node that fails so often in a row has no vote.
_FAILURES: Final = 3
#: How often it is looked who the voters are; seconds.
_LOOK_S: Final = 0.1


class Quorum:
    """Asks all voters (see `Judge.voters`) at once, and decides as soon as a majority of them agrees.

    With one node, or without node choice, the node in use decides alone.
    """

    def __init__(self, pool: NodePool, asker: Asker) -> None:
        self._pool = pool
        self._asker = asker

    async def height(self) -> int:
        """The highest block that a majority has.

        Raises:
            NodeUnavailable: no majority answers.
        """
        if self._pool.trusts_one:
            return int(await self._ask_any("getblockcount")) - 1

        async def height_of(node: Node) -> int:
            return int(await self._ask(node, "getblockcount")) - 1

        votes, voters = await self._poll(height_of, lambda votes, needed: len(votes) >= needed)
        if len(votes) <= voters // 2:
            raise NodeUnavailable(f"{len(votes)} of {voters} nodes tell their height")
        return sorted(votes, reverse=True)[voters // 2]

    async def hash_at(self, index: int) -> Hash256:
        """The block that a majority has at this index.

        Raises:
            BlockDisputed: there are several, none of a majority.
            NodeUnavailable: too few nodes know one.
        """
        if self._pool.trusts_one:
            return Hash256.parse(await self._ask_any("getblockhash", index))
        return await self._agreed(index)

    async def confirm(self, index: int, hash_: Hash256, *, teller: str | None = None) -> None:
        """Wait until a majority has this block.

        Args:
            teller: URL of the node that told it; it is not asked again.

        Raises:
            BlockDisputed: a majority has another block, or none has a majority.
            NodeUnavailable: no majority has one within `AGREEMENT_S`.
        """
        if self._pool.trusts_one:
            return
        agreed = await self._agreed(index, teller, hash_)
        if agreed != hash_:
            for node in self._pool.nodes:
                if node.url == teller:
                    self._pool.exclude(node, f"its block {index} is not that of the majority")
            raise BlockDisputed(f"block {index} is {agreed} for the majority of the nodes, not {hash_}")

    async def _agreed(self, index: int, teller: str | None = None, told: Hash256 | None = None) -> Hash256:
        async def hash_of(node: Node) -> Hash256:
            if told is not None and node.url == teller:
                return told
            return Hash256.parse(await self._ask(node, "getblockhash", index))

        votes, voters = await self._poll(hash_of, lambda votes, needed: max(Counter(votes).values()) >= needed)
        tally = Counter(votes)
        hash_, count = tally.most_common(1)[0] if tally else (None, 0)
        if hash_ is not None and count > voters // 2:
            return hash_
        if len(tally) > 1:
            raise BlockDisputed(f"{len(tally)} different blocks {index}, none of them of a majority")
        raise NodeUnavailable(f"{count} of {voters} nodes have block {index}")

    async def _poll[T](
        self, ask: Callable[[Node], Coroutine[Any, Any, T]], enough: Callable[[list[T], int], bool]
    ) -> tuple[list[T], int]:
        """The votes so far and the number of voters: when they are enough, complete, or `AGREEMENT_S` has passed.

        Who the voters are is looked up again and again: those that have failed meanwhile are not waited for.
        """
        await self._pool.probed()
        asked: dict[str, asyncio.Task[T]] = {}
        deadline_s = time.monotonic() + AGREEMENT_S
        try:
            while True:
                voters = self._pool.voters()
                for node in voters:
                    if node.url not in asked:
                        asked[node.url] = asyncio.create_task(ask(node))
                tasks = [asked[node.url] for node in voters]
                votes = [task.result() for task in tasks if task.done() and task.exception() is None]
                running = [task for task in tasks if not task.done()]
                if (votes and enough(votes, len(voters) // 2 + 1)) or not running or time.monotonic() > deadline_s:
                    return votes, len(voters)
                await asyncio.wait(running, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    async def _ask(self, node: Node, method: str, *params: int) -> Any:
        """Of this node, and again while it does not have the block yet.

        Raises:
            NodeFailed: several times in a row.
        """
        question = Question([(method, params)], batch=False)
        pause_s, longest_s = _AGAIN_S
        failures = 0
        while True:
            try:
                return (await self._asker.attempt(node, question)).replies[0].value()
            except RpcError:
                failures = 0
            except NodeFailed:
                failures += 1
                if failures == _FAILURES:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def _ask_any(self, method: str, *params: int) -> Any:
        answer, _ = await self._asker.ask(Question([(method, params)], batch=False))
        return answer.replies[0].value()
