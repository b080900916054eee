"""The fee computed here is the fee that the node computes, to the datoshi."""

import asyncio
import dataclasses
import itertools

import pytest

from neolayer.chain.fees import FeePolicy, Fees
from neolayer.chain.payload import (
    Attribute,
    Conflicts,
    NotValidBefore,
    Signer,
    UnsignedTransaction,
    Witness,
    WitnessScope,
    account_of,
)
from neolayer.chain.rpc import PoolOptions, RpcClient
from neolayer.chain.scripts import build_script
from neolayer.core.types import Hash160, Hash256
from tests.proxy import NodeProxy

from .conftest import Key, NewNode, Node

KEYS = [Key() for _ in range(20)]


def multisig(needed: int, count: int) -> bytes:
    def push(number: int) -> bytes:
        return bytes([0x10 + number]) if number <= 16 else bytes([0, number])

    keys = sorted((key.public for key in KEYS[:count]), key=lambda public: public[1:])
    body = b"".join(b"\x0c\x21" + key for key in keys)
    return push(needed) + body + push(count) + b"\x41\x9e\xd0\xdc\x3a"


SINGLE = [key.verification for key in KEYS]
SCRIPTS = [
    *itertools.product((1, 200, 252, 253, 300, 65_534), (SINGLE[:1], SINGLE[:2], SINGLE[:3])),
    (100, [multisig(1, 1)]),
    (100, [multisig(4, 7)]),
    (100, [multisig(3, 17), SINGLE[0]]),
    (100, [multisig(15, 20), SINGLE[0], multisig(1, 2)]),
]


async def compare(
    rpc: RpcClient, policy: FeePolicy, length: int, scripts: list[bytes], *attributes: Attribute
) -> None:
    signers = tuple(Signer(account_of(script)) for script in scripts)
    unsigned = UnsignedTransaction(1, 2, 3, (await rpc.block_count()) + 5, signers, b"\x21" * length, attributes)
    offered = unsigned.with_witnesses([Witness(b"", script) for script in scripts])
    assert policy.network_fee(unsigned, scripts) == await rpc.calculate_network_fee(offered)


async def same(fees: Fees, policy: FeePolicy) -> None:
    """Who reads again is told the same by one script."""
    await asyncio.sleep(0.3)  # a block time
    assert dataclasses.replace(await fees.policy(), height=policy.height) == policy


@pytest.mark.parametrize(
    ("length", "scripts"), SCRIPTS, ids=[f"{length}-{[len(s) for s in scripts]}" for length, scripts in SCRIPTS]
)
async def test_network_fee_equals_the_nodes(rpc: RpcClient, length: int, scripts: list[bytes]) -> None:
    """Over the borders of length fields, numbers of signers, and m-of-n accounts."""
    await compare(rpc, await Fees(rpc).policy(), length, scripts)


async def test_network_fee_with_custom_contracts(rpc: RpcClient) -> None:
    """Signers with lists are counted at their size."""
    signer = Signer(
        KEYS[0].account, WitnessScope.CUSTOM_CONTRACTS, tuple(Hash160(bytes([n] * 20)) for n in range(16))
    )
    unsigned = UnsignedTransaction(1, 2, 3, (await rpc.block_count()) + 5, (signer,), b"\x40")
    offered = unsigned.with_witnesses([Witness(b"", SINGLE[0])])
    fee = (await Fees(rpc).policy()).network_fee(unsigned, SINGLE[:1])
    assert fee == await rpc.calculate_network_fee(offered)


async def test_fractional_factor_and_other_prices(new_node: NewNode) -> None:
    """After the committee set a factor of 17.0003 and another price per byte, both still agree."""
    node = await new_node()
    again = Fees(node.rpc)
    await again.policy()

    def policy_call(method: str, value: int) -> dict[str, object]:
        argument = {"type": "Integer", "value": value}
        return {"contract": "PolicyContract", "method": method, "args": [argument]}

    for factor, per_byte in ((170_003, 777), (1, 0), (9_999, 3)):
        script = build_script([policy_call("setExecFeeFactor", factor), policy_call("setFeePerByte", per_byte)])
        transaction = await node.devnet.send(node.rpc, script)
        assert (await node.devnet.wait(node.rpc, transaction)).halted
        policy = await Fees(node.rpc).policy()
        assert (policy.exec_fee_pico_factor, policy.fee_per_byte) == (factor, per_byte)
        await same(again, policy)
        for length, scripts in SCRIPTS[::3] + SCRIPTS[-4:]:
            await compare(node.rpc, policy, length, scripts)


async def test_prices_of_attributes_are_part_of_it(new_node: NewNode) -> None:
    """Each signer pays for each Conflicts; NotValidBefore is paid for once."""
    node = await new_node()
    again = Fees(node.rpc)
    await again.policy()
    named = [Conflicts(Hash256(bytes([n] * 32))) for n in range(3)]
    cases = (SINGLE[:1], SINGLE[:3], [multisig(4, 7), SINGLE[0]])
    for conflicts, not_valid_before in ((0, 0), (12_345, 0), (7, 100_001)):
        script = build_script(
            [
                {
                    "contract": "PolicyContract",
                    "method": "setAttributeFee",
                    "args": [{"type": "Integer", "value": type_}, {"type": "Integer", "value": fee}],
                }
                for type_, fee in ((Conflicts.TYPE, conflicts), (NotValidBefore.TYPE, not_valid_before))
            ]
        )
        assert (await node.devnet.wait(node.rpc, await node.devnet.send(node.rpc, script))).halted
        policy = await Fees(node.rpc).policy()
        await same(again, policy)
        for scripts in cases:
            await compare(node.rpc, policy, 100, scripts, NotValidBefore(1))
            await compare(node.rpc, policy, 100, scripts, *named)
            await compare(node.rpc, policy, 100, scripts, *named, NotValidBefore(1))
        plain = UnsignedTransaction(1, 2, 3, 4, tuple(Signer(key.account) for key in KEYS[:2]), b"\x21")
        priced = dataclasses.replace(plain, attributes=(*named, NotValidBefore(1)))
        grown = len(priced.data) - len(plain.data)
        assert policy.network_fee(priced, SINGLE[:2]) - policy.network_fee(plain, SINGLE[:2]) == (
            grown * policy.fee_per_byte + 2 * 3 * conflicts + not_valid_before
        )


async def test_policy_is_read_once_per_block(rpc: RpcClient) -> None:
    """Callers at one time share one reading, and a later block brings another."""
    fees = Fees(rpc)
    policies = await asyncio.gather(*(fees.policy() for _ in range(50)))
    assert len({id(policy) for policy in policies}) == 1
    await asyncio.sleep(0.5)
    later = await fees.policy()
    assert later.height > policies[0].height
    assert (later.fee_per_byte, later.exec_fee_pico_factor, later.storage_price) == (1000, 300_000, 100_000)


async def test_after_the_first_time_the_policy_is_one_question_and_the_height(node: Node) -> None:
    """The first reading finds out what the contract has methods for."""
    proxy = NodeProxy(node.devnet.rpc_url)
    await proxy.start()
    rpc = RpcClient([proxy.url], options=PoolOptions(select=False))
    fees = Fees(rpc)
    try:
        singly = await fees.policy()
        await asyncio.sleep(0.5)
        proxy.calls.clear()
        together = await fees.policy()
        assert proxy.calls == {"getblockcount": 1, "invokescript": 1}
        assert dataclasses.replace(together, height=singly.height) == singly
    finally:
        await rpc.aclose()
        await proxy.close()


def test_other_scripts_have_no_local_price() -> None:
    """What only the node can price is refused, also near misses of m-of-n."""
    policy = FeePolicy(1, 1000, 300_000, 100_000)
    unsigned = UnsignedTransaction(1, 2, 3, 5, (KEYS[0].signer,), b"\x40")
    for script in (
        b"",
        b"\x11",
        SINGLE[0][:-1],
        multisig(1, 2)[:-6] + multisig(1, 1)[-6:],
        b"\x12" + multisig(1, 1)[1:],
    ):
        with pytest.raises(ValueError, match="neither"):
            policy.network_fee(unsigned, [script])
