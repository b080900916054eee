"""Conflicts and NotValidBefore: our bytes are the node's, and the node treats them as we rely on.

Cancelling and replacing rest on each of these facts. Where the memory pool matters, blocks come once a second
and a test begins right after one.
"""

import base64
from collections.abc import AsyncIterator

import pytest

from neolayer.chain.payload import Attribute, Conflicts, NotValidBefore, Signer, UnsignedTransaction, Witness
from neolayer.chain.rpc import SendOutcome
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.core.types import Hash256
from neolayer_enclave.sign import BadTransaction, signers

from .conftest import Key, Node, build

SCRIPT = b"\x11"  # PUSH1
#: More than any of these transactions needs, so that fees can be chosen freely; datoshi.
PLENTY = 2_000_000


@pytest.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    node = Node(tmp_path_factory.mktemp("slow"), block_ms=1000)
    try:
        await node.start()
        yield node
    finally:
        await node.close()


@pytest.fixture(scope="module")
async def payers(slow: Node) -> tuple[Key, Key]:
    keys = Key(), Key()
    owner = slow.devnet.owner
    funding = await slow.devnet.send(
        slow.rpc, build_script([transfer(GAS, owner, key.account, 50 * 10**8) for key in keys])
    )
    assert (await slow.devnet.wait(slow.rpc, funding)).halted
    return keys


async def send(node: Node, key: Key, transaction: UnsignedTransaction) -> SendOutcome:
    return await node.rpc.send_raw_transaction(key.sign(transaction, node.devnet.network))


async def pool(node: Node) -> set[Hash256]:
    return {Hash256.parse(text) for text in await node.rpc.call("getrawmempool")}


async def test_the_node_writes_attributes_as_we_do(node: Node, rich: Key) -> None:
    """What the node decodes, hashes, includes and serializes anew are the same bytes and the same hash."""
    height = await node.rpc.block_count() - 1
    attributes = (
        NotValidBefore(height),
        Conflicts(Hash256(bytes(range(32)))),
        Conflicts(Hash256(b"\xff" * 32)),
    )
    transaction = await build(node.rpc, rich, SCRIPT, attributes=attributes)
    raw = rich.sign(transaction, node.devnet.network)
    assert (await node.rpc.send_raw_transaction(raw)) == SendOutcome("accepted")
    assert (await node.devnet.wait(node.rpc, transaction.hash)).halted
    assert base64.b64decode(await node.rpc.call("getrawtransaction", [str(transaction.hash), 0])) == raw
    shown = await node.rpc.call("getrawtransaction", [str(transaction.hash), 1])
    assert shown["hash"] == str(transaction.hash)
    assert shown["attributes"] == [
        {"type": "NotValidBefore", "height": height},
        *({"type": "Conflicts", "hash": str(named.hash)} for named in attributes[1:]),
    ]
    assert signers(transaction.data) == [rich.account.data]


@pytest.mark.parametrize(
    ("count", "attributes", "understood"),
    [
        (1, tuple(Conflicts(Hash256(bytes([n] * 32))) for n in range(15)), True),
        (1, tuple(Conflicts(Hash256(bytes([n] * 32))) for n in range(16)), False),
        (6, tuple(Conflicts(Hash256(bytes([n] * 32))) for n in range(10)), True),
        (6, tuple(Conflicts(Hash256(bytes([n] * 32))) for n in range(11)), False),
        (16, (), True),
        (16, (NotValidBefore(1),), False),
        (1, (NotValidBefore(1), Conflicts(Hash256(bytes(32)))), True),
        (1, (NotValidBefore(1), NotValidBefore(1)), False),
        (1, (NotValidBefore(1), Conflicts(Hash256(bytes(32))), NotValidBefore(2)), False),
    ],
)
async def test_enclave_and_node_agree_on_how_many_attributes_there_may_be(
    node: Node, count: int, attributes: tuple[Attribute, ...], understood: bool
) -> None:
    """−32602 is the node's word for bytes that are no transaction."""
    keys = [Key() for _ in range(count)]
    transaction = UnsignedTransaction(1, 1, 1, 5, tuple(Signer(key.account) for key in keys), SCRIPT, attributes)
    raw = transaction.with_witnesses([Witness(b"", key.verification) for key in keys])
    assert ((await node.rpc.send_raw_transaction(raw)).node_code != -32602) == understood
    if understood:
        assert len(signers(transaction.data)) == count
    else:
        with pytest.raises(BadTransaction):
            signers(transaction.data)


async def test_not_valid_before_is_refused_until_its_height(node: Node, rich: Key) -> None:
    height = await node.rpc.block_count() + 3
    transaction = await build(node.rpc, rich, SCRIPT, attributes=(NotValidBefore(height),))
    assert (await send(node, rich, transaction)).node_code == -507
    await node.reach(height - 1)
    assert (await send(node, rich, transaction)).node_code == -507
    await node.reach(height)
    assert (await send(node, rich, transaction)).kind == "accepted"
    await node.devnet.wait(node.rpc, transaction.hash)
    included = await node.rpc.transaction_height(transaction.hash)
    assert included is not None
    assert included > height


async def test_a_replacement_pays_more_than_the_sum_of_what_it_names(slow: Node, payers: tuple[Key, Key]) -> None:
    """One datoshi above the sum displaces both from the pool, the sum itself does not."""
    payer = payers[0]
    await slow.next_block()
    victims = [await build(slow.rpc, payer, SCRIPT, system_fee=100_000, network_fee=PLENTY + n) for n in range(2)]
    for victim in victims:
        assert (await send(slow, payer, victim)).kind == "accepted"
    names = tuple(Conflicts(victim.hash) for victim in victims)
    total = sum(victim.network_fee for victim in victims)
    equal, above = [
        await build(slow.rpc, payer, SCRIPT, system_fee=100_000, network_fee=fee, attributes=names)
        for fee in (total, total + 1)
    ]
    assert (await send(slow, payer, equal)).node_code == -500
    assert {victim.hash for victim in victims} <= await pool(slow)
    assert (await send(slow, payer, above)).kind == "accepted"
    assert await pool(slow) == {above.hash}
    assert (await slow.devnet.wait(slow.rpc, above.hash)).halted
    for victim in victims:
        assert (await send(slow, payer, victim)).node_code == -500  # for ever now
        assert await slow.rpc.transaction_height(victim.hash) is None


async def test_only_a_signer_of_the_victim_can_displace_it(slow: Node, payers: tuple[Key, Key]) -> None:
    payer, stranger = payers
    await slow.next_block()
    victim = await build(slow.rpc, payer, SCRIPT, system_fee=100_000, network_fee=PLENTY)
    assert (await send(slow, payer, victim)).kind == "accepted"
    attack = await build(
        slow.rpc,
        stranger,
        SCRIPT,
        system_fee=100_000,
        network_fee=10 * PLENTY,
        attributes=(Conflicts(victim.hash),),
    )
    assert (await send(slow, stranger, attack)).node_code == -500
    assert victim.hash in await pool(slow)
    # Named before it was known: neither keeps the other out.
    later = await build(slow.rpc, payer, SCRIPT, system_fee=100_000, network_fee=PLENTY)
    ahead = await build(
        slow.rpc,
        stranger,
        SCRIPT,
        system_fee=100_000,
        network_fee=10 * PLENTY,
        attributes=(Conflicts(later.hash),),
    )
    await slow.next_block()
    assert (await send(slow, stranger, ahead)).kind == "accepted"
    assert (await slow.devnet.wait(slow.rpc, ahead.hash)).halted
    assert (await send(slow, payer, later)).kind == "accepted"
    assert (await slow.devnet.wait(slow.rpc, later.hash)).halted


async def test_a_victim_that_comes_late_with_a_higher_fee_displaces_its_canceller(
    slow: Node, payers: tuple[Key, Key]
) -> None:
    """So the fee to exceed is that of our own record, whether the pool shows the victim or not."""
    payer = payers[0]
    cheap, dear = [
        await build(slow.rpc, payer, SCRIPT, system_fee=100_000, network_fee=fee) for fee in (PLENTY, 2 * PLENTY)
    ]
    canceller = await build(
        slow.rpc,
        payer,
        SCRIPT,
        system_fee=100_000,
        network_fee=PLENTY + 1,
        attributes=(Conflicts(cheap.hash), Conflicts(dear.hash)),
    )
    await slow.next_block()
    assert (await send(slow, payer, canceller)).kind == "accepted"
    assert (await send(slow, payer, cheap)).node_code == -500
    assert await pool(slow) == {canceller.hash}
    assert (await send(slow, payer, dear)).kind == "accepted"
    assert await pool(slow) == {dear.hash}
    assert (await slow.devnet.wait(slow.rpc, dear.hash)).halted
    assert (await send(slow, payer, canceller)).node_code == -507  # too late: what it names is in a block


async def test_one_conflict_named_twice_is_refused(node: Node, rich: Key) -> None:
    twice = await build(node.rpc, rich, SCRIPT, attributes=(Conflicts(Hash256(b"\xff" * 32)),) * 2)
    assert (await send(node, rich, twice)).node_code == -507


async def test_a_transaction_that_names_one_in_a_block_is_refused(node: Node, rich: Key) -> None:
    done = await build(node.rpc, rich, SCRIPT)
    assert (await send(node, rich, done)).kind == "accepted"
    await node.devnet.wait(node.rpc, done.hash)
    late = await build(node.rpc, rich, SCRIPT, attributes=(Conflicts(done.hash),))
    assert (await send(node, rich, late)).node_code == -507
