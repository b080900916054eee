"""The plain way of neo-mamba, where `ChainFacade.invoke` prices, signs, sends and waits, against this service."""

import asyncio
import collections
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from neo3.api.helpers.signing import sign_with_account
from neo3.api.wrappers import ChainFacade, GasToken
from neo3.network.payloads.verification import Signer
from neo3.wallet.account import Account
from neo3.wallet.scrypt_parameters import ScryptParameters
from tests.system import RECEIVER

from neolayer.chain.payload import parse_account
from neolayer.transactions.model import UNFINISHED
from perf.bench import Bench
from perf.metered import MeteredNode
from perf.queue import Stand
from perf.stats import median, ratio

#: Of one RPC call, and of waiting for a block, so that a crowd makes it slow and does not make it fail; seconds.
PATIENCE_S: Final = 120
#: GAS; each transfer costs some 0.11.
FUNDS: Final = 20_000
#: How long it is counted what is asked when nothing is sent; seconds.
IDLE_S: Final = 10
#: Clients of the API under way at a time when as many as can be are wanted.
CLIENTS: Final = 50


@dataclass(frozen=True, slots=True)
class Sent:
    """Transfers from the wish to the block."""

    count: int
    seconds: float
    calls: collections.Counter[str]
    #: What went wrong, by its name.
    failures: collections.Counter[str]

    @property
    def per_second(self) -> float:
        return (self.count - self.failures.total()) / self.seconds

    def calls_each(self, idle: float) -> float:
        """Beyond so many a second that are asked when nothing is sent."""
        return max(self.calls.total() - idle * self.seconds, 0) / self.count


class Plain:
    def __init__(self, node: MeteredNode, account: Account, facade: ChainFacade) -> None:
        self._node = node
        self._account = account
        self._facade = facade
        # Its nonce is fixed: only different amounts make different transactions.
        self._amount = 0

    @classmethod
    async def open(cls, node: MeteredNode) -> "Plain":
        account = Account.create_new(ScryptParameters(n=2, r=1, p=1))
        await node.devnet.wait(
            node.rpc, await node.devnet.fund(node.rpc, parse_account(account.address), FUNDS * 10**8)
        )
        facade = ChainFacade(
            node.devnet.rpc_url, receipt_retry_delay=0.2, receipt_timeout=PATIENCE_S, rpc_timeout=PATIENCE_S
        )
        facade.add_signer(sign_with_account(account), Signer(account.script_hash))
        return cls(node, account, facade)

    async def one_by_one(self, count: int) -> Sent:
        return await self._measured(count, at_once=False)

    async def gathered(self, count: int) -> Sent:
        return await self._measured(count, at_once=True)

    async def _measured(self, count: int, *, at_once: bool) -> Sent:
        before, began = await self._node.calls(), time.monotonic()
        failures = collections.Counter[str]()
        if at_once:
            for result in await asyncio.gather(*(self._send() for _ in range(count))):
                failures.update([result] if result else [])
        else:
            for _ in range(count):
                result = await self._send()
                failures.update([result] if result else [])
        return Sent(count, time.monotonic() - began, await self._node.calls() - before, failures)

    async def _send(self) -> str:
        """What went wrong; empty when it is in a block and ended in HALT."""
        self._amount += 1
        transfer = GasToken().transfer(self._account.address, RECEIVER, self._amount)
        try:
            receipt = await self._facade.invoke(transfer)
        except Exception as error:
            return type(error).__name__
        return "" if receipt.state == "HALT" else receipt.state


async def through_api(stand: Stand, count: int, *, at_once: bool) -> Sent:
    """From the request to the state `confirmed`, as a client sees it: one after the other by long poll; at once by
    the stream of events."""
    calls, began = await stand.node.calls(), time.monotonic()
    failures = await (_all_at_once if at_once else _one_by_one)(stand, count)
    return Sent(count, time.monotonic() - began, await stand.node.calls() - calls, failures)


async def _one_by_one(stand: Stand, count: int) -> collections.Counter[str]:
    failures = collections.Counter[str]()
    for number in range(count):
        view = await stand.system.transfer("default", RECEIVER, 1 + number, sender=stand.wallet["address"])
        while view["state"] in UNFINISHED:
            view = await stand.system.get(f"/transactions/{view['id']}", wait=60, until="final")
        failures.update([] if view["state"] == "confirmed" else [view["state"]])
    return failures


async def _all_at_once(stand: Stand, count: int) -> collections.Counter[str]:
    limit = asyncio.Semaphore(CLIENTS)

    async def send(number: int) -> str:
        async with limit:
            view = await stand.system.transfer("default", RECEIVER, 1 + number, sender=stand.wallet["address"])
        return str(view["id"])

    ends: dict[str, str] = {}
    async with stand.system.news() as events:
        sending = asyncio.gather(*map(send, range(count)))
        async with asyncio.timeout(PATIENCE_S):
            while len(ends) < count:
                event = await anext(events)
                if event["state"] not in UNFINISHED:
                    ends[event["id"]] = event["state"]
        assert set(await sending) == set(ends)
    return collections.Counter(state for state in ends.values() if state != "confirmed")


async def against_neo_mamba(bench: Bench) -> list[str]:
    options = bench.options
    plain = await Plain.open(bench.node)
    stand = await bench.stand(grouping=True)
    ways: dict[str, Callable[[], Awaitable[Sent]]] = {
        "neo-mamba, one by one": lambda: plain.one_by_one(options.single_count),
        "this service, one by one": lambda: through_api(stand, options.single_count, at_once=False),
    }
    for count in options.gather_count:
        ways |= {
            f"neo-mamba, {count} by `asyncio.gather`": partial(plain.gathered, count),
            f"this service, {count}, {CLIENTS} requests at a time": partial(
                through_api, stand, count, at_once=True
            ),
        }
    before = await bench.node.calls()
    await asyncio.sleep(IDLE_S)
    idle = (await bench.node.calls() - before).total() / IDLE_S
    found: dict[str, list[Sent]] = {way: [] for way in ways}
    for number in range(options.peer_rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            sent = await ways[way]()
            found[way].append(sent)
            print(
                f"{way}: {sent.per_second:.2f}/s, {sent.calls_each(idle):.1f} calls, {dict(sent.failures)}",
                flush=True,
            )
    rows = []
    for way, sent in found.items():
        rates = median([one.per_second for one in sent])
        calls = statistics.mean(one.calls_each(idle) for one in sent)
        failures = sum((one.failures for one in sent), collections.Counter[str]())
        words = ", ".join(f"{count} {name}" for name, count in failures.items()) or "none"
        rows.append(f"| {way} | {sent[0].count} | {rates.format()} | {calls:.1f} | {words} |")
    times = [
        (ours, ratio([one.per_second for one in found[ours]], [one.per_second for one in found[theirs]]))
        for theirs, ours in zip(list(ways)[::2], list(ways)[1::2], strict=True)
    ]
    return [
        "## e. Against neo-mamba",
        "",
        "From the wish for a transfer to knowing that it is in a block: `ChainFacade.invoke`, which prices, signs,"
        " sends and polls, in the process of the application; against requests to this service's API, whose end is"
        f" heard by long poll, or by one stream of events for many. {options.peer_rounds} rounds in turn on the"
        " same node.",
        "",
        f"RPC calls are those beyond the {idle:.0f} a second that are asked when nothing is sent.",
        "",
        "| way | transfers | confirmed a second | RPC calls each | failures |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *(f"- {way}: {times_as_fast.format()} times as fast as neo-mamba." for way, times_as_fast in times),
        "",
    ]
