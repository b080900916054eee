"""Contract calls in Neo's parameter JSON become script bytes for the virtual machine."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from neo3.vm import OpCode, ScriptBuilder, Syscalls

from neolayer.chain.errors import (
    BadAddress,
    BadArgument,
    BadCall,
    BadCallFlags,
    BadContractHash,
    BadMethod,
    ScriptTooLarge,
)
from neolayer.chain.payload import parse_account
from neolayer.core.types import Hash160, Hash256

#: One less than neo-go's `transaction.MaxScriptLength`. neo-go takes 65,535 bytes under the right
#: hash, but writes that one length in five bytes instead of three (`io.PutVarUint`): what it then stores and
#: gives out has another hash and a higher fee.
MAX_SCRIPT_BYTES: Final = 65_534
#: How deep Arrays and Maps may be nested; the virtual machine would take more, nobody needs it.
MAX_DEPTH: Final = 16

#: Native contracts have the same hash on every network (neo-go `core/native/nativehashes`).
NATIVE_CONTRACTS: Final[Mapping[str, Hash160]] = {
    "ContractManagement": Hash160.parse("0xfffdc93764dbaddd97c48f252a53ea4643faa3fd"),
    "StdLib": Hash160.parse("0xacce6fd80d44e1796aa0c2c625e9e4e0ce39efc0"),
    "CryptoLib": Hash160.parse("0x726cb6e0cd8628a1350a611384688911ab75f51b"),
    "LedgerContract": Hash160.parse("0xda65b600f7124ce6c79950c1772a36403104f2be"),
    "NeoToken": Hash160.parse("0xef4073a0f2b305a38ec4050e4d3d28bc40ea63f5"),
    "GasToken": Hash160.parse("0xd2a4cff31913016155e38e474a2c06d08be276cf"),
    "PolicyContract": Hash160.parse("0xcc5e4edd9f5f8dba8bb65734541df7a1c081c67b"),
    "RoleManagement": Hash160.parse("0x49cf4e5378ffcd4dec034fd98a174c5491e395e2"),
    "OracleContract": Hash160.parse("0xfe924b7cfe89ddd271abaf7210a80a7e11178758"),
    "Notary": Hash160.parse("0xc1e14f19c3e60d0b9244d06dd7ba9b113135ec3b"),
    "Treasury": Hash160.parse("0x156326f25b1b5d839a4d326aeaa75383c9563ac1"),
}
GAS: Final = NATIVE_CONTRACTS["GasToken"]
NEO: Final = NATIVE_CONTRACTS["NeoToken"]

#: neo-go `smartcontract/callflag`.
CALL_FLAGS: Final[Mapping[str, int]] = {
    "None": 0,
    "ReadStates": 1,
    "WriteStates": 2,
    "AllowCall": 4,
    "AllowNotify": 8,
    "States": 3,
    "ReadOnly": 5,
    "All": 15,
}

_METHOD: Final = re.compile(r"[^\x00-\x20\x7f\ud800-\udfff]{1,128}")
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,77})")

_NULLABLE: Final = frozenset(
    {"Any", "Hash160", "Hash256", "PublicKey", "ByteArray", "ByteString", "String", "Array", "Map"}
)

Call = Mapping[str, Any]


def transfer(token: Hash160, sender: Hash160, to: Hash160, amount: int, data: str | None = None) -> Call:
    """The call of a NEP-17 transfer.

    Args:
        amount: in the token's smallest unit: datoshi for GAS, whole NEO for NEO.
        data: handed to the receiver's ``onNEP17Payment`` when it is a contract.
    """
    argument = {"type": "Any", "value": None} if data is None else {"type": "String", "value": data}
    return {
        "contract": str(token),
        "method": "transfer",
        "args": [
            {"type": "Hash160", "value": str(sender)},
            {"type": "Hash160", "value": str(to)},
            {"type": "Integer", "value": str(amount)},
            argument,
        ],
    }


def build_script(calls: Sequence[Call], *, assert_transfers: bool = True) -> bytes:
    """One script that makes the calls in order; a failure of any reverts all.

    A call is ``{contract, method, args: [{type, value}], call_flags?}``. ``contract`` is ``0x…`` or the name
    of a native contract; ``call_flags`` a name of `CALL_FLAGS`, or several with commas (default ``All``).
    Each call leaves one item on the stack, ``null`` for a method that returns nothing.

    Args:
        assert_transfers: NEP-17's ``transfer`` says by returning false that it moved nothing. With this, a
            call of a method ``transfer`` with four arguments is followed by ASSERT: false makes the whole
            transaction FAULT, so that the simulation shows it before anything is paid. ASSERT takes the
            result off the stack. (NEP-11's ``transfer`` of three arguments and reads are left alone.)

    Raises:
        BadCall: or one of its subclasses, naming the place as in ``calls[0].args[1]``.
    """
    if not calls:
        raise BadCall("calls: expected at least one call")
    builder = _Builder()
    for index, call in enumerate(calls):
        _push_call(builder, call, f"calls[{index}]", assert_transfers)
        if len(builder.data) > MAX_SCRIPT_BYTES:
            raise ScriptTooLarge(
                f"calls[{index}]: the script is {len(builder.data)} bytes long up to here; "
                f"a transaction carries at most {MAX_SCRIPT_BYTES}"
            )
    return bytes(builder.data)


class _Builder(ScriptBuilder):
    """neo-mamba's builder with types."""

    data: bytearray

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def push(self, value: bytes | str | bool | int | None) -> None:
        self.emit_push(value)


def _push_call(builder: _Builder, call: Call, path: str, assert_transfers: bool) -> None:
    if not isinstance(call, Mapping):
        raise BadCall(f"{path}: expected an object with contract, method and args")
    if unknown := call.keys() - {"contract", "method", "args", "call_flags"}:
        raise BadCall(f"{path}: no such member: {', '.join(sorted(map(str, unknown)))}")
    contract = parse_contract(call.get("contract"), f"{path}.contract")
    method = call.get("method")
    if not isinstance(method, str) or not _METHOD.fullmatch(method) or method.startswith("_"):
        # System.Contract.Call refuses names with '_' in front (neo-go `interop/contract/call.go`).
        raise BadMethod(f"{path}.method: expected a method's name not starting with '_', got {method!r}")
    args = call.get("args", [])
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        raise BadArgument(f"{path}.args: expected a list of {{type, value}}")
    flags = parse_call_flags(call.get("call_flags", "All"), f"{path}.call_flags")

    for index in reversed(range(len(args))):
        _push_argument(builder, args[index], f"{path}.args[{index}]", 0)
    if args:
        builder.push(len(args))
        builder.emit(OpCode.PACK)
    else:
        builder.emit(OpCode.NEWARRAY0)
    builder.push(flags)
    builder.push(method)
    builder.push(contract.data)
    builder.emit_syscall(Syscalls.SYSTEM_CONTRACT_CALL)
    if assert_transfers and method == "transfer" and len(args) == 4:
        builder.emit(OpCode.ASSERT)


def parse_contract(value: Any, path: str = "contract") -> Hash160:
    """A contract from ``0x…`` or the exact name of a native contract.

    Raises:
        BadContractHash: anything else.
    """
    if isinstance(value, str):
        if native := NATIVE_CONTRACTS.get(value):
            return native
        if value.startswith("0x"):
            try:
                return Hash160.parse(value)
            except ValueError:
                pass
    raise BadContractHash(
        f"{path}: expected 0x and 40 hex digits or the name of a native contract like GasToken, got {value!r}"
    )


def parse_call_flags(value: Any, path: str = "call_flags") -> int:
    """
    Raises:
        BadCallFlags: not one or more names of `CALL_FLAGS` with commas between them.
    """
    flags = 0
    for name in value.split(",") if isinstance(value, str) else [value]:
        try:
            flags |= CALL_FLAGS[name.strip()]
        except (KeyError, AttributeError):
            raise BadCallFlags(f"{path}: expected some of {', '.join(CALL_FLAGS)}, got {value!r}") from None
    return flags


def _push_argument(builder: _Builder, argument: Any, path: str, depth: int) -> None:
    """Neo's parameter JSON, see neo-go `docs/rpc.md` and `smartcontract/parameter.go`."""
    if not isinstance(argument, Mapping) or not isinstance(argument.get("type"), str):
        raise BadArgument(f"{path}: expected an object with type and value")
    if unknown := argument.keys() - {"type", "value"}:
        raise BadArgument(f"{path}: no such member: {', '.join(sorted(map(str, unknown)))}")
    if depth > MAX_DEPTH:
        raise BadArgument(f"{path}: nested deeper than {MAX_DEPTH}")
    type_, value = argument["type"], argument.get("value")
    if value is None and type_ in _NULLABLE:
        # Contracts take null for these too: NEP-17 mints from a null sender.
        builder.push(None)
        return
    match type_:
        case "Boolean" if isinstance(value, bool):
            builder.push(value)
        case "Integer":
            builder.push(_integer(value, path))
        case "String" if isinstance(value, str):
            builder.push(_utf8(value, path))
        case "ByteArray" | "ByteString":
            builder.push(_base64(value, path))
        case "Signature":
            signature = _base64(value, path)
            if len(signature) != 64:
                raise BadArgument(f"{path}: a Signature has 64 bytes, not {len(signature)}")
            builder.push(signature)
        case "Hash160" if isinstance(value, str):
            try:
                builder.push(parse_account(value).data)
            except BadAddress as error:
                raise BadAddress(f"{path}: {error.detail}") from None
        case "Hash256" if isinstance(value, str):
            try:
                builder.push(Hash256.parse(value).data)
            except ValueError:
                raise BadArgument(f"{path}: expected 0x and 64 hex digits, got {value!r}") from None
        case "PublicKey" if isinstance(value, str):
            builder.push(_public_key(value, path))
        case "Array" if isinstance(value, Sequence) and not isinstance(value, str):
            for index in reversed(range(len(value))):
                _push_argument(builder, value[index], f"{path}.value[{index}]", depth + 1)
            builder.push(len(value))
            builder.emit(OpCode.PACK)
        case "Map" if isinstance(value, Sequence) and not isinstance(value, str):
            _push_map(builder, value, path, depth)
        case "Any":
            raise BadArgument(f"{path}: an Any is null; name the type of any other value")
        case "Boolean" | "String" | "Hash160" | "Hash256" | "PublicKey" | "Array" | "Map":
            raise BadArgument(f"{path}: {value!r:.80} is not a value of type {type_}")
        case _:
            raise BadArgument(f"{path}: no such type: {type_!r:.80}")


def _push_map(builder: _Builder, entries: Sequence[Any], path: str, depth: int) -> None:
    for index in reversed(range(len(entries))):
        entry, here = entries[index], f"{path}.value[{index}]"
        if not isinstance(entry, Mapping) or entry.keys() != {"key", "value"}:
            raise BadArgument(f"{here}: expected an object with key and value")
        key = entry["key"]
        if isinstance(key, Mapping) and key.get("type") in ("Array", "Map", "Any"):
            raise BadArgument(f"{here}.key: a key is a number, a truth value or bytes")
        _push_argument(builder, entry["value"], f"{here}.value", depth + 1)
        _push_argument(builder, key, f"{here}.key", depth + 1)
    builder.push(len(entries))
    builder.emit(OpCode.PACKMAP)


def _integer(value: Any, path: str) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadArgument(f"{path}: expected a whole number or its decimal digits in a string, got {value!r:.80}")
    if not -(2**255) <= value < 2**255:
        raise BadArgument(f"{path}: an Integer has 256 bits, this one {value.bit_length() + 1}")
    return value


def _base64(value: Any, path: str) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise BadArgument(f"{path}: expected base64, got {value!r:.80}")


def _utf8(value: str, path: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadArgument(f"{path}: the string holds half a surrogate pair") from None


def _public_key(value: str, path: str) -> bytes:
    try:
        key = bytes.fromhex(value)
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
    except ValueError:
        key = b""
    if len(key) != 33:
        raise BadArgument(
            f"{path}: expected a compressed secp256r1 public key of 66 hex digits, got {value!r:.80}"
        )
    return key
