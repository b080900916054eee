"""Many intents of one wallet in one on-chain transaction: its script, what it leaves on the stack, how many go in.

Each intent of a group is one call in a TRY block of its own. A contract that throws then loses its own changes and
notifications, and nobody else's: nodes run a contract that is called out of a TRY block on a layer of its own
(neo-go `interop/contract/call.go`). The layer is the called contract's, not the TRY block's, so what earlier calls
in the same block changed would stay; an intent of several calls, which must have all its effects or none, is
therefore never grouped.

The call of every intent leaves two items: its result, or what was thrown; and whether it succeeded. That is true,
or for a NEP-17 ``transfer`` a copy of its result. An ASSERT would end the others, too.
"""

import base64
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from neolayer.chain.scripts import MAX_SCRIPT_BYTES
from neolayer.core.text import storable
from neolayer.transactions.constants import shared

_PUSHT, _PUSHF, _DUP, _ASSERT, _RET = b"\x08", b"\x09", b"\x4a", b"\x39", b"\x40"
_TRY, _TRY_L, _ENDTRY, _ENDTRY_L = b"\x3b", b"\x3c", b"\x3d", b"\x3e"
#: SYSCALL and the first four bytes of SHA-256 of "System.Runtime.GasLeft".
_GAS_LEFT: Final = b"\x41\x14\x88\xd8\xce"
#: PUSHF and ENDTRY over itself: what follows the call when it threw.
_CAUGHT: Final = _PUSHF + _ENDTRY + b"\x02"
#: Offsets of the short forms are signed bytes.
_SHORT: Final = 127

#: Price of a THROW (512, neo-go `fee/opcode.go`) and of what leads to it and catches it, in units of execution.
THROW_UNITS: Final = 512 + 64
#: Bytes that a group's script adds to a call at most, and has itself.
OVERHEAD_BYTES: Final = 18
END_BYTES: Final = len(_RET)
#: The virtual machine holds 2,048 items; two of each call, and room for its arguments and results.
MAX_CALLS: Final = 500
#: Calls that share a transaction when there is no need to save room: fees are saved anyway, and few are taken
#: along when one of them ends all.
CALLS_AT_EASE: Final = 16
#: Part of the room in blocks that groups take when the queue is long. Blocks are bounded in bytes, too (neo-go
#: `MaxBlockSize`, 262,144), and every on-chain transaction has some 190 beside its script.
PART_OF_ROOM: Final = 1 / 8
#: Blocks until inclusion that are no sign of a crowd.
PROMPT_BLOCKS: Final = 2.0


def isolated(script: bytes) -> bytes:
    """The part of a group's script that carries out one call.

    Args:
        script: of one call, as `build_script` makes it: followed by ASSERT when it is a transfer.
    """
    # A call ends in the number of System.Contract.Call, 52.
    call, flag = (script[:-1], _DUP) if script.endswith(_ASSERT) else (script, _PUSHT)
    body = call + flag
    if len(body) + 5 <= _SHORT:
        end = _ENDTRY + bytes([2 + len(_CAUGHT)])
        return _TRY + bytes([3 + len(body) + len(end), 0]) + body + end + _CAUGHT
    end = _ENDTRY_L + struct.pack("<i", 5 + len(_CAUGHT))
    return _TRY_L + struct.pack("<ii", 9 + len(body) + len(end), 0) + body + end + _CAUGHT


def joined(scripts: Sequence[bytes]) -> bytes:
    """The script of a group. It ends in RET, as the last ENDTRY must have something to go to."""
    head, rest = shared(scripts)
    return head + b"".join(map(isolated, rest)) + _RET


def metered(scripts: Sequence[bytes]) -> bytes:
    """The same for a simulation that measures each call: see `measured`."""
    head, rest = shared(scripts)
    return head + _GAS_LEFT + _GAS_LEFT.join(map(isolated, rest)) + _GAS_LEFT + _RET


def measured(stack: Sequence[Any]) -> list[int]:
    """Datoshi that each call used, from the stack that `metered` leaves: gas left, result, flag, gas left, …"""
    left = [int(item["value"]) for item in stack[::3]]
    return [before - after for before, after in itertools.pairwise(left)]


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What became of one call of a group."""

    #: The call's result, or what was thrown; as Neo's JSON ``{type, value}``. What holds itself or is longer than
    #: 131,070 bytes as JSON is a text that says so (neo-go `state.Execution.MarshalJSON`).
    item: Any
    succeeded: bool
    #: ``call_threw`` or ``transfer_returned_false``, and words for it.
    cause: dict[str, str] | None


def outcomes(stack: Sequence[Any]) -> list[CallOutcome]:
    """Of a group's calls in their order, from the stack that its script left."""
    found = []
    for item, flag in zip(stack[::2], stack[1::2], strict=False):
        if _is_true(flag):
            found.append(CallOutcome(item, succeeded=True, cause=None))
        elif item == flag:
            message = "transfer returned false: nothing was moved"
            found.append(CallOutcome(item, False, {"code": "transfer_returned_false", "message": message}))
        else:
            found.append(CallOutcome(item, False, {"code": "call_threw", "message": _words(item)}))
    return found


def _is_true(item: Any) -> bool:
    """As the virtual machine converts an item, see neo-go `stackitem.Item.TryBool`."""
    if isinstance(item, str):
        return True  # only what is large or holds itself is not shown
    value = item.get("value")
    match item.get("type"):
        case "Boolean":
            return bool(value)
        case "Integer":
            return int(value) != 0
        case "ByteString" | "Buffer":
            return any(base64.b64decode(value))
        case "Any":
            return False
    return True


def _words(thrown: Any) -> str:
    """What a contract threw, for people: usually text."""
    if isinstance(thrown, str):
        return storable(thrown)
    value = thrown.get("value")
    if thrown.get("type") in ("ByteString", "Buffer"):
        return storable(base64.b64decode(value).decode(errors="replace"))
    return storable(str(value))


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A sum divided in proportion to weights, to the last unit: what rounding down leaves goes by the largest
    remainders, the first of equals before the others."""
    whole = sum(weights)
    if whole == 0:
        return shares(total, [1] * len(weights))
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % whole))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


@dataclass(frozen=True, slots=True)
class Traffic:
    """How full queue and network are."""

    #: Transactions that wait to be signed; where there are very many, some number of them.
    queued: int
    #: Ours that were signed lately and are in no block yet.
    in_flight: int
    #: In the node's memory pool, ours included.
    pooled: int
    #: Most that a block takes.
    block_capacity: int
    #: Mean of recent blocks: all, and ours.
    per_block: float
    ours_per_block: float
    #: Blocks that ours waited for their inclusion lately, on average.
    waited_blocks: float

    def with_more(self, sent: int) -> "Traffic":
        """After so many more on-chain transactions of ours."""
        return replace(self, in_flight=self.in_flight + sent, pooled=self.pooled + sent)

    def room(self, blocks: int) -> int:
        """On-chain transactions that the next ``blocks`` blocks take beside those that wait for them."""
        others = max(self.per_block - self.ours_per_block, 0.0)
        slots = max(self.block_capacity - others, self.block_capacity / 10) * blocks
        return max(math.floor(slots) - max(self.in_flight, self.pooled), 0)

    def calls_wanted(self, blocks: int) -> int:
        """Calls that one on-chain transaction should carry, so that the queue fits into the room there is."""
        wanted = self.queued / max(self.room(blocks) * PART_OF_ROOM, 1)
        if self.waited_blocks > PROMPT_BLOCKS:
            wanted *= self.waited_blocks / PROMPT_BLOCKS
        return min(max(math.ceil(wanted), CALLS_AT_EASE), MAX_CALLS)


def packed(sizes: Sequence[int], most: int) -> list[int]:
    """How many calls in a row share each transaction, given the bytes of their scripts.

    Args:
        most: calls in one.
    """
    counts: list[int] = []
    count, used = 0, END_BYTES
    for size in sizes:
        if count and (count == most or used + size + OVERHEAD_BYTES > MAX_SCRIPT_BYTES):
            counts.append(count)
            count, used = 0, END_BYTES
        count, used = count + 1, used + size + OVERHEAD_BYTES
    return [*counts, count] if count else counts
