"""Calls against the manifests of deployed contracts, kept and replaced."""

import base64
from typing import Any

import pytest

from neolayer.chain.contracts import Contracts
from neolayer.chain.errors import BadArgument, BadCall, BadCallFlags, UnknownContract, UnknownMethod
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import NATIVE_CONTRACTS, build_script
from neolayer.core.types import Hash160

from .conftest import Key, Node
from .deploy import MANAGEMENT, compiled, deploy, method, update

KEY = Key()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


VALUES: dict[str, Any] = {
    "Boolean": True,
    "Integer": "7",
    "String": "text",
    "ByteArray": b64(b"bytes"),
    "ByteString": b64(b"bytes"),
    "Hash160": str(KEY.account),
    "Hash256": "0x" + "ab" * 32,
    "PublicKey": KEY.public.hex(),
    "Signature": b64(bytes(64)),
    "Array": [],
    "Map": [],
    "Any": None,
}
BYTES = {"ByteArray", "ByteString"}
#: What is taken for each type of a manifest, by value; `ByteString` of five bytes fits no type of a fixed length.
TAKEN = {
    "Any": set(VALUES),
    "Boolean": {"Boolean"},
    "Integer": {"Integer"},
    "String": {"String", "Any", *BYTES},
    "ByteArray": {"String", "Hash160", "Hash256", "PublicKey", "Signature", "Any", *BYTES},
    "Hash160": {"Hash160", "Any"},
    "Hash256": {"Hash256", "Any"},
    "PublicKey": {"PublicKey", "Any"},
    "Signature": {"Signature"},
    "Array": {"Array", "Any"},
    "Map": {"Map", "Any"},
    "InteropInterface": {"Any"},
}


def call(contract: Hash160 | str, name: str, *args: Any, **more: Any) -> dict[str, Any]:
    return {"contract": str(contract), "method": name, "args": list(args), **more}


class Counting(RpcClient):
    """Counts what is asked for."""

    asked = 0

    async def batch(self, calls: Any) -> list[Any]:
        self.asked += len(calls)
        return await super().batch(calls)


@pytest.fixture
async def counting(node: Node) -> Any:
    rpc = Counting([node.devnet.rpc_url])
    yield rpc
    await rpc.aclose()


@pytest.fixture(scope="module")
async def typed(node: Node) -> Hash160:
    """One method for each type, named after it."""
    return await deploy(node, "typed", *(method(f"of{type_}", type_) for type_ in TAKEN))


@pytest.mark.parametrize("expected", TAKEN)
@pytest.mark.parametrize("given", VALUES)
async def test_arguments_fit_the_types_of_the_manifest(
    rpc: RpcClient, typed: Hash160, expected: str, given: str
) -> None:
    asked = call(typed, f"of{expected}", {"type": given, "value": VALUES[given]})
    build_script([asked])
    if given in TAKEN[expected]:
        await Contracts(rpc).check([asked])
    else:
        with pytest.raises(BadArgument, match=rf"calls\[0\]\.args\[0\]: 'p0' of typed\.of{expected} "):
            await Contracts(rpc).check([asked])


@pytest.mark.parametrize(
    ("expected", "data", "fits"),
    [
        ("Hash160", bytes(20), True),
        ("Hash160", bytes(21), False),
        ("Hash256", bytes(32), True),
        ("Hash256", bytes(20), False),
        ("PublicKey", KEY.public, True),
        ("Signature", bytes(64), True),
        ("Signature", bytes(63), False),
        ("String", "grün".encode(), True),
        ("String", b"\xff", False),
        ("ByteArray", b"\xff", True),
    ],
)
async def test_plain_bytes_fit_by_their_length(
    rpc: RpcClient, typed: Hash160, expected: str, data: bytes, fits: bool
) -> None:
    asked = call(typed, f"of{expected}", {"type": "ByteArray", "value": b64(data)})
    if fits:
        await Contracts(rpc).check([asked])
    else:
        with pytest.raises(BadArgument):
            await Contracts(rpc).check([asked])


INTEGER = {"type": "Integer", "value": 1}
ACCOUNT = {"type": "Hash160", "value": str(KEY.account)}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (call("0x" + "11" * 20, "symbol"), UnknownContract, r"calls\[1\]\.contract: there is no contract 0x1111"),
        (call("GasToken", "noSuchMethod"), UnknownMethod, r"calls\[1\]\.method: GasToken .* no method"),
        (call("GasToken", "transfer", ACCOUNT), UnknownMethod, r"calls\[1\]\.args: .* takes 4 arguments, not 1"),
        (call("GasToken", "balanceOf", INTEGER), BadArgument, r"calls\[1\]\.args\[0\]: 'account' of .* Integer"),
        (
            call("GasToken", "transfer", ACCOUNT, ACCOUNT, INTEGER, INTEGER, call_flags="ReadOnly"),
            BadCallFlags,
            r"calls\[1\]\.call_flags: GasToken\.transfer is not safe",
        ),
    ],
)
async def test_a_refusal_names_the_place(
    rpc: RpcClient, asked: dict[str, Any], error: type[BadCall], words: str
) -> None:
    good = call("NeoToken", "symbol", call_flags="None")
    with pytest.raises(error, match=words):
        await Contracts(rpc).check([good, asked])


async def test_a_name_may_stand_for_several_methods(node: Node, rpc: RpcClient) -> None:
    contract = await deploy(node, "several", method("put", "Integer"), method("put", "Integer", "String"))
    contracts = Contracts(rpc)
    await contracts.check([call(contract, "put", INTEGER)])
    await contracts.check([call(contract, "put", INTEGER, {"type": "String", "value": "x"})])
    with pytest.raises(UnknownMethod, match="takes 1 or 2 arguments, not 0"):
        await contracts.check([call(contract, "put")])


async def test_kept_manifests_cost_nothing_and_a_refusal_is_never_given_from_one(
    node: Node, counting: Counting
) -> None:
    contract = await deploy(node, "changing", method("old", "Integer"))
    contracts = Contracts(counting)
    old, new = call(contract, "old", INTEGER), call(contract, "new", ACCOUNT)
    for _ in range(5):
        await contracts.check([old, old, call("GasToken", "symbol")])
    assert counting.asked == 2
    with pytest.raises(UnknownMethod):
        await contracts.check([new])
    await update(node, contract, "changing", method("new", "Hash160"))
    await contracts.check([new])
    assert counting.asked == 4
    with pytest.raises(UnknownMethod):
        await contracts.check([old])


async def test_a_fault_is_explained_by_the_manifest_of_now(node: Node, counting: Counting) -> None:
    contract = await deploy(node, "explained", method("gone", "Integer"))
    contracts = Contracts(counting)
    await contracts.check([call(contract, "gone", INTEGER)])
    await update(node, contract, "explained", method("other", "Integer"))
    await contracts.check([call(contract, "gone", INTEGER)])
    with pytest.raises(UnknownMethod):
        await contracts.check([call(contract, "gone", INTEGER)], anew=True)


async def test_what_an_earlier_call_deploys_or_updates_is_left_to_the_simulation(
    node: Node, rpc: RpcClient
) -> None:
    unborn = call("0x" + "22" * 20, "anything")
    await Contracts(rpc).check([call(MANAGEMENT, "deploy", *compiled("unborn")), unborn])
    with pytest.raises(UnknownContract):
        await Contracts(rpc).check([unborn, call(MANAGEMENT, "deploy", *compiled("unborn"))])
    contract = await deploy(node, "growing")
    later = call(contract, "later", INTEGER)
    await Contracts(rpc).check([call(contract, "update", *compiled("growing", method("later", "Integer"))), later])


async def test_so_many_manifests_are_kept_and_no_more(counting: Counting) -> None:
    size = 60
    contracts = Contracts(counting, kept=size)
    for _ in range(2):
        for name in NATIVE_CONTRACTS:
            with pytest.raises(UnknownMethod):
                await contracts.check([call(name, "none")])
            assert contracts.size <= size
    assert counting.asked > len(NATIVE_CONTRACTS)  # more than fit were asked for again
