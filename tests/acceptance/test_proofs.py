"""`python -m perf.crash` and `python -m perf.bank` on a smaller scale, and that what they look for is found."""

import argparse
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from perf import bank, crash
from perf.kills import schedule

from tests.chain.conftest import Node
from tests.proxy import NodeProxy
from tests.system import System, new_receiver

SEED = 20261125

type Stand = tuple[System, NodeProxy, Node]


@pytest.fixture(scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with crash.stand(Path(tmp_path_factory.mktemp("stand")), block_ms=250) as stand:
        yield stand


async def test_each_transfer_has_one_effect_while_workers_are_killed(stand: Stand) -> None:
    findings = await crash.killed(*stand, seed=SEED, transfers=30, kills=2)
    assert findings.violations == []
    assert (findings.transfers, findings.once) == (30, 30)


async def test_transactions_that_were_taken_unheard_have_one_effect_each(stand: Stand) -> None:
    findings = await crash.unheard(*stand, count=5)
    assert findings.violations == []
    assert (findings.transfers, findings.once) == (5, 5)


async def test_many_clients_with_one_idempotency_key_have_one_effect(stand: Stand) -> None:
    system, _, node = stand
    findings = await crash.one_key(system, node, clients=20)
    assert findings.violations == []
    assert (findings.transfers, findings.once) == (1, 1)


async def test_records_and_chain_agree_on_every_balance(stand: Stand) -> None:
    system, proxy, node = stand
    addresses = await crash.funded_wallets(system, node, [f"bank-{number}" for number in range(3)], 10)
    options = argparse.Namespace(clients=3, each=10, seed=SEED, minutes=1.0)
    assert await bank.run(system, proxy, addresses, options) == 0


async def test_effects_too_many_too_few_and_unasked_for_are_found(stand: Stand) -> None:
    system, _, node = stand
    (wallet,) = await crash.funded_wallets(system, node, ["thrice"], 10)
    receiver = new_receiver()
    first_block = await system.rpc("getblockcount")
    views = [await system.transfer(wallet, receiver, amount, group="never") for amount in (1, 1, 2, 3)]
    await crash.settled(system)
    once, again, other, _ = (view["id"] for view in views)
    asked = [crash.Asked(once, receiver, 1), crash.Asked(other, receiver, 4), crash.Asked(again, receiver, 3)]
    findings = crash.Findings("")
    await crash.judge(system, findings, asked, first_block)
    twice, never, wrong, unasked = findings.violations
    assert twice == f"{once} is confirmed and has 2 effects"
    assert never == f"{other} is confirmed and has 0 effects"
    assert f"{again} is confirmed in block" in wrong
    assert unasked == f"1 effects that nobody asked for: 2 to {receiver}"


def test_a_seed_replays_its_moments() -> None:
    assert schedule(SEED, 50) == schedule(SEED, 50)
    assert schedule(SEED, 50) != schedule(SEED + 1, 50)
    assert {kill.when for kill in schedule(SEED, 50)} == {"time", "before", "after"}
