"""What a chain holds, counted past the service: plain JSON-RPC over all blocks."""

import base64
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from neolayer.chain.payload import address_of
from neolayer.core.types import Hash160

GAS: Final = "0xd2a4cff31913016155e38e474a2c06d08be276cf"
#: Calls in one HTTP request, neo-go's limit.
MAX_BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class Transfer:
    """A GAS transfer that happened; datoshi."""

    block: int
    txid: str
    sender: str | None
    receiver: str | None
    amount: int


async def gas_transfers(url: str, first_block: int = 0) -> list[Transfer]:
    """Of transactions that ended in HALT, in all blocks from ``first_block`` on, in their order."""
    found = []
    async with aiohttp.ClientSession() as session:
        (count,) = await _batch(session, url, [("getblockcount", [])])
        for start in range(first_block, count, MAX_BATCH):
            indexes = range(start, min(start + MAX_BATCH, count))
            for block in await _batch(session, url, [("getblock", [index, 1]) for index in indexes]):
                hashes = [transaction["hash"] for transaction in block["tx"]]
                for log in await _batch(session, url, [("getapplicationlog", [hash_]) for hash_ in hashes]):
                    found += _transfers(block["index"], log)
    return found


async def _batch(session: aiohttp.ClientSession, url: str, calls: list[tuple[str, list[Any]]]) -> list[Any]:
    results = []
    for start in range(0, len(calls), MAX_BATCH):
        request = [
            {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
            for index, (method, params) in enumerate(calls[start : start + MAX_BATCH])
        ]
        async with session.post(url, json=request) as response:
            answers = await response.json(content_type=None)
        results += [answer["result"] for answer in sorted(answers, key=lambda answer: int(answer["id"]))]
    return results


def _transfers(block: int, log: dict[str, Any]) -> list[Transfer]:
    (execution,) = log["executions"]
    if execution["vmstate"] != "HALT":
        return []
    found = []
    for note in execution["notifications"]:
        if note["contract"] == GAS and note["eventname"] == "Transfer":
            sender, receiver, amount = note["state"]["value"]
            found.append(Transfer(block, log["txid"], _address(sender), _address(receiver), int(amount["value"])))
    return found


def _address(item: dict[str, Any]) -> str | None:
    """Null when GAS is made or burned."""
    value = item.get("value")
    return None if value is None else address_of(Hash160(base64.b64decode(value)))
