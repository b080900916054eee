"""What others pay to be among the next: fees for each byte in recent full blocks.

A node fills a block with the transactions of its pool that pay most for each byte (neo-go `mempool.Item`), so fees
above the price matter only while blocks are full. A tier is a quantile of what such blocks took and never more, so
that those who follow it do not drive each other up.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal

from neolayer.chain.errors import RpcError
from neolayer.chain.rpc import UNKNOWN_HEIGHT, RpcClient

Speed = Literal["economy", "standard", "fast", "urgent"]
#: Of the fees for each byte in recent full blocks. ``economy`` pays the price whatever others do.
QUANTILES: Final[Mapping[Speed, float]] = {"standard": 0.5, "fast": 0.75, "urgent": 0.95}
#: Blocks that are looked at.
WINDOW: Final = 10
#: A block with this share of the transactions or bytes that fit is full.
FULL: Final = 0.9
#: neo-go's default of `MaxBlockSize`; nodes do not tell theirs.
BLOCK_BYTES: Final = 262_144


class FeeMarket:
    """Reads each block once, and only when somebody asks for a tier that needs it."""

    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc
        #: By index: datoshi for each byte of the transactions in full blocks; empty for others.
        self._blocks: dict[int, list[int]] = {}
        self._rates: Mapping[Speed, int] = {}
        self._height = -1
        self._reading: asyncio.Task[None] | None = None

    async def rate(self, speed: Speed, height: int) -> int:
        """Datoshi for each byte that the tier pays at least; 0 while no recent block was full.

        Args:
            height: index of the latest block.

        Raises:
            NodeUnavailable, WrongNetwork, RpcError: as `RpcClient.call`.
        """
        if speed not in QUANTILES:
            return 0
        while self._height < height:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(height))
            # Shared: one caller that gives up does not end the reading for the others.
            await asyncio.shield(self._reading)
        return self._rates.get(speed, 0)

    async def _read(self, height: int) -> None:
        first = max(height - WINDOW + 1, 0)
        missing = [index for index in range(first, height + 1) if index not in self._blocks]
        fits = (await self._rpc.version()).max_transactions_per_block
        replies = await self._rpc.batch([("getblock", [index, 1]) for index in missing])
        for index, reply in zip(missing, replies, strict=True):
            if isinstance(reply, RpcError):
                # The node is behind the one that told the height: without this block then.
                if reply.node_code != UNKNOWN_HEIGHT:
                    raise reply
                continue
            full = len(reply["tx"]) >= FULL * fits or reply["size"] >= FULL * BLOCK_BYTES
            self._blocks[index] = _rates(reply["tx"]) if full else []
        self._blocks = {index: rates for index, rates in self._blocks.items() if index >= first}
        paid = sorted(rate for rates in self._blocks.values() for rate in rates)
        self._rates = {speed: _quantile(paid, share) for speed, share in QUANTILES.items()} if paid else {}
        self._height = height


def _rates(transactions: list[dict[str, Any]]) -> list[int]:
    """As the node orders them: the network fee by the size, rounded down."""
    return [int(transaction["netfee"]) // transaction["size"] for transaction in transactions]


def _quantile(ordered: list[int], share: float) -> int:
    """The smallest of the values that ``share`` of them do not exceed."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
