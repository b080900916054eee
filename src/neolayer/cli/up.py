"""``neolayer up``: the whole system on one machine."""

import asyncio
import json as json_
import os
import shlex
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from neolayer.cli.client import CREDENTIALS
from neolayer.core.settings import Settings
from neolayer.supervisor.places import Places
from neolayer.supervisor.run import run
from neolayer.supervisor.stack import Event
from neolayer.supervisor.system import System

#: What the first wallet gets on a private network.
FIRST_GAS = 1_000


def up(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Start the whole system on this machine; Ctrl-C stops it.

    Parameters
    ----------
    json
        Print one JSON object a line for every event.
    """
    began = time.monotonic()
    settings = Settings.load(os.environ)
    report: Report = JsonReport() if json else LiveReport() if sys.stdout.isatty() else PlainReport()
    places = Places.open(settings.home)
    facts: dict[str, Any] = {}
    embedded_chain = not settings.rpc_urls

    async def prepare(full: Settings) -> str:
        facts.update(await first_steps(full, embedded_chain=embedded_chain))
        return f"wallet {facts['wallet_address']}"

    def ready() -> None:
        report.ready(facts | {"seconds": round(time.monotonic() - began, 2)})

    with report:
        asyncio.run(
            run(
                places,
                lambda: System.plan(settings, places, prepare).parts,
                watch=report.event,
                on_leftovers=report.leftovers,
                on_ready=ready,
                on_stopping=report.stopping,
            )
        )
        report.stopped()


async def first_steps(settings: Settings, *, embedded_chain: bool) -> dict[str, Any]:
    """Migrate; at the first start make tenant, key and wallet; fund it; leave the client its connection.

    Returns:
        What is shown at the end; ``api_key`` is null unless it was made just now.
    """
    # Takes a second to import, in which the services start.
    from neolayer.app import prepare

    file = settings.home / CREDENTIALS
    saved = _read(file)
    # A key belongs to a database; this home may have had another one.
    need_key = "api_key" not in saved or saved.get("database_url") != settings.database_url
    prepared = await prepare(settings, need_key=need_key)
    client = {
        "url": settings.url,
        "api_key": prepared.api_key or saved.get("api_key"),
        "devnet_rpc_port": settings.devnet_rpc_port if embedded_chain else None,
        "database_url": settings.database_url,
    }
    _write(file, client)
    funded = embedded_chain and await _fund(settings, prepared.wallet_address)
    return client | {
        "api_key": prepared.api_key,
        "wallet_address": prepared.wallet_address,
        "funded": funded,
    }


async def _fund(settings: Settings, address: str) -> bool:
    """Give the wallet GAS out of the genesis block if it has none; returns whether it did."""
    from neolayer.chain.devnet import Devnet
    from neolayer.chain.payload import parse_account
    from neolayer.chain.rpc import RpcClient
    from neolayer.chain.scripts import GAS
    from neolayer.core.types import DATOSHI_PER_GAS

    account = parse_account(address)
    devnet = Devnet.open(settings.home / "devnet", settings.devnet_rpc_port)
    rpc = RpcClient([devnet.rpc_url])
    try:
        if await rpc.balance_of(GAS, account):
            return False
        await devnet.wait(rpc, await devnet.fund(rpc, account, FIRST_GAS * DATOSHI_PER_GAS))
        return True
    finally:
        await rpc.aclose()


def _read(file: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json_.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return saved


def _write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all; for the owner only, as it holds a key."""
    part = file.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json_.dump(content, out, indent=1)
    part.replace(file)


class Report(ABC):
    """Tells what happens. A context: the list on the screen lives in it."""

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        return

    @abstractmethod
    def event(self, event: Event) -> None: ...

    @abstractmethod
    def leftovers(self, ended: list[str]) -> None: ...

    @abstractmethod
    def ready(self, facts: dict[str, Any]) -> None: ...

    @abstractmethod
    def stopping(self) -> None: ...

    @abstractmethod
    def stopped(self) -> None: ...


class JsonReport(Report):
    """For programs: one object a line."""

    def event(self, event: Event) -> None:
        members = {name: getattr(event, name) for name in ("part", "state", "detail", "pid", "external")}
        self._print("part", members | {"seconds": round(event.seconds, 3)})

    def leftovers(self, ended: list[str]) -> None:
        self._print("leftovers", {"ended": ended})

    def ready(self, facts: dict[str, Any]) -> None:
        self._print("ready", facts)

    def stopping(self) -> None:
        self._print("stopping", {})

    def stopped(self) -> None:
        self._print("stopped", {})

    def _print(self, kind: str, members: dict[str, Any]) -> None:
        print(json_.dumps({"event": kind} | members, ensure_ascii=False), flush=True)


class PlainReport(Report):
    """For logs: a line when a part has changed."""

    def __init__(self) -> None:
        # An address that is broken over two lines cannot be copied.
        self.console = Console(highlight=False, soft_wrap=True)
        self._stopping = 0.0

    def event(self, event: Event) -> None:
        if event.state in ("ready", "failed", "exited", "restarting"):
            self.console.print(_line(event))

    def leftovers(self, ended: list[str]) -> None:
        self.console.print(f"ended what a killed `neolayer up` had left here: {escape(', '.join(ended))}")

    def ready(self, facts: dict[str, Any]) -> None:
        say = self.console.print
        say(f"\n[bold green]ready[/] in {facts['seconds']:.1f} s: [bold]{facts['url']}[/]\n")
        if facts["api_key"]:
            say(f"  API key   [bold]{facts['api_key']}[/]   (shown once; the command line has it already)")
        funded = f"   (got {FIRST_GAS} GAS just now)" if facts["funded"] else ""
        say(f"  wallet    [bold]{facts['wallet_address']}[/]{funded}")
        say("\nIn a second terminal, here:\n")
        say("  source .venv/bin/activate")
        if "NEOLAYER_HOME" in os.environ:
            say(f"  export NEOLAYER_HOME={escape(shlex.quote(os.environ['NEOLAYER_HOME']))}")
        say("  neolayer secrets set CLAIM_CODE open-sesame\n")
        say("and on with the quick start in README.md, or `neolayer --help`. Ctrl-C stops everything.")

    def stopping(self) -> None:
        self._stopping = time.monotonic()
        self.console.print("\nstopping … (Ctrl-C again kills)")

    def stopped(self) -> None:
        self.console.print(f"stopped in {time.monotonic() - self._stopping:.1f} s")


class LiveReport(PlainReport):
    """For people: a list that fills while the parts start."""

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[str, Event] = {}
        self._since: dict[str, float] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=10)
        self._starting = True

    def __enter__(self) -> "Report":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        if self._starting:
            self._events[event.part] = event
            self._since.setdefault(event.part, time.monotonic())
        else:
            super().event(event)

    def ready(self, facts: dict[str, Any]) -> None:
        self._end_list()
        super().ready(facts)

    def stopping(self) -> None:
        self._end_list()
        super().stopping()

    def _end_list(self) -> None:
        self._live.stop()
        self._starting = False

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, expand=True)
        table.add_column(width=1, no_wrap=True)
        table.add_column(style="bold", width=10)
        table.add_column(justify="right", style="cyan", width=6)
        table.add_column(style="dim", overflow="ellipsis", no_wrap=True, ratio=1)
        for name, event in self._events.items():
            starting = event.state == "starting"
            mark = self._spinner if starting else MARKS.get(event.state, "·")
            seconds = time.monotonic() - self._since[name] if starting else event.seconds
            table.add_row(mark, name, f"{seconds:.1f} s", _detail(event))
        return table


MARKS = {"ready": "[green]✓[/]", "failed": "[red]✗[/]", "exited": "[red]✗[/]"}


def _line(event: Event) -> str:
    mark = MARKS.get(event.state, "[yellow]·[/]")
    return f"{mark} {event.part:<11}{event.state:<11}{event.seconds:5.1f} s  {_detail(event)}"


def _detail(event: Event) -> str:
    return ("external  " if event.external else "") + escape(event.detail)
