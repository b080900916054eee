"""Intents, their states and how the API shows them."""

from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from neolayer.chain.market import Speed

#: Notices: there is something to do for workers; the size of their pool was changed.
TOPIC: Final = "transactions"
POOL_TOPIC: Final = "worker_pool"

#: A contract call in Neo's parameter JSON: ``{contract, method, args: [{type, value}], call_flags?}``.
#: Its parts are checked by `chain.scripts`, which says where a mistake is.
type CallJson = dict[str, Any]

State = Literal["queued", "signed", "sent", "confirmed", "faulted", "expired", "rejected", "cancelled"]
#: A transaction in one of these may still become another.
UNFINISHED: Final = ("queued", "signed", "sent")

Grouping = Literal["auto", "never"]
OnExpiry = Literal["end", "rebuild"]


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


#: What a priority is worth in the queue of its tenant; seconds. A transaction is overtaken only by those of a
#: higher priority that came within the difference of both, so that none starves.
HEAD_START_S: Final = {Priority.LOW: -60, Priority.NORMAL: 0, Priority.HIGH: 60, Priority.CRITICAL: 600}


class TransactionRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is asked for.

    Members left at their defaults do not count when an idempotency key is used again, so that new ones do no harm.
    """

    #: Name or id of the wallet that pays and signs; the one named ``default`` if not given.
    wallet: str = "default"
    calls: Annotated[list[CallJson], msgspec.Meta(min_length=1, max_length=100)]
    priority: Literal["low", "normal", "high", "critical"] = "normal"
    #: Once signed, it is included within so many blocks or never.
    valid_for_blocks: Annotated[int, msgspec.Meta(ge=2, le=5760)] = 100
    #: System fee + network fee at most; a GAS decimal.
    max_fee: str | None = None
    #: Magic of the network that is meant; refused on any other.
    network: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    #: Whether it may share an on-chain transaction with others of its wallet.
    group: Grouping = "auto"
    #: Of the transactions with the same key one is sent when the one before is final.
    fifo_key: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    #: Not sent before this time.
    not_before: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    #: In no block below this index.
    not_before_block: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    #: When no block took it up to its validUntilBlock: it ends, or is signed anew and goes on.
    on_expiry: OnExpiry = "end"
    #: Which of the fees that recent full blocks took it pays; no matter while blocks are not full.
    speed: Speed = "standard"


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction as the API shows it. GAS amounts are decimal strings."""

    id: UUID
    wallet: str
    state: str
    #: {code, message} where the state needs a reason.
    cause: dict[str, Any] | None
    calls: list[CallJson]
    priority: str
    valid_for_blocks: int
    max_fee: str | None
    group: str
    fifo_key: str | None
    not_before: datetime | None
    not_before_block: int | None
    on_expiry: str
    #: The execution that sent it.
    execution: UUID | None
    #: Of its latest on-chain transaction.
    txid: str | None
    #: Transactions that this on-chain transaction carries.
    group_size: int | None
    valid_until_block: int | None
    #: Its share of what is burned; of all its on-chain transactions in blocks, and of the latest.
    system_fee: str | None
    #: Its share of what is paid to the validators, likewise.
    network_fee: str | None
    block: int | None
    block_time: datetime | None
    #: From the application log: {vmstate, exception, gas_consumed, stack}.
    result: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    speed: str
    #: Somebody asked to cancel it, and no block has decided.
    cancelling: bool
    #: Number of its latest event.
    event: int


class EventView(msgspec.Struct, frozen=True):
    number: int
    state: str
    cause: dict[str, Any] | None
    at: datetime


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """An on-chain transaction that was signed for a transaction, perhaps for others too."""

    txid: str
    #: ``send``, or what it was signed for later: ``speed_up``, ``cancel``.
    kind: str
    #: A block may take it: ``signed``, ``sent``. Or not: ``included``, ``expired``, ``refused``, ``replaced``.
    state: str
    #: Whether it carries the calls out; otherwise it only takes the place of those that do.
    executes: bool
    #: Hashes of those with which it cannot be in one chain.
    conflicts: list[str]
    #: This transaction's share of its fees; GAS.
    system_fee: str
    network_fee: str
    valid_until_block: int
    block: int | None
    signed_at: datetime


class AttemptList(msgspec.Struct, frozen=True):
    items: list[AttemptView]


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    #: Most that it may cost in all; a GAS decimal.
    max_fee: str | None = None


class SpeedUpRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    speed: Speed = "fast"
    #: Replaces the transaction's own; a GAS decimal.
    max_fee: str | None = None


class EventList(msgspec.Struct, frozen=True):
    items: list[EventView]
