"""What contracts notify of in a block, in the chain's order."""

import re
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
    """Those of some contracts in a block. Executions that were not heard are asked for in batches.

    Args:
        contracts: ``0x…``

    Raises:
        NodeUnavailable: no node has all of them.
    """
    containers = [block.hash, *block.transactions]
    heard = {container: executions.of(container, block) for container in containers}
    missing = [container for container, found in heard.items() if found is None]
    asked = dict(zip(missing, await rpc.executions(missing), strict=True)) if missing else {}

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


def _mentions(execution: Execution, contracts: Set[bytes]) -> bool:
    """Most of what runs is nobody's: searching its bytes costs less than decoding them."""
    return not contracts.isdisjoint(_HASH.findall(execution.notifications))
