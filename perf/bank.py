"""Do our records of every wallet agree with the chain to the last datoshi?

50 clients make 200 random transfers each among 20 wallets, cancel some and speed some up, while the worker
processes are killed with SIGKILL at seeded moments. At the end each wallet's balance on the chain must be

    balance before + received − sent − its shares of the fees of on-chain transactions in blocks

all of it as the API tells. Exit code 1 if one differs. The seed replays what clients want and when workers are
killed.

    python -m perf.bank --clients 50 --each 200 --seed 20261125
"""

import argparse
import asyncio
import collections
import itertools
import random
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.proxy import NodeProxy
from tests.system import System

from neolayer.chain.payload import parse_account
from neolayer.core.types import gas_parse, gas_text
from perf.crash import funded_wallets, settled, stand, transactions
from perf.effects import GAS
from perf.kills import reached, released, schedule, workers_beside

WALLETS: Final = 20
#: GAS of each wallet at the beginning.
FUNDS: Final = 500
#: Largest transfer; datoshi.
LARGEST: Final = 5_000_000
#: Part of the transfers that are cancelled, and sped up, soon after they were asked for.
CANCELLED: Final = 0.10
SPED_UP: Final = 0.03
#: Latest moment of that; seconds. Most of them find a transaction that is signed, sent or in a block by then.
SOON_S: Final = 3.0
#: Between a worker's start and the time that its end is counted from; seconds.
LIVES_S: Final = (1.0, 8.0)
#: Answers that a cancel or a speed-up may get; any other is a violation.
ANSWERS: Final = {202: "taken", 409: "too late", 422: "refused", 503: "unavailable"}


@dataclass(slots=True)
class Books:
    """What the API says moved, by the wallet's name; datoshi."""

    moved: collections.Counter[str] = field(default_factory=collections.Counter)
    fees: collections.Counter[str] = field(default_factory=collections.Counter)
    states: collections.Counter[str] = field(default_factory=collections.Counter)


class Client:
    """One of those who pay each other."""

    def __init__(self, system: System, number: int, seed: int, run: str, addresses: dict[str, str]) -> None:
        self._system = system
        self._number = number
        self._run = run
        self._chance = random.Random(f"{seed} {number}")  # noqa: S311 - replayable
        self._addresses = addresses
        self.answers: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []

    async def work(self, each: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(each):
                sender, receiver = self._chance.sample(list(self._addresses), 2)
                amount = self._chance.randint(1, LARGEST)
                group = self._chance.choice(("auto", "auto", "never"))
                view = await self._ask(number, sender, receiver, amount, group)
                what = self._chance.random()
                pause = self._chance.uniform(0, SOON_S)
                if what < CANCELLED:
                    tasks.create_task(self._later(view["id"], "cancel", pause))
                elif what < CANCELLED + SPED_UP:
                    tasks.create_task(self._later(view["id"], "speed-up", pause))

    async def _ask(self, number: int, sender: str, receiver: str, amount: int, group: str) -> Any:
        return await self._system.transfer(
            sender,
            self._addresses[receiver],
            amount,
            sender=self._addresses[sender],
            group=group,
            valid_for_blocks=2000,
            idempotency_key=f"{self._run}-{self._number}-{number}",
            status=None,
        )

    async def _later(self, id: str, what: str, pause: float) -> None:
        await asyncio.sleep(pause)
        status, _, answer = await self._system.raw("POST", f"/api/v1/transactions/{id}/{what}", body=b"{}")
        self.answers[f"{what}: {ANSWERS.get(status, status)}"] += 1
        if status not in ANSWERS:
            self.violations.append(f"{what} of {id} is answered {status}: {answer}")


async def kill_now_and_then(system: System, proxy: NodeProxy, seed: int, kills: list[str]) -> None:
    """Until cancelled."""
    chance = random.Random(f"{seed} lives")  # noqa: S311 - replayable
    async with workers_beside(system) as workers:
        try:
            for number in itertools.count():
                (kill,) = schedule(seed + number, 1)
                await workers.start()
                await asyncio.sleep(chance.uniform(*LIVES_S))
                await reached(kill, proxy)
                await workers.kill()
                kills.append(str(kill))
                released(proxy)
        finally:
            released(proxy)


async def balance(system: System, address: str) -> int:
    """Datoshi, as the GAS contract says."""
    argument = {"type": "Hash160", "value": str(parse_account(address))}
    answer = await system.rpc("invokefunction", GAS, "balanceOf", [argument])
    return int(answer["stack"][0]["value"])


async def books(system: System, addresses: dict[str, str]) -> Books:
    """Sum up all transactions as the API shows them."""
    names = {address: name for name, address in addresses.items()}
    found = Books()
    limit = asyncio.Semaphore(16)

    async def enter(view: Any) -> None:
        found.states[view["state"]] += 1
        if view["state"] == "confirmed":
            (call,) = view["calls"]
            _, receiver, amount, _ = (argument["value"] for argument in call["args"])
            found.moved[view["wallet"]] -= int(amount)
            found.moved[names[receiver]] += int(amount)
            found.fees[view["wallet"]] += gas_parse(view["system_fee"]) + gas_parse(view["network_fee"])
            return
        async with limit:
            attempts = (await system.get(f"/transactions/{view['id']}/attempts"))["items"]
        for attempt in attempts:
            if attempt["state"] == "included":
                found.fees[view["wallet"]] += gas_parse(attempt["system_fee"]) + gas_parse(attempt["network_fee"])

    ours = [view for view in (await transactions(system)).values() if view["wallet"] in addresses]
    await asyncio.gather(*map(enter, ours))
    return found


async def run(system: System, proxy: NodeProxy, addresses: dict[str, str], options: argparse.Namespace) -> int:
    """Returns the number of violations."""
    before = {name: await balance(system, address) for name, address in addresses.items()}
    run = secrets.token_hex(3)
    clients = [Client(system, number, options.seed, run, addresses) for number in range(options.clients)]
    kills: list[str] = []
    began = time.monotonic()
    working = asyncio.gather(*(client.work(options.each) for client in clients))
    killing = asyncio.create_task(kill_now_and_then(system, proxy, options.seed, kills))
    telling = asyncio.create_task(_tell(system, kills, began))
    try:
        async with asyncio.timeout(options.minutes * 60):
            await working
            asked_s = time.monotonic() - began
    finally:
        for task in (killing, telling):
            task.cancel()
        await asyncio.gather(killing, telling, return_exceptions=True)
    async with workers_beside(system) as workers:
        await workers.start()
        await settled(system)
        found = await books(system, addresses)
        after = {name: await balance(system, address) for name, address in addresses.items()}
    answers = sum((client.answers for client in clients), collections.Counter[str]())
    violations = [violation for client in clients for violation in client.violations]
    total = options.clients * options.each
    if sum(found.states.values()) != total:
        violations.append(f"{sum(found.states.values())} transactions, {total} were asked for")
    print(f"{total} transfers asked for in {asked_s:.1f} s, final after {time.monotonic() - began:.1f} s")
    print("states: " + ", ".join(f"{count} {state}" for state, count in found.states.most_common()))
    print("answers: " + ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items())))
    print(f"{len(kills)} kills of the workers")
    columns = ("before", "moved", "fees", "by records", "on chain", "differ")
    print("\nwallet    " + "".join(f"{column:>18}" for column in columns))
    for name, balance_before in before.items():
        records = balance_before + found.moved[name] - found.fees[name]
        figures = (
            balance_before,
            found.moved[name],
            found.fees[name],
            records,
            after[name],
            after[name] - records,
        )
        print(f"{name:<10}" + "".join(f"{gas_text(figure):>18}" for figure in figures))
        if records != after[name]:
            violations.append(f"wallet {name} differs by {after[name] - records} datoshi")
    print(*violations[:50], sep="\n")
    return len(violations)


async def _tell(system: System, kills: list[str], began: float) -> None:
    while True:
        await asyncio.sleep(10)
        newest = (await system.get("/transactions", state="confirmed", limit=1))["items"]
        last = newest[0]["block"] if newest else None
        print(f"{time.monotonic() - began:.0f} s: {len(kills)} kills, last confirmed in block {last}", flush=True)


async def main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with stand(Path(folder), options.block_ms) as (system, proxy, node):
            addresses = await funded_wallets(system, node, [f"bank-{n:02}" for n in range(WALLETS)], FUNDS)
            return await run(system, proxy, addresses, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--each", type=int, default=200, help="transfers of each client")
    parser.add_argument("--minutes", type=float, default=8.0, help="for asking at most; then it has failed")
    parser.add_argument("--block-ms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    violations = asyncio.run(main(given))
    print(f"seed {given.seed}: {violations} violations")
    raise SystemExit(1 if violations else 0)
