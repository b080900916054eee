"""Many intents in one on-chain transaction, and what one of them may do to the others: nothing. On a real node."""

import random
from collections import Counter

import pytest

from neolayer.accounts.service import ensure_tenant
from neolayer.app import Parts
from neolayer.chain.read import Reader, ReadRequest, ResultUnreadable
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS, MAX_SCRIPT_BYTES, NEO, build_script, transfer
from neolayer.core.types import Hash256, gas_parse
from neolayer.transactions.grouping import (
    END_BYTES,
    OVERHEAD_BYTES,
    Traffic,
    isolated,
    joined,
    measured,
    metered,
    outcomes,
    packed,
    shares,
)
from neolayer.transactions.model import TransactionRequest, TransactionView
from tests.chain.conftest import Key, Node, build
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy, nothing, sending
from tests.transactions.conftest import Room, room_on
from tests.transactions.contract import ABORT, THROW, Switched
from tests.transactions.test_pipeline import running, stranger, until

SEED = 20261125


async def submit(room: Room, *calls: object, **settings: object) -> TransactionView:
    request = TransactionRequest(calls=[dict(call) for call in calls], **settings)  # type: ignore[call-overload, arg-type]
    return (await room.parts.transactions.submit(room.tenant_id, request))[0]


async def settled(room: Room, views: list[TransactionView]) -> list[TransactionView]:
    """The same once all are final; nothing else must be running."""

    async def final() -> bool:
        nonlocal views
        views = [await room.show(view) for view in views]
        return all(view.state not in ("queued", "signed", "sent") for view in views)

    async with running(room.monitor.run, room.pipeline().run):
        await until(final, 30)
    return views


async def fees_on_chain(rpc: RpcClient, views: list[TransactionView]) -> tuple[int, int]:
    """Datoshi of system and network fees of the on-chain transactions of these, as the node tells them."""
    system = network = 0
    for txid in {view.txid for view in views}:
        found = await rpc.call("getrawtransaction", [txid, 1])
        system, network = system + int(found["sysfee"]), network + int(found["netfee"])
    return system, network


def paid(views: list[TransactionView]) -> tuple[int, int]:
    return (
        sum(gas_parse(view.system_fee or "") for view in views),
        sum(gas_parse(view.network_fee or "") for view in views),
    )


async def test_many_transfers_share_transactions_and_their_shares_are_the_fees_to_the_datoshi(room: Room) -> None:
    receivers = [stranger() for _ in range(30)]
    views = await settled(room, [await room.submit(to, 100 + n) for n, to in enumerate(receivers)])
    assert {view.state for view in views} == {"confirmed"}
    assert len({view.txid for view in views}) < 5
    assert all(view.group_size and view.group_size > 5 for view in views)
    assert [await room.node.rpc.balance_of(GAS, to) for to in receivers] == list(range(100, 130))
    assert paid(views) == await fees_on_chain(room.node.rpc, views)
    alone = next(iter(await settled(room, [await room.submit(stranger(), 5, group="never")])))
    assert gas_parse(views[0].network_fee or "") < gas_parse(alone.network_fee or "") / 2
    assert views[0].result is not None
    assert views[0].result["stack"] == [{"type": "Boolean", "value": True}]
    assert await room.states(views[0]) == ["queued", "signed", "sent", "confirmed"]


async def test_what_asks_never_to_be_grouped_is_alone_in_its_transaction(room: Room) -> None:
    asked = [await room.submit(stranger(), 1, group="auto" if n % 2 else "never") for n in range(12)]
    views = await settled(room, asked)
    assert [view.group_size for view in views[::2]] == [1] * 6
    assert len({view.txid for view in views[::2]} | {views[1].txid}) == 7


async def test_nobody_pays_for_the_speed_that_others_ask_for(room: Room) -> None:
    views = [await room.submit(stranger(), 5, speed=speed) for speed in ("economy", "urgent") * 3]
    done = await settled(room, views)
    assert {view.state for view in done} == {"confirmed"}
    by_txid: dict[str | None, set[str]] = {}
    for view in done:
        by_txid.setdefault(view.txid, set()).add(view.speed)
    assert sorted(map(sorted, by_txid.values())) == [["economy"], ["urgent"]]


async def test_with_grouping_switched_off_each_has_a_transaction_of_its_own(room: Room) -> None:
    views = [await room.submit(stranger(), 1) for _ in range(12)]

    async def confirmed() -> bool:
        return all([(await room.show(view)).state == "confirmed" for view in views])

    async with running(room.monitor.run, room.pipeline(opt_transaction_grouping=False).run):
        await until(confirmed)
    assert len({(await room.show(view)).txid for view in views}) == 12


async def test_several_calls_of_one_intent_keep_to_themselves_and_fail_together(room: Room) -> None:
    to, source = stranger(), room.wallet.script_hash
    both = transfer(GAS, source, to, 5), transfer(NEO, source, to, 1)
    good = await submit(room, transfer(GAS, source, to, 7), transfer(GAS, source, to, 8))
    others = [await room.submit(stranger(), 1) for _ in range(5)]
    views = await settled(room, [good, *others])
    assert {view.state for view in views} == {"confirmed"}
    assert views[0].group_size == 1
    # The wallet has no NEO: the second call fails, and takes the first with it.
    with pytest.raises(Exception, match="ASSERT"):
        await submit(room, *both)
    assert await room.node.rpc.balance_of(GAS, to) == 15


async def test_what_a_called_contract_did_before_it_threw_is_undone_but_not_the_call_before_it(
    node: Node, rich: Key
) -> None:
    """The reason why an intent of several calls is not grouped: a TRY block is no transaction."""
    contract = await Switched.deploy(node, "Undone")
    await contract.set_mode(THROW)
    to = stranger()
    ok = build_script([transfer(GAS, rich.account, to, 3)], assert_transfers=False)
    throws = build_script([contract.touch("a")])
    transaction = await build(node.rpc, rich, isolated(ok + b"\x45" + throws) + b"\x40")
    network = (await node.rpc.version()).network
    await node.rpc.send_raw_transaction(rich.sign(transaction, network))
    log = await node.devnet.wait(node.rpc, transaction.hash)
    assert log.halted
    assert log.stack[1] == {"type": "Boolean", "value": False}
    assert not await contract.touched("a")
    assert await node.rpc.balance_of(GAS, to) == 3


@pytest.mark.parametrize(("mode", "cause"), [(THROW, "call_threw"), (ABORT, "simulation_faulted")])
async def test_a_call_that_fails_in_its_block_only_takes_nobody_along(
    node: Node,
    enclave: Process,
    database_url: str,
    valkey_url: str,
    proxy: NodeProxy,
    mode: int,
    cause: str,
) -> None:
    """THROW is caught where it happens. ABORT ends the whole transaction: its calls go on, each alone."""
    contract = await Switched.deploy(node, f"Fails{mode}")
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        receivers = [stranger() for _ in range(6)]
        views = [await room.submit(to, 9) for to in receivers[:3]]
        bad = await submit(room, contract.touch("key"))
        views += [await room.submit(to, 9) for to in receivers[3:]]
        proxy.hold = sending

        async def signed() -> bool:
            return proxy.held > 0

        async with running(room.pipeline(lease_s=0.5).run):
            await until(signed)
        assert len({(await room.show(view)).txid for view in [*views, bad]}) == 1
        shared = (await room.show(bad)).txid
        await contract.set_mode(mode)
        proxy.hold = nothing
        *good, failed = await settled(room, [*views, bad])
        assert {view.state for view in good} == {"confirmed"}
        assert [await node.rpc.balance_of(GAS, to) for to in receivers] == [9] * 6
        assert not await contract.touched("key")
        if mode == THROW:
            assert (failed.state, failed.cause) == ("faulted", {"code": cause, "message": "boom"})
            assert failed.txid == shared
        else:
            # Simulated anew and alone, it is seen to fail before it costs anything more.
            assert failed.cause is not None
            assert (failed.state, failed.cause["code"]) == ("rejected", cause)
            assert await room.states(good[0]) == [
                "queued",
                "signed",
                "sent",
                "queued",
                "signed",
                "sent",
                "confirmed",
            ]
            assert shared not in {view.txid for view in good}
        # What was burned for the transaction that failed counts, too.
        spent = 100 * 10**8 - await node.rpc.balance_of(GAS, room.wallet.script_hash) - 6 * 9
        assert sum(paid([*good, failed])) == spent


async def test_calls_go_on_alone_when_the_replacement_of_their_group_faults(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    """The group itself never reaches a node; the speed-up of one of it is included and ends in ABORT."""
    contract = await Switched.deploy(node, "FailsReplaced")
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        proxy.swallow = sending
        receivers = [stranger() for _ in range(3)]
        views = [await room.submit(to, 9) for to in receivers]
        # Enough for going once, and not for the group that fails and for going alone.
        capped = await room.submit(stranger(), 9, max_fee="0.15")
        bad = await submit(room, contract.touch("key"))

        async def sent() -> bool:
            return all([(await room.show(view)).state == "sent" for view in [*views, capped, bad]])

        async with running(room.pipeline().run):
            await until(sent)
        await room.parts.replacements.speed_up(room.tenant_id, views[0].id, "fast", None)
        await contract.set_mode(ABORT)
        proxy.swallow = nothing
        *good, ended, failed = await settled(room, [*views, capped, bad])
        assert {view.state for view in good} == {"confirmed"}
        assert [await node.rpc.balance_of(GAS, to) for to in receivers] == [9] * 3
        assert failed.state == "rejected"
        assert ended.state == "rejected"
        assert ended.cause is not None
        assert ended.cause["code"] == "fee_above_cap"
        assert "paid for a group that failed" in ended.cause["message"]
        assert ended.system_fee is not None
        assert ended.network_fee is not None
        assert 0 < gas_parse(ended.system_fee) + gas_parse(ended.network_fee) <= 15_000_000
        group, replacement, _ = await room.parts.transactions.attempts(room.tenant_id, views[0].id)
        assert (group.state, replacement.state) == ("replaced", "included")


async def test_a_transfer_that_finds_nothing_left_in_its_block_is_faulted_alone(room: Room, node: Node) -> None:
    """Both move the wallet's only NEO and simulate well; one block holds both."""
    await node.devnet.wait(
        node.rpc,
        await node.devnet.send(
            node.rpc, build_script([transfer(NEO, node.devnet.owner, room.wallet.script_hash, 1)])
        ),
    )
    first, second = stranger(), stranger()
    moves = [
        await submit(room, transfer(NEO, room.wallet.script_hash, to, 1), group="never") for to in (first, second)
    ]
    others = [await room.submit(stranger(), 4) for _ in range(4)]
    views = await settled(room, [*moves, *others])
    assert Counter(view.state for view in views[:2]) in (
        Counter(confirmed=1, faulted=1),
        Counter(confirmed=1, rejected=1),
    )
    assert {view.state for view in views[2:]} == {"confirmed"}
    assert await node.rpc.balance_of(NEO, first) + await node.rpc.balance_of(NEO, second) == 1


async def test_a_false_transfer_inside_a_group_costs_the_others_nothing(node: Node, rich: Key) -> None:
    """The script itself, on chain: the second moves more than there is."""
    receivers = [stranger() for _ in range(3)]
    amounts = [11, 10**17, 12]
    scripts = [
        build_script([transfer(GAS, rich.account, to, amount)])
        for to, amount in zip(receivers, amounts, strict=True)
    ]
    transaction = await build(node.rpc, rich, joined(scripts))
    await node.rpc.send_raw_transaction(rich.sign(transaction, (await node.rpc.version()).network))
    log = await node.devnet.wait(node.rpc, transaction.hash)
    assert log.halted
    flags = [item["value"] for item in log.stack[1::2]]
    assert flags == [True, False, True]
    assert [await node.rpc.balance_of(GAS, to) for to in receivers] == [11, 0, 12]


@pytest.mark.parametrize(
    "make",
    [
        b"\xc2\x4a\x4a\xcf",  # NEWARRAY0 DUP DUP APPEND: an array that holds itself
        b"\x02\xa0\x86\x01\x00\x88",  # PUSHINT32 100,000 NEWBUFFER
    ],
    ids=["recursive", "large"],
)
async def test_what_was_thrown_and_cannot_be_shown_fails_its_call_only(node: Node, rich: Key, make: bytes) -> None:
    good = build_script([{"contract": "GasToken", "method": "symbol"}])
    transaction = await build(node.rpc, rich, joined([good, make + b"\x3a", good]))  # THROW
    await node.rpc.send_raw_transaction(rich.sign(transaction, (await node.rpc.version()).network))
    log = await node.devnet.wait(node.rpc, transaction.hash)
    assert log.halted
    first, second, third = outcomes(log.stack)
    assert first.succeeded
    assert third.succeeded
    assert second.cause == {"code": "call_threw", "message": log.stack[2]}


async def test_results_that_nodes_do_not_write_down_hold_up_nobody(room: Room, node: Node) -> None:
    """Neither in the simulation of a group, which has no results at all then, nor in the block."""
    contract = await Switched.deploy(node, "Large")
    call = {"contract": str(contract.hash), "method": "large", "args": [{"type": "String", "value": ""}]}
    with pytest.raises(ResultUnreadable):
        await Reader(room.parts.rpc).read(ReadRequest(**call))
    large = [await submit(room, call) for _ in range(3)]
    views = [await room.submit(stranger(), 1 + number) for number in range(5)]
    ended = await settled(room, [*large, *views])
    assert {view.state for view in ended} == {"confirmed"}


async def test_culprits_are_found_by_halving_and_refused_alone(room: Room, node: Node) -> None:
    """Accepted while the contract still worked, or while no node could be asked."""
    contract = await Switched.deploy(node, "Culprit")
    generator = random.Random(SEED)  # noqa: S311 - a seeded choice
    bad = set(generator.sample(range(16), 3))
    views = [
        await submit(room, contract.touch(f"k{n}")) if n in bad else await room.submit(stranger(), 2)
        for n in range(16)
    ]
    await contract.set_mode(ABORT)
    done = await settled(room, views)
    assert {n for n, view in enumerate(done) if view.state == "rejected"} == bad
    assert {view.state for n, view in enumerate(done) if n not in bad} == {"confirmed"}
    causes = [view.cause for n, view in enumerate(done) if n in bad]
    assert {cause["code"] for cause in causes if cause} == {"simulation_faulted"}
    assert all(cause and "ABORT" in cause["message"] for cause in causes)
    assert paid([view for view in done if view.txid]) == await fees_on_chain(
        node.rpc, [view for view in done if view.txid]
    )


async def test_a_group_that_would_burn_too_much_is_divided(room: Room) -> None:
    """A transfer to a new account burns about 0.1 GAS."""
    views = [await room.submit(stranger(), 1) for _ in range(12)]

    async def confirmed() -> bool:
        return all([(await room.show(view)).state == "confirmed" for view in views])

    async with running(room.monitor.run, room.pipeline(group_gas_max=0.25).run):
        await until(confirmed)
    sizes = Counter([(await room.show(view)).txid for view in views])
    assert max(sizes.values()) == 2


async def test_different_tenants_never_share_a_transaction(room: Room, node: Node) -> None:
    other = await second_tenant(room.parts, node)
    mine = [await room.submit(stranger(), 1) for _ in range(5)]
    theirs = [await other.submit(stranger(), 1) for _ in range(5)]

    async def confirmed() -> bool:
        return all(
            [(await room.show(view)).state == "confirmed" for view in mine]
            + [(await other.show(view)).state == "confirmed" for view in theirs]
        )

    async with running(room.monitor.run, room.pipeline().run):
        await until(confirmed)
    assert {(await room.show(view)).txid for view in mine}.isdisjoint(
        {(await other.show(view)).txid for view in theirs}
    )


async def second_tenant(parts: Parts, node: Node) -> Room:
    """Another tenant with a funded wallet on the same parts."""
    tenant_id = await ensure_tenant(parts.database, "other")
    wallet = await parts.wallets.create(tenant_id, "default")
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet.script_hash, 100 * 10**8))
    return Room(parts, node, tenant_id, wallet)


async def test_the_metered_script_measures_each_call(node: Node, rich: Key) -> None:
    cheap = build_script([{"contract": "GasToken", "method": "symbol"}])
    dear = build_script([transfer(GAS, rich.account, stranger(), 1)])
    result = await node.rpc.invoke_script(metered([cheap, dear, cheap]), [rich.signer])
    first, second, third = measured(result.stack)
    assert first == third < second
    assert result.gas_consumed * 0.99 < first + second + third <= result.gas_consumed


def test_shares_are_in_proportion_and_add_up() -> None:
    assert shares(10, [1, 1, 1]) == [4, 3, 3]
    assert shares(7, [0, 0]) == [4, 3]
    generator = random.Random(SEED)  # noqa: S311 - seeded inputs
    for _ in range(500):
        weights = [generator.randrange(10**9) for _ in range(generator.randrange(1, 40))]
        total = generator.randrange(10**12)
        parts = shares(total, weights)
        assert sum(parts) == total
        whole = sum(weights) or 1
        assert all(abs(part - total * weight / whole) <= 1 for part, weight in zip(parts, weights, strict=True))


def test_scripts_are_packed_up_to_the_longest_that_a_transaction_carries() -> None:
    size = 200
    counts = packed([size] * 1000, most=500)
    assert sum(counts) == 1000
    fits = (MAX_SCRIPT_BYTES - END_BYTES) // (size + OVERHEAD_BYTES)
    assert counts[0] == fits
    assert packed([100] * 10, most=4) == [4, 4, 2]
    assert packed([], most=4) == []


def test_isolating_a_call_adds_no_more_bytes_than_is_counted_with() -> None:
    for length in (1, 100, 120, 130, 60_000):
        script = bytes(length - 1) + b"\x52"
        assert len(isolated(script)) - length <= OVERHEAD_BYTES


def test_groups_grow_with_the_queue_and_with_the_crowd() -> None:
    def traffic(queued: int, per_block: float = 0, waited: float = 1) -> int:
        return Traffic(queued, 0, 0, 512, per_block, 0, waited).calls_wanted(3)

    assert traffic(1) == traffic(1_000) == 16
    assert traffic(30_000) > 100
    assert traffic(10_000, per_block=500) > traffic(10_000)
    assert traffic(10_000, waited=6) > traffic(10_000)
    assert traffic(10**7) == 500


async def test_a_txid_of_a_group_is_the_same_for_all_that_share_it(room: Room) -> None:
    views = await settled(room, [await room.submit(stranger(), 1) for _ in range(3)])
    (txid,) = {view.txid for view in views}
    assert txid is not None
    log = await room.node.rpc.application_log(Hash256.parse(txid))
    assert log is not None
    assert len(log.stack) == 6
