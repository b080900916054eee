"""Intents, their states and how the API shows them."""

from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

#: A contract call in Neo's parameter JSON: ``{contract, method, args: [{type, value}], call_flags?}``.
#: Its parts are checked by `chain.scripts`, which says where a mistake is.
type CallJson = dict[str, Any]

State = Literal["queued", "signed", "sent", "confirmed", "faulted", "expired", "rejected"]


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


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
    #: The execution that sent it.
    execution: UUID | None
    txid: str | None
    valid_until_block: int | None
    #: Burned.
    system_fee: str | None
    #: Paid to the validators.
    network_fee: str | None
    block: int | None
    block_time: datetime | None
    #: From the application log: {vmstate, exception, gas_consumed, stack}.
    result: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime


class EventView(msgspec.Struct, frozen=True):
    number: int
    state: str
    cause: dict[str, Any] | None
    at: datetime


class EventList(msgspec.Struct, frozen=True):
    items: list[EventView]
