"""Many transactions in one request to each of several real nodes: an answer for each of them."""

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest

from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.payload import UnsignedTransaction
from neolayer.chain.rpc import RpcClient, SendOutcome
from neolayer.chain.scripts import build_script
from tests.network import Network
from tests.proxy import sending

from .conftest import Key, NewClient, build
from .test_follower import until

SYMBOL = build_script([{"contract": "GasToken", "method": "symbol"}])
POLICY = {"code": -505, "message": "Policy failed"}
INTERNAL = {"code": -32603, "message": "Internal error"}


@pytest.fixture
async def payer(network: Network, client_of: NewClient) -> Key:
    """An account with GAS."""
    key, client = Key(), client_of(network.urls)
    await network.devnet.wait(client, await network.devnet.fund(client, key.account, 10 * 10**8))
    return key


async def transactions(client: RpcClient, payer: Key, *network_fees: int | None) -> list[UnsignedTransaction]:
    return [await build(client, payer, SYMBOL, network_fee=fee) for fee in network_fees]


def objecting_to(raw: bytes, error: dict[str, Any]) -> Callable[[str, list[Any]], dict[str, Any] | None]:
    text = base64.b64encode(raw).decode()
    return lambda method, params: error if sending(method) and params[0] == text else None


def said(outcome: SendOutcome | NodeUnavailable) -> tuple[str, int | None, bool]:
    assert isinstance(outcome, SendOutcome), outcome
    return outcome.kind, outcome.node_code, outcome.ambiguous


async def test_each_of_a_batch_has_the_nodes_own_answer(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """Good, too cheap, pooled before (-503), in a block before (-501), and no transaction at all."""
    client, magic = client_of(network.urls), network.devnet.network
    good, cheap, pooled, included = await transactions(client, payer, None, 1000, None, None)
    raws = [payer.sign(one, magic) for one in (good, cheap, pooled, included)]
    await client.send_raw_transaction(raws[3])
    await network.devnet.wait(client, included.hash)
    await client.send_raw_transaction(raws[2])
    outcomes = [said(one) for one in await client.send_raw_transactions([*raws, b"none"])]
    assert [kind for kind, _, _ in outcomes] == ["accepted", "rejected", "accepted", "accepted", "rejected"]
    assert outcomes[1] == ("rejected", -504, False)
    assert outcomes[4][1:] == (-32602, False)
    again = [said(one)[0] for one in await client.send_raw_transactions(raws)]
    assert again == ["accepted", "rejected", "accepted", "accepted"]
    assert await client.send_raw_transactions([]) == []


async def test_a_lost_answer_makes_only_refusals_ambiguous(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """The first node takes the batch and its answer is lost; the second refuses two of three. The one that the
    first has taken is found there, the one that it must have refused may be with it for all that is known."""
    first, second, _ = network.nodes
    client, magic = client_of([first.proxy.url, second.proxy.url]), network.devnet.network
    await client.pool.probed()
    good, hidden, cheap = (payer.sign(one, magic) for one in await transactions(client, payer, None, None, 1000))
    first.proxy.drop_answer = sending
    second.proxy.objection = objecting_to(hidden, POLICY)
    outcomes = [said(one) for one in await client.send_raw_transactions([good, hidden, cheap])]
    assert outcomes == [("accepted", None, False), ("accepted", None, False), ("rejected", -504, True)]


async def test_a_node_that_says_nothing_of_one_transaction_leaves_doubt_about_that_one_only(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """One node breaks over one of three, both refuse the two others for good."""
    first, second, _ = network.nodes
    client, magic = client_of([first.proxy.url, second.proxy.url]), network.devnet.network
    await client.pool.probed()
    good, cheap, other = (payer.sign(one, magic) for one in await transactions(client, payer, None, 1000, 1000))
    second.proxy.objection = objecting_to(cheap, INTERNAL)
    outcomes = [said(one) for one in await client.send_raw_transactions([good, cheap, other])]
    assert outcomes == [("accepted", None, False), ("rejected", -504, True), ("rejected", -504, False)]


async def test_what_no_node_says_anything_about_is_unheard_alone(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    client, magic = client_of(network.urls), network.devnet.network
    await client.pool.probed()
    good, broken = (payer.sign(one, magic) for one in await transactions(client, payer, None, None))
    for node in network.nodes:
        node.proxy.objection = objecting_to(broken, INTERNAL)
    accepted, unheard = await client.send_raw_transactions([good, broken])
    assert said(accepted) == ("accepted", None, False)
    assert isinstance(unheard, NodeUnavailable)


async def test_a_hung_node_holds_no_batch_and_gets_it_all_the_same(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    client, magic = client_of(network.urls), network.devnet.network
    await client.pool.probed()
    hung = network.node_of(client.url)
    hung.proxy.delay_s = 1.5
    asked = hung.proxy.asked["sendrawtransaction"]
    raws = [payer.sign(one, magic) for one in await transactions(client, payer, None, None)]
    begun_s = time.monotonic()
    assert [said(one)[0] for one in await client.send_raw_transactions(raws)] == ["accepted"] * 2
    assert time.monotonic() - begun_s < 1.0
    await until(lambda: hung.proxy.asked["sendrawtransaction"] > asked)


async def test_no_more_nodes_are_offered_a_batch_than_wanted_and_others_in_the_place_of_those_that_fail(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    client, magic = client_of(network.urls, broadcast=1), network.devnet.network
    await client.pool.probed()
    raws = [payer.sign(one, magic) for one in await transactions(client, payer, None, None, None)]

    def asked() -> int:
        return sum(node.proxy.asked["sendrawtransaction"] for node in network.nodes)

    before = asked()
    assert [said(one)[0] for one in await client.send_raw_transactions(raws[:2])] == ["accepted"] * 2
    assert asked() == before + 1
    network.node_of(client.url).proxy.refuse = sending
    assert [said(one)[0] for one in await client.send_raw_transactions(raws[1:])] == ["accepted"] * 2
    assert asked() <= before + 1 + 3  # a cut connection is tried twice


async def test_a_refusal_of_what_was_sent_over_a_cut_connection_before_is_ambiguous(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """A kept connection breaks and the request is repeated over a new one: the node may have it from the first."""
    node = network.nodes[0]
    client, magic = client_of([node.proxy.url]), network.devnet.network
    await client.pool.probed()
    (raw,) = [payer.sign(one, magic) for one in await transactions(client, payer, None)]
    asked = node.proxy.asked["sendrawtransaction"]
    node.proxy.refuse = lambda method: sending(method) and node.proxy.asked["sendrawtransaction"] == asked + 1
    node.proxy.objection = objecting_to(raw, POLICY)
    assert said(await client.send_raw_transaction(raw)) == ("rejected", -505, True)
    assert said(await client.send_raw_transaction(raw)) == ("rejected", -505, False)


async def test_many_long_ones_are_divided_into_requests_that_a_node_reads(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """neo-go refuses a request of more than 1 MiB as a whole."""
    client, magic = client_of(network.urls), network.devnet.network
    filling = 30_000
    script = b"\x0d" + filling.to_bytes(2, "little") + bytes(filling) + b"\x45\x40"  # PUSHDATA2 DROP RET
    results = await client.invoke_scripts([(script, [payer.signer])] * 60)
    assert [getattr(result, "state", result) for result in results] == ["HALT"] * 60
    raws = [payer.sign(await build(client, payer, script), magic) for _ in range(30)]
    assert [said(one)[0] for one in await client.send_raw_transactions(raws)] == ["accepted"] * 30
