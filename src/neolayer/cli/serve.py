"""``neolayer api``, ``neolayer worker`` and ``neolayer migrate``: the processes, each apart."""

import asyncio
import os
import signal

from cyclopts import App

from neolayer.core.settings import BadSettings, Settings

app = App()


def require_parts(settings: Settings) -> None:
    """
    Raises:
        BadSettings: names what this process cannot run without.
    """
    needed = ("database_url", "valkey_url", "rpc_urls")
    if missing := [f"NEOLAYER_{name.upper()}" for name in needed if not getattr(settings, name)]:
        hint = "is needed here; `neolayer up` starts embedded parts and sets it"
        raise BadSettings([f"{name} {hint}" for name in missing])


@app.command
def api() -> None:
    """Serve the HTTP API. Settings come from the environment.

    Example: NEOLAYER_DATABASE_URL=… NEOLAYER_VALKEY_URL=… NEOLAYER_RPC_URLS=… neolayer api
    """
    from granian import Granian
    from granian.constants import Interfaces, Loops

    settings = Settings.load(os.environ)
    require_parts(settings)
    Granian(
        "neolayer.app:create_api",
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        workers=settings.api_workers,
        workers_kill_timeout=3,
        respawn_failed_workers=True,
        log_access=False,
    ).serve()


@app.command
def worker() -> None:
    """Run asynchronous executions; prepare, send and confirm transactions. Settings come from the environment.

    Example: NEOLAYER_DATABASE_URL=… NEOLAYER_VALKEY_URL=… NEOLAYER_RPC_URLS=… neolayer worker
    """
    import uvloop

    from neolayer.app import run_worker
    from neolayer.observability.log import configure_logging

    settings = Settings.load(os.environ)
    require_parts(settings)
    configure_logging(settings.log_level)

    async def run() -> None:
        task = asyncio.ensure_future(run_worker(settings))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    uvloop.run(run())


@app.command
def migrate() -> None:
    """Bring the database's schema to this version.

    Example: NEOLAYER_DATABASE_URL=… neolayer migrate
    """
    from neolayer.db.migrations import migrate as apply

    settings = Settings.load(os.environ)
    if not settings.database_url:
        raise BadSettings(["NEOLAYER_DATABASE_URL: which database?"])
    applied = asyncio.run(apply(settings.database_url))
    for migration in applied:
        print(f"applied {migration.number:04d}_{migration.name}")
    if not applied:
        print("nothing to apply")
