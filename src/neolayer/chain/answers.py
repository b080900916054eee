"""Answers of Neo nodes as types."""

import struct
from typing import Any, Final, Literal

import msgspec

from neolayer.chain.errors import BadAddress, NodeUnavailable
from neolayer.chain.header import hash_of_block
from neolayer.core.types import Hash256


class Version(msgspec.Struct, frozen=True):
    """What a node says of itself and its network."""

    #: Network magic, part of what transactions sign.
    network: int
    user_agent: str
    address_version: int
    ms_per_block: int
    max_transactions_per_block: int
    #: A transaction's ``valid_until_block`` may be at most this far above the height.
    max_valid_until_block_increment: int
    max_traceable_blocks: int
    memory_pool_max_transactions: int
    validators_count: int
    #: Height of activation by the hardfork's name without the prefix ``HF_``.
    hardforks: dict[str, int]

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> "Version":
        protocol = reply["protocol"]
        forks = protocol.get("hardforks") or []
        return cls(
            network=protocol["network"],
            user_agent=reply["useragent"],
            address_version=protocol["addressversion"],
            ms_per_block=protocol["msperblock"],
            max_transactions_per_block=protocol["maxtransactionsperblock"],
            max_valid_until_block_increment=protocol["maxvaliduntilblockincrement"],
            max_traceable_blocks=protocol["maxtraceableblocks"],
            memory_pool_max_transactions=protocol["memorypoolmaxtransactions"],
            validators_count=protocol["validatorscount"],
            hardforks={fork["name"].removeprefix("HF_"): fork["blockheight"] for fork in forks},
        )


class Block(msgspec.Struct, frozen=True):
    """A block as far as following the chain needs it."""

    index: int
    hash: Hash256
    previous: Hash256
    #: Set by the consensus node; Unix time in ms.
    time_ms: int
    #: In the order of execution.
    transactions: tuple[Hash256, ...]


class InvokeResult(msgspec.Struct, frozen=True):
    """What a script would do if it ran on top of the present height."""

    #: ``HALT`` or ``FAULT``.
    state: str
    #: Datoshi.
    gas_consumed: int
    exception: str | None
    #: Items as Neo's JSON: ``{type, value}``.
    stack: list[Any]
    notifications: list[Any]

    @property
    def halted(self) -> bool:
        return self.state == "HALT"


#: When it ran: before the block's transactions, as one of them, after them.
Trigger = Literal["OnPersist", "Application", "PostPersist"]


class ApplicationLog(msgspec.Struct, frozen=True):
    """What a transaction did when its block ran it, or what the block did itself."""

    #: Of the transaction, or of the block.
    hash: Hash256
    #: ``HALT`` or ``FAULT``: then the fees are paid and nothing else happened.
    vmstate: str
    exception: str | None
    #: Datoshi.
    gas_consumed: int
    #: Items as Neo's JSON: ``{type, value}``.
    stack: list[Any]
    #: ``{contract, eventname, state}``. Empty after a FAULT: nodes keep them, but they did not happen.
    notifications: list[Any]
    trigger: Trigger = "Application"

    @property
    def halted(self) -> bool:
        return self.vmstate == "HALT"


SendKind = Literal["accepted", "retry", "funds", "expired", "rejected"]


class SendOutcome(msgspec.Struct, frozen=True):
    """A node's answer to a transaction.

    ``accepted``: pooled now, pooled before (−503) or already in a block (−501).
    ``retry``: its memory pool is full (−502).
    ``funds``: the sender's GAS does not cover the fees of this and its other pooled transactions (−511).
    ``expired``: past ``valid_until_block``, or that is too far ahead (−510).
    ``rejected``: never, as it stands.
    """

    kind: SendKind
    node_code: int | None = None
    message: str = ""
    #: Another attempt, whose answer was lost, may have got it into a node's pool before: then a refusal
    #: does not prove that it will not be included.
    ambiguous: bool = False


SEND_KINDS: Final[dict[int, SendKind]] = {
    **dict.fromkeys(range(-512, -499), "rejected"),
    -32602: "rejected",  # not a transaction
    -501: "accepted",
    -503: "accepted",
    -502: "retry",
    -511: "funds",
    -510: "expired",
}


def block_from_json(block: dict[str, Any]) -> Block:
    """A block of ``getblock`` or of the event ``block_added``.

    Raises:
        NodeUnavailable: it is not the block whose hash it names.
    """
    try:
        genuine = hash_of_block(block) == Hash256.parse(block["hash"])
    except (KeyError, TypeError, ValueError, struct.error, BadAddress) as error:
        raise NodeUnavailable(f"a node's block cannot be read: {type(error).__name__}: {error}") from None
    if not genuine:
        raise NodeUnavailable(f"a node gives block {block['hash']} another content than that of this hash")
    return Block(
        index=block["index"],
        hash=Hash256.parse(block["hash"]),
        previous=Hash256.parse(block["previousblockhash"]),
        time_ms=block["time"],
        transactions=tuple(Hash256.parse(transaction["hash"]) for transaction in block["tx"]),
    )


def invoke_result_from_json(reply: dict[str, Any]) -> InvokeResult:
    """The result of ``invokescript`` or ``invokefunction``."""
    return InvokeResult(
        state=reply["state"],
        gas_consumed=int(reply["gasconsumed"]),
        exception=reply.get("exception"),
        stack=reply["stack"] if isinstance(reply["stack"], list) else [],
        notifications=reply.get("notifications") or [],
    )


def application_log_from_json(container: Hash256, reply: dict[str, Any]) -> ApplicationLog:
    """Of a transaction."""
    return executions_from_json(container, reply)[0]


def executions_from_json(container: Hash256, reply: dict[str, Any]) -> list[ApplicationLog]:
    """Of a transaction, one; of a block, OnPersist and PostPersist."""
    return [
        ApplicationLog(
            hash=container,
            vmstate=execution["vmstate"],
            exception=execution.get("exception"),
            gas_consumed=int(execution["gasconsumed"]),
            stack=execution["stack"] if isinstance(execution["stack"], list) else [],
            notifications=(execution["notifications"] or []) if execution["vmstate"] == "HALT" else [],
            trigger=execution["trigger"],
        )
        for execution in reply["executions"]
    ]
