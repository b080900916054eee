"""Calls become the same behaviour as the node's own reading of them, and mistakes are named by their place."""

import base64
from typing import Any

import pytest

from neolayer.chain.errors import (
    BadAddress,
    BadArgument,
    BadCall,
    BadCallFlags,
    BadContractHash,
    BadMethod,
    ScriptTooLarge,
)
from neolayer.chain.payload import address_of
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS, NATIVE_CONTRACTS, NEO, build_script, transfer
from neolayer.core.types import Hash160

from .conftest import Key, Node, build

PUBLIC_KEY = "03b209fd4f53a7170ea4444e0cb0a6bb6a53c2bd016926989cf85f9b0fba17a70c"
STD_LIB = str(NATIVE_CONTRACTS["StdLib"])


def serialize(argument: dict[str, Any]) -> dict[str, Any]:
    return {"contract": "StdLib", "method": "serialize", "args": [argument]}


ARGUMENTS: list[tuple[str, Any]] = [
    ("Any", None),
    ("Boolean", True),
    ("Boolean", False),
    *(("Integer", str(n)) for n in (0, 1, -1, 16, 17, 127, 128, -128, -129, 255, 32767, 32768, 65536)),
    *(("Integer", str(n)) for n in (2**31, -(2**31), 2**63 - 1, 2**63, -(2**63), 2**127, -(2**127))),
    *(("Integer", str(n)) for n in (2**255 - 1, -(2**255), 10**30, -(10**30))),
    ("Integer", 7),
    ("ByteArray", base64.b64encode(b"").decode()),
    ("ByteArray", base64.b64encode(bytes(range(256))).decode()),
    ("ByteString", base64.b64encode(b"abc").decode()),
    ("String", ""),
    ("String", "grüße 🌍"),
    ("String", "x" * 255),
    ("String", "x" * 256),
    ("String", "x" * 60_000),
    ("Hash160", str(GAS)),
    ("Hash256", "0x" + bytes(range(32)).hex()),
    ("PublicKey", PUBLIC_KEY),
    ("Signature", base64.b64encode(bytes(range(64))).decode()),
    ("Array", []),
    ("Array", [{"type": "Integer", "value": "1"}, {"type": "Array", "value": [{"type": "Any"}]}]),
    ("Map", []),
    (
        "Map",
        [
            {"key": {"type": "String", "value": "b"}, "value": {"type": "Integer", "value": "1"}},
            {"key": {"type": "Integer", "value": "5"}, "value": {"type": "Map", "value": []}},
        ],
    ),
]


@pytest.mark.parametrize(("type_", "value"), ARGUMENTS, ids=lambda part: str(part)[:20])
async def test_argument_reaches_the_contract(rpc: RpcClient, type_: str, value: Any) -> None:
    """Every type arrives as the node's own ``invokefunction`` passes it."""
    argument = {"type": type_, "value": value}
    ours = await rpc.invoke_script(build_script([serialize(argument)]))
    theirs = await rpc.call("invokefunction", [STD_LIB, "serialize", [argument]])
    assert ours.state == theirs["state"] == "HALT"
    assert ours.stack == theirs["stack"]


async def test_several_calls_leave_one_item_each(rpc: RpcClient) -> None:
    """Results come in the order of the calls; one without arguments works too."""
    decimals = {"contract": "GasToken", "method": "decimals"}
    symbol = {"contract": str(NEO), "method": "symbol", "args": [], "call_flags": "ReadOnly"}
    result = await rpc.invoke_script(build_script([decimals, symbol, decimals]))
    assert [item["value"] for item in result.stack] == ["8", base64.b64encode(b"NEO").decode(), "8"]


async def test_call_flags_limit_the_call(rpc: RpcClient) -> None:
    """A call that may not read state cannot read a balance."""
    balance = {
        "contract": "GasToken",
        "method": "balanceOf",
        "args": [{"type": "Hash160", "value": str(NEO)}],
    }
    assert (await rpc.invoke_script(build_script([balance]))).halted
    assert (await rpc.invoke_script(build_script([{**balance, "call_flags": "ReadStates, AllowCall"}]))).halted
    assert not (await rpc.invoke_script(build_script([{**balance, "call_flags": "None"}]))).halted


async def test_transfer_that_returns_false_faults(rpc: RpcClient) -> None:
    """Moving GAS that is not there returns false; the assertion makes that a FAULT in the simulation."""
    poor = Key()
    call = transfer(GAS, poor.account, NEO, 1)
    plain = await rpc.invoke_script(build_script([call], assert_transfers=False), [poor.signer])
    assert plain.halted
    assert plain.stack == [{"type": "Boolean", "value": False}]
    asserted = await rpc.invoke_script(build_script([call]), [poor.signer])
    assert asserted.state == "FAULT"
    assert "ASSERT" in (asserted.exception or "")


async def test_transfer_with_data(node: Node, rich: Key) -> None:
    """The helper makes a call that moves the amount."""
    receiver = Key().account
    script = build_script(
        [transfer(GAS, rich.account, receiver, 5), transfer(GAS, rich.account, receiver, 6, "x")]
    )
    result = await node.rpc.invoke_script(script, [rich.signer])
    assert result.halted
    assert result.stack == []
    assert [note["state"]["value"][2]["value"] for note in result.notifications] == ["5", "6"]


async def test_native_names_are_the_contracts_of_the_node(rpc: RpcClient) -> None:
    """Every native contract of the node can be named, with its hash."""
    natives = await rpc.call("getnativecontracts")
    assert {native["manifest"]["name"]: native["hash"] for native in natives} == {
        name: str(hash_) for name, hash_ in NATIVE_CONTRACTS.items()
    }


def call(**changes: Any) -> dict[str, Any]:
    return {"contract": "GasToken", "method": "m", "args": [], **changes}


def argument(type_: Any, value: Any) -> dict[str, Any]:
    return call(args=[{"type": "Any"}, {"type": type_, "value": value}])


@pytest.mark.parametrize(
    ("wrong", "error", "place"),
    [
        (call(contract="gastoken"), BadContractHash, "calls[0].contract"),
        (call(contract="0x12"), BadContractHash, "calls[0].contract"),
        (call(contract=str(GAS)[2:]), BadContractHash, "calls[0].contract"),
        (call(contract=None), BadContractHash, "calls[0].contract"),
        (call(method=""), BadMethod, "calls[0].method"),
        (call(method="_deploy"), BadMethod, "calls[0].method"),
        (call(method="\ud800"), BadMethod, "calls[0].method"),
        (call(method=5), BadMethod, "calls[0].method"),
        (call(call_flags="Everything"), BadCallFlags, "calls[0].call_flags"),
        (call(call_flags=15), BadCallFlags, "calls[0].call_flags"),
        (call(args="abc"), BadArgument, "calls[0].args"),
        (call(args=["abc"]), BadArgument, "calls[0].args[0]"),
        (call(value=1), BadCall, "calls[0]"),
        ("call", BadCall, "calls[0]"),
        (argument("Integer", 1.5), BadArgument, "calls[0].args[1]"),
        (argument("Integer", "1e5"), BadArgument, "calls[0].args[1]"),
        (argument("Integer", True), BadArgument, "calls[0].args[1]"),
        (argument("Integer", None), BadArgument, "calls[0].args[1]"),
        (argument("Integer", 2**255), BadArgument, "calls[0].args[1]"),
        (argument("Integer", "9" * 5000), BadArgument, "calls[0].args[1]"),
        (argument("Integer", 10**5000), BadArgument, "calls[0].args[1]"),
        (argument("Boolean", "true"), BadArgument, "calls[0].args[1]"),
        (argument("String", 5), BadArgument, "calls[0].args[1]"),
        (argument("String", "\ud800"), BadArgument, "calls[0].args[1]"),
        (argument("ByteArray", "not base64!"), BadArgument, "calls[0].args[1]"),
        (argument("Signature", "AAAA"), BadArgument, "calls[0].args[1]"),
        (argument("Hash160", "NcWfttwW3k83BgiJbvEEgLWS7zSZmWKq3w"), BadAddress, "calls[0].args[1]"),
        (argument("Hash160", "0x123"), BadAddress, "calls[0].args[1]"),
        (argument("Hash160", "é" * 34), BadAddress, "calls[0].args[1]"),
        (argument("Hash160", 5), BadArgument, "calls[0].args[1]"),
        (argument("Hash256", str(GAS)), BadArgument, "calls[0].args[1]"),
        (argument("PublicKey", "04" + PUBLIC_KEY[2:]), BadArgument, "calls[0].args[1]"),
        (argument("PublicKey", "02" + "ff" * 32), BadArgument, "calls[0].args[1]"),
        (argument("Any", 5), BadArgument, "calls[0].args[1]"),
        (argument("Float", 5), BadArgument, "calls[0].args[1]"),
        (argument(None, 5), BadArgument, "calls[0].args[1]"),
        (argument("Array", {"type": "Any"}), BadArgument, "calls[0].args[1]"),
        (argument("Array", [{"type": "Boolean", "value": 1}]), BadArgument, "calls[0].args[1].value[0]"),
        (argument("Map", [{"key": {"type": "Any"}, "value": {"type": "Any"}}]), BadArgument, ".value[0].key"),
        (argument("Map", [{"key": {"type": "String", "value": None}, "value": {}}]), BadArgument, ".value[0]"),
        (argument("Map", [5]), BadArgument, "calls[0].args[1].value[0]"),
        (argument("String", "x" * 65_536), ScriptTooLarge, "calls[0]"),
    ],
    ids=lambda part: None if isinstance(part, dict) else str(part)[:40],
)
def test_mistakes_are_named(wrong: Any, error: type[BadCall], place: str) -> None:
    """Each kind of mistake has its code and its message begins with the place."""
    with pytest.raises(error) as caught:
        build_script([wrong])
    assert type(caught.value) is error
    assert place in caught.value.detail.split(":")[0]
    assert len(caught.value.detail) < 300


def test_no_calls_and_deep_nesting_are_refused() -> None:
    """Nothing to do is a mistake; nesting without end does not exhaust the stack."""
    with pytest.raises(BadCall, match="at least one"):
        build_script([])
    nested: dict[str, Any] = {"type": "Any"}
    for _ in range(5000):
        nested = {"type": "Array", "value": [nested]}
    with pytest.raises(BadArgument, match="nested deeper"):
        build_script([call(args=[nested])])


async def test_largest_script_is_accepted(node: Node, rich: Key) -> None:
    """65,534 bytes pass and reach a block, one more does not."""
    frame = len(build_script([serialize({"type": "String", "value": "x" * 60_000})])) - 60_000
    script = build_script([serialize({"type": "String", "value": "x" * (65_534 - frame)})])
    assert len(script) == 65_534
    transaction = await build(node.rpc, rich, script)
    sent = await node.rpc.send_raw_transaction(rich.sign(transaction, node.devnet.network))
    assert sent.kind == "accepted", sent
    assert (await node.devnet.wait(node.rpc, transaction.hash)).halted
    with pytest.raises(ScriptTooLarge):
        build_script([serialize({"type": "String", "value": "x" * (65_535 - frame)})])


def test_addresses_are_accepted_as_both_forms() -> None:
    """An address and the hash it stands for make the same script."""
    account = Hash160(bytes(range(20)))
    assert build_script([argument("Hash160", str(account))]) == build_script(
        [argument("Hash160", address_of(account))]
    )
