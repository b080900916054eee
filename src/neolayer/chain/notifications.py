"""What contracts notify of in a block, in the chain's order."""

import re
from collections import Counter
from collections.abc import Set
from typing import Any, Final

import msgspec

from neolayer.chain.answers import ApplicationLog, Block, Trigger
from neolayer.chain.executions import Execution, Executions
from neolayer.chain.rpc import RpcClient
from neolayer.core.types import Hash256

_HASH: Final = re.compile(rb"0x[0-9a-f]{40}")


class Notification(msgspec.Struct, frozen=True):
    #: ``0x…``
    contract: str
    #: Its name, at most 32 bytes (neo-go `runtime.MaxEventNameLen`).
    event: str
    #: A stack item as Neo's JSON, ``{type, value}``; at most 1,024 bytes as the virtual machine serialises it
    #: (neo-go `runtime.MaxNotificationSize`).
    state: Any
    #: None in what the block itself runs.
    transaction: Hash256 | None
    trigger: Trigger
    #: Of the block's executions: 0 is OnPersist, then come the transactions, then PostPersist.
    execution: int
    #: Of the execution's notifications.
    index: int


async def notifications_of(
    rpc: RpcClient, block: Block, executions: Executions, contracts: Set[str]
) -> list[Notification]:
    """Those of some contracts in a block. When an execution was not heard the block's are asked for.

    Args:
        contracts: ``0x…``

    Raises:
        NodeUnavailable: no node has all of them.
    """
    containers = [block.hash, *block.transactions]
    heard = {container: executions.of(container, block) for container in containers}
    asked: dict[Hash256, list[ApplicationLog]] = {}
    if any(found is None for found in heard.values()):
        told = await rpc.block_notifications(block.hash)
        if told is not None:
            return _of_block(block, told, contracts)
        missing = [container for container, found in heard.items() if found is None]
        asked = dict(zip(missing, await rpc.executions(missing), strict=True))

    sought = {contract.encode() for contract in contracts}

    def logs(container: Hash256) -> list[ApplicationLog | None]:
        found = heard[container]
        if found is None:
            return list(asked[container])
        return [one.log(container) if _mentions(one, sought) else None for one in found]

    before, after = logs(block.hash)
    ran = [before, *(log for transaction in block.transactions for log in logs(transaction)), after]
    return [
        Notification(
            contract=told["contract"],
            event=told["eventname"],
            state=told["state"],
            transaction=log.hash if log.trigger == "Application" else None,
            trigger=log.trigger,
            execution=execution,
            index=index,
        )
        for execution, log in enumerate(ran)
        if log is not None
        for index, told in enumerate(log.notifications)
        if told["contract"] in contracts
    ]


def _of_block(block: Block, told: dict[str, list[dict[str, Any]]], contracts: Set[str]) -> list[Notification]:
    places = {str(transaction): place for place, transaction in enumerate(block.transactions, start=1)}
    triggers: tuple[tuple[str, Trigger], ...] = (
        ("onpersist", "OnPersist"),
        ("application", "Application"),
        ("postpersist", "PostPersist"),
    )
    found = []
    for part, trigger in triggers:
        counted = Counter[str]()
        for one in told[part]:
            container = one["container"]
            index, counted[container] = counted[container], counted[container] + 1
            if one["contract"] not in contracts:
                continue
            execution = {"OnPersist": 0, "PostPersist": len(places) + 1}.get(trigger)
            found.append(
                Notification(
                    contract=one["contract"],
                    event=one["eventname"],
                    state=one["state"],
                    transaction=Hash256.parse(container) if trigger == "Application" else None,
                    trigger=trigger,
                    execution=places[container] if execution is None else execution,
                    index=index,
                )
            )
    return found


def _mentions(execution: Execution, contracts: Set[bytes]) -> bool:
    """Most of what runs is nobody's: searching its bytes costs less than decoding them."""
    return not contracts.isdisjoint(_HASH.findall(execution.notifications))
