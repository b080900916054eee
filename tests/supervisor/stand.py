"""A supervisor of some of the parts, in a process of its own: what the tests stop, kill and start again.

    python -m tests.supervisor.stand PART …        prints an event a line, as ``neolayer up --json`` does

Settings come from the environment. ``stubborn`` is a part that ignores SIGTERM and has a grandchild.
"""

import asyncio
import os
import sys

from neolayer.cli.up import JsonReport
from neolayer.core.errors import ServiceError
from neolayer.core.settings import Settings
from neolayer.supervisor import postgres, system, valkey
from neolayer.supervisor.part import NotReady, Part, plain_environment
from neolayer.supervisor.places import HOME_MARK, Places
from neolayer.supervisor.process import Child, Command
from neolayer.supervisor.run import run

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# It has neither our environment nor our session: known only by whose child it is.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True)
print("on", flush=True)
time.sleep(600)
"""


def stubborn(places: Places, mark: dict[str, str]) -> Part:
    async def launch() -> Command:
        argv = (sys.executable, "-c", STUBBORN)
        return Command(argv, plain_environment(mark), places.logs / "stubborn.log", stop_seconds=0.5)

    async def ready(child: Child | None) -> str:
        assert child
        if "on" not in child.output():
            raise NotReady("it is silent")
        return ""

    return Part(name="stubborn", launch=launch, ready=ready)


def plan(settings: Settings, places: Places, names: list[str]) -> list[Part]:
    mark = {HOME_MARK: str(places.home)}
    parts = []
    for name in names:
        match name:
            case "postgresql" if settings.database_url:
                parts.append(postgres.external(settings.database_url))
            case "postgresql":
                parts.append(postgres.Postgres.open(places, mark, durable=False).part())
            case "valkey" if settings.valkey_url:
                parts.append(valkey.external(settings.valkey_url))
            case "valkey":
                parts.append(valkey.EmbeddedValkey.open(places, mark).part())
            case "chain":
                system.check_port("127.0.0.1", settings.devnet_rpc_port, "NEOLAYER_DEVNET_RPC_PORT")
                parts.append(system.devnet(places, mark, settings.devnet_rpc_port))
            case "stubborn":
                parts.append(stubborn(places, mark))
    return parts


async def main(names: list[str]) -> None:
    settings = Settings.load(os.environ)
    places = Places.open(settings.home)
    report = JsonReport()
    await run(
        places,
        lambda: plan(settings, places, names),
        watch=report.event,
        on_leftovers=report.leftovers,
        on_ready=lambda: report.ready({}),
        on_stopping=report.stopping,
    )
    report.stopped()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1:]))
    except ServiceError as error:
        sys.exit(f"error: {error.detail}")
