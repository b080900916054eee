"""Network fees computed here, equal to the node's ``calculatenetworkfee``."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from neolayer.chain.errors import ExecutionFaulted, RpcError
from neolayer.chain.payload import Conflicts, NotValidBefore, UnsignedTransaction, var_int
from neolayer.chain.rpc import RpcClient, invoke_result_from_json
from neolayer.chain.scripts import NATIVE_CONTRACTS, build_script

#: Unit of the execution fee factor since hardfork Faun (neo-go `vm.ExecFeeFactorMultiplier`).
PICO_PER_DATOSHI: Final = 10_000
#: Prices in units of the factor: neo-go `fee/opcode.go` and `crypto.ECDSAVerifyPrice`; SYSCALL is free.
_PUSH_DATA: Final = 1 << 3
_PUSH_INT: Final = 1
_CHECK_SIGNATURE: Final = 1 << 15
#: Types of the attributes that we write.
_ATTRIBUTES: Final = (NotValidBefore.TYPE, Conflicts.TYPE)

_POLICY: Final = str(NATIVE_CONTRACTS["PolicyContract"])
#: What is asked of the Policy contract, by names of our own.
_QUESTIONS: Final[dict[str, dict[str, Any]]] = {
    method: {"contract": _POLICY, "method": method, "args": []}
    for method in ("getFeePerByte", "getExecFeeFactor", "getExecPicoFeeFactor", "getStoragePrice")
} | {
    f"getAttributeFee {type_}": {
        "contract": _POLICY,
        "method": "getAttributeFee",
        "args": [{"type": "Integer", "value": str(type_)}],
    }
    for type_ in _ATTRIBUTES
}
_SCRIPT: Final = base64.b64encode(build_script(list(_QUESTIONS.values()))).decode()

_CHECK_SIG: Final = b"\x41" + hashlib.sha256(b"System.Crypto.CheckSig").digest()[:4]
_CHECK_MULTISIG: Final = b"\x41" + hashlib.sha256(b"System.Crypto.CheckMultisig").digest()[:4]


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """What the chain charges, as its Policy contract said at `height`."""

    #: Index of the latest block when the values were read.
    height: int
    #: Datoshi for each byte of a transaction.
    fee_per_byte: int
    #: Price of one unit of execution; 1/10,000 datoshi.
    exec_fee_pico_factor: int
    #: Datoshi for each byte of contract storage.
    storage_price: int
    #: Datoshi for an attribute, by its type; those not named are free.
    attribute_fees: Mapping[int, int] = field(default_factory=dict)

    def execution_fee(self, units: int) -> int:
        """Datoshi for so many units of execution, rounded up."""
        return -(-units * self.exec_fee_pico_factor // PICO_PER_DATOSHI)

    def network_fee(
        self, transaction: UnsignedTransaction, verification_scripts: Sequence[bytes], *, rate: int = 0
    ) -> int:
        """Datoshi for a transaction's size, its attributes and the checking of its witnesses.

        The fee does not depend on the fees already written in the transaction: those have a fixed width.

        Args:
            verification_scripts: one for each signer, single-signature or m-of-n.
            rate: datoshi for each byte to pay at least in all, to be among the first; see `chain.market`.

        Raises:
            ValueError: another kind of script, whose price only the node can tell.
        """
        size = len(transaction.data) + len(var_int(len(verification_scripts)))
        verification = 0
        for script in verification_scripts:
            invocation_bytes, units = _witness_price(script)
            size += len(var_int(invocation_bytes)) + invocation_bytes + len(var_int(len(script))) + len(script)
            # Each witness is rounded up for itself, as `calculatenetworkfee` does.
            verification += self.execution_fee(units)
        return max(size * self.fee_per_byte + self._attributes_fee(transaction) + verification, size * rate)

    def _attributes_fee(self, transaction: UnsignedTransaction) -> int:
        """A Conflicts is paid for by each signer (neo-go `Blockchain.CalculateAttributesFee`)."""
        fee = 0
        for attribute in transaction.attributes:
            times = len(transaction.signers) if isinstance(attribute, Conflicts) else 1
            fee += self.attribute_fees.get(attribute.TYPE, 0) * times
        return fee


def _witness_price(script: bytes) -> tuple[int, int]:
    """Bytes of the invocation script and price of the check in units (neo-go `fee/calculate.go`)."""
    if len(script) == 40 and script.startswith(b"\x0c\x21") and script.endswith(_CHECK_SIG):
        return 66, 2 * _PUSH_DATA + _CHECK_SIGNATURE
    if (parsed := _multisig(script)) is not None:
        needed, keys = parsed
        return 66 * needed, _PUSH_DATA * (needed + keys) + 2 * _PUSH_INT + _CHECK_SIGNATURE * keys
    raise ValueError("neither a single-signature nor a multi-signature script")


def _multisig(script: bytes) -> tuple[int, int] | None:
    """m and n of an m-of-n script: PUSH m, n times PUSHDATA1 of a key, PUSH n, SYSCALL CheckMultisig."""
    body = script.removesuffix(_CHECK_MULTISIG)
    head = _small_int(body)
    if body is script or head is None:
        return None
    needed, rest = head
    keys = 0
    while rest.startswith(b"\x0c\x21") and len(rest) >= 35:
        keys, rest = keys + 1, rest[35:]
    tail = _small_int(rest)
    if tail is None or tail != (keys, b"") or not 1 <= needed <= keys:
        return None
    return needed, keys


def _small_int(script: bytes) -> tuple[int, bytes] | None:
    """The number that the first instruction pushes, and what follows it."""
    if script and 0x11 <= script[0] <= 0x20:  # PUSH1 to PUSH16
        return script[0] - 0x10, script[1:]
    if len(script) > 1 and script[0] == 0:  # PUSHINT8
        return script[1], script[2:]
    return None


class Fees:
    """Reads the policy, once for all callers within one block time."""

    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc
        self._policy: FeePolicy | None = None
        self._fresh_until = 0.0
        self._reading: asyncio.Task[FeePolicy] | None = None
        #: The contract has a method for every question; a later hardfork may bring what is missing.
        self._tells_all = False

    async def policy(self) -> FeePolicy:
        """At most one block time old; `FeePolicy.height` comes with it at no further call.

        Raises:
            NodeUnavailable, WrongNetwork, RpcError: as `RpcClient.call`.
        """
        if self._policy is not None and time.monotonic() < self._fresh_until:
            return self._policy
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        # Shared: one caller that gives up does not end the reading for the others.
        return await asyncio.shield(self._reading)

    async def _read(self) -> FeePolicy:
        asked_at = time.monotonic()
        height, values = await self._told_together() or await self._told_singly()
        try:
            self._policy = FeePolicy(
                height=height,
                fee_per_byte=values["getFeePerByte"],
                # Chains before Faun have no such method, and whole factors only.
                exec_fee_pico_factor=values.get(
                    "getExecPicoFeeFactor", values["getExecFeeFactor"] * PICO_PER_DATOSHI
                ),
                storage_price=values["getStoragePrice"],
                # Chains that do not price attributes have no such method.
                attribute_fees={type_: values.get(f"getAttributeFee {type_}", 0) for type_ in _ATTRIBUTES},
            )
        except KeyError as error:
            raise ExecutionFaulted(f"the Policy contract does not tell {error.args[0]}") from None
        self._tells_all = len(values) == len(_QUESTIONS)
        self._fresh_until = asked_at + (await self._rpc.version()).ms_per_block / 1000
        return self._policy

    async def _told_together(self) -> tuple[int, dict[str, int]] | None:
        """Height and values by one script; None when the contract does not tell them so."""
        if not self._tells_all:
            return None
        count, reply = await self._rpc.batch([("getblockcount", []), ("invokescript", [_SCRIPT])])
        result = invoke_result_from_json(_answer(reply))
        if not result.halted:
            return None
        return _answer(count) - 1, {
            name: int(item["value"]) for name, item in zip(_QUESTIONS, result.stack, strict=True)
        }

    async def _told_singly(self) -> tuple[int, dict[str, int]]:
        """The same by one question each: what the contract has no method for ends in FAULT and is left out."""
        calls = [
            ("invokefunction", [question["contract"], question["method"], question["args"]])
            for question in _QUESTIONS.values()
        ]
        count, *replies = await self._rpc.batch([("getblockcount", []), *calls])
        results = [invoke_result_from_json(_answer(reply)) for reply in replies]
        return _answer(count) - 1, {
            name: int(result.stack[0]["value"])
            for name, result in zip(_QUESTIONS, results, strict=True)
            if result.halted
        }


def _answer(reply: Any) -> Any:
    if isinstance(reply, RpcError):
        raise reply
    return reply
