"""Does every transfer have exactly one effect while workers are killed and answers are lost?

Starts a node, a fault proxy before it and a whole system in a temporary folder. 1,000 transfers run while the
worker processes, which sign, send and confirm, are killed with SIGKILL at 50 seeded moments; then the answers to
200 transactions are dropped after the node took them; then 100 clients use one idempotency key at once. Effects
are counted on the chain by plain JSON-RPC over all blocks. Exit code 1 if anything is not as it should be.

    python -m perf.crash --transfers 1000 --kills 50 --seed 20261125
"""

import argparse
import asyncio
import collections
import contextlib
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chain.conftest import Node
from tests.proxy import NodeProxy, nothing
from tests.system import System

from neolayer.chain.payload import address_of, parse_account
from neolayer.core.types import Hash160
from neolayer.supervisor import leftovers
from perf.effects import gas_transfers
from perf.kills import reached, released, schedule, workers_beside

WALLETS: Final = 5
RECEIVERS: Final = 7
#: Requests to the API under way at a time.
AT_ONCE: Final = 32
#: Every transfer has an amount of its own, from this one on; datoshi.
FIRST_AMOUNT: Final = 100_000
#: GAS of each wallet.
FUNDS: Final = 200
#: For everything to be final once nothing is killed any more; seconds.
SETTLE_S: Final = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """A transfer that the API accepted."""

    id: str
    receiver: str
    amount: int


@dataclass(slots=True)
class Findings:
    """A row of the table, and what is wrong."""

    what: str
    transfers: int = 0
    once: int = 0
    seconds: float = 0.0
    detail: str = ""
    violations: list[str] = field(default_factory=list)

    def row(self) -> str:
        wrong = len(self.violations)
        return f"{self.what:<44}{self.transfers:>10}{self.once:>14}{wrong:>12}{self.seconds:>9.1f}  {self.detail}"


HEAD: Final = f"{'what':<44}{'transfers':>10}{'effect once':>14}{'violations':>12}{'seconds':>9}"


@contextlib.asynccontextmanager
async def stand(folder: Path, block_ms: int) -> AsyncIterator[tuple[System, NodeProxy, Node]]:
    """A node, a proxy before it, and a system that knows the proxy only."""
    node = Node(folder / "node", block_ms=block_ms)
    proxy = NodeProxy(node.devnet.rpc_url)
    system = None
    try:
        await node.start()
        await proxy.start()
        system = System(folder / "system", rpc_urls=proxy.url)
        await system.start()
        # What is counted goes past the proxy.
        system.rpc_url = node.devnet.rpc_url
        yield system, proxy, node
    finally:
        proxy.hold = proxy.drop_answer = nothing
        try:
            if system is not None:
                try:
                    await system.stop()
                finally:
                    await leftovers.end(system.home)
        finally:
            await proxy.close()
            await node.close()


async def funded_wallets(system: System, node: Node, names: Iterable[str], gas: int) -> dict[str, str]:
    """Addresses by name."""
    addresses = {}
    for name in names:
        addresses[name] = (await system.post("/wallets", {"name": name}, status=201))["address"]
        sent = await node.devnet.fund(node.rpc, parse_account(addresses[name]), gas * 10**8)
    await node.devnet.wait(node.rpc, sent)
    return addresses


async def killed(
    system: System, proxy: NodeProxy, node: Node, *, seed: int, transfers: int, kills: int
) -> Findings:
    """Transfers while the workers are killed again and again."""
    findings = Findings(f"{kills} kills of the workers", transfers)
    chance = random.Random(seed)  # noqa: S311 - replayable
    # Names and receivers of this run only: the same seed may be used twice on one system.
    run = secrets.token_hex(3)
    wallets = await funded_wallets(system, node, [f"w{run}{n}" for n in range(WALLETS)], FUNDS)
    receivers = [address_of(Hash160(secrets.token_bytes(20))) for _ in range(RECEIVERS)]
    first_block = await system.rpc("getblockcount")
    limit = asyncio.Semaphore(AT_ONCE)
    asked: list[Asked] = []

    async def ask(number: int, wallet: str, receiver: str, group: str, times: int) -> None:
        amount = FIRST_AMOUNT + number
        settings = {
            "sender": wallets[wallet],
            "group": group,
            "valid_for_blocks": 2000,
            "idempotency_key": f"{run}-{number}",
        }
        async with limit:
            views = await asyncio.gather(
                *(system.transfer(wallet, receiver, amount, status=None, **settings) for _ in range(times))
            )
        if len({view["id"] for view in views}) != 1:
            findings.violations.append(f"transfer {number}: one idempotency key, several transactions")
        asked.append(Asked(views[0]["id"], receiver, amount))

    def some(numbers: range) -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(
                ask(
                    number,
                    chance.choice(list(wallets)),
                    chance.choice(receivers),
                    chance.choice(("auto", "never")),
                    # Now and then a client repeats itself.
                    2 if chance.random() < 0.1 else 1,
                )
            )
            for number in numbers
        ]

    began = time.monotonic()
    done = collections.Counter[str]()
    async with workers_beside(system) as workers:
        for number, kill in enumerate(schedule(seed, kills)):
            shares = [transfers * (2 * number + half) // (2 * kills) for half in range(3)]
            asking = some(range(shares[0], shares[1]))
            await workers.start()
            asking += some(range(shares[1], shares[2]))
            came = await reached(kill, proxy)
            await workers.kill()
            released(proxy)
            done[kill.when if came else "late"] += 1
            await asyncio.gather(*asking)
            print(f"kill {number + 1} of {kills}: {kill}{'' if came else ', which did not come'}", flush=True)
        await workers.start()
        await settled(system)
    findings.detail = ", ".join(f"{count} {when}" for when, count in sorted(done.items()))
    await judge(system, findings, asked, first_block)
    findings.seconds = time.monotonic() - began
    return findings


async def settled(system: System) -> None:
    """Wait until no transaction may change any more."""
    async with asyncio.timeout(SETTLE_S):
        # Looked through again after a pause: one may go back from a later state into an earlier one.
        while await unfinished(system):
            await asyncio.sleep(0.2)


async def unfinished(system: System) -> bool:
    for state in ("queued", "signed", "sent", "queued", "signed"):
        if (await system.get("/transactions", state=state, limit=1))["items"]:
            return True
    return False


async def transactions(system: System) -> dict[str, Any]:
    """All of the tenant by their ids, as the API shows them."""
    found: dict[str, Any] = {}
    cursor = None
    while True:
        page = await system.get("/transactions", limit=100, cursor=cursor)
        found |= {view["id"]: view for view in page["items"]}
        if (cursor := page["next"]) is None:
            return found


async def judge(system: System, findings: Findings, asked: list[Asked], first_block: int) -> None:
    """Hold what the API says of each transfer against all blocks."""
    happened = collections.defaultdict(list)
    receivers = {one.receiver for one in asked}
    for transfer in await gas_transfers(system.rpc_url, first_block):
        if transfer.receiver in receivers:
            happened[transfer.receiver, transfer.amount].append(transfer)
    views = await transactions(system)
    findings.transfers = len(asked)
    for one in asked:
        effects, view = happened.pop((one.receiver, one.amount), []), views[one.id]
        if len(effects) != 1:
            findings.violations.append(f"{one.id} is {view['state']} and has {len(effects)} effects")
            continue
        findings.once += 1
        if (view["state"], view["block"], view["txid"]) != ("confirmed", effects[0].block, effects[0].txid):
            findings.violations.append(
                f"{one.id} is {view['state']} in block {view['block']} by {view['txid']};"
                f" the chain has it in block {effects[0].block} by {effects[0].txid}"
            )
    for (receiver, amount), effects in happened.items():
        findings.violations.append(f"{len(effects)} effects that nobody asked for: {amount} to {receiver}")


async def unheard(system: System, proxy: NodeProxy, node: Node, *, count: int) -> Findings:
    """So many transactions that the node takes and whose senders hear nothing."""
    findings = Findings(f"{count} answers dropped after the node took it", count)
    (wallet,) = await funded_wallets(system, node, [f"u{secrets.token_hex(3)}"], FUNDS)
    receiver = address_of(Hash160(secrets.token_bytes(20)))
    first_block = await system.rpc("getblockcount")
    began = time.monotonic()
    asked: list[Asked] = []
    before = len(proxy.taken_unheard)
    proxy.drop_answer = lambda method: method == "sendrawtransaction" and len(proxy.taken_unheard) < before + count
    for number in range(count):
        amount = FIRST_AMOUNT + number
        view = await system.transfer(wallet, receiver, amount, group="never", valid_for_blocks=2000)
        asked.append(Asked(view["id"], receiver, amount))
        await system.eventually(lambda: len(proxy.taken_unheard) > before + number, 60)  # noqa: B023 - at once
    lost = len(proxy.taken_unheard) - before
    proxy.drop_answer = nothing
    await settled(system)
    await judge(system, findings, asked, first_block)
    findings.detail = f"{lost} transactions taken unheard"
    if lost != count:
        findings.violations.append(findings.detail)
    findings.seconds = time.monotonic() - began
    return findings


async def one_key(system: System, node: Node, *, clients: int) -> Findings:
    """Many clients send the same request with the same idempotency key at once."""
    findings = Findings(f"{clients} clients with one idempotency key", 1)
    (wallet,) = await funded_wallets(system, node, [f"k{secrets.token_hex(3)}"], FUNDS)
    receiver = address_of(Hash160(secrets.token_bytes(20)))
    first_block = await system.rpc("getblockcount")
    began = time.monotonic()
    key = secrets.token_hex(8)
    views = await asyncio.gather(
        *(
            system.transfer(wallet, receiver, FIRST_AMOUNT, idempotency_key=key, status=None)
            for _ in range(clients)
        )
    )
    ids = {view["id"] for view in views}
    if len(ids) != 1:
        findings.violations.append(f"{len(ids)} transactions")
    await settled(system)
    await judge(system, findings, [Asked(id, receiver, FIRST_AMOUNT) for id in ids], first_block)
    findings.seconds = time.monotonic() - began
    return findings


async def run(seed: int, transfers: int, kills: int, drops: int, clients: int, block_ms: int) -> list[Findings]:
    with tempfile.TemporaryDirectory() as folder:
        async with stand(Path(folder), block_ms) as (system, proxy, node):
            return [
                await killed(system, proxy, node, seed=seed, transfers=transfers, kills=kills),
                await unheard(system, proxy, node, count=drops),
                await one_key(system, node, clients=clients),
            ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--drops", type=int, default=200)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--block-ms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="replays the moments of a run")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    found = asyncio.run(run(given.seed, given.transfers, given.kills, given.drops, given.clients, given.block_ms))
    print(f"\nseed {given.seed}, blocks of {given.block_ms} ms\n{HEAD}")
    for findings in found:
        print(findings.row())
    violations = [violation for findings in found for violation in findings.violations]
    print(*violations[:50], sep="\n")
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
