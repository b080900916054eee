"""``neolayer api``, ``neolayer worker`` and ``neolayer migrate``: the processes, each apart."""

import asyncio
import os
import signal

from cyclopts import App

from neolayer.core.settings import BadSettings, Settings

app = App()
#: Idle connections are closed after this time; longer than most load balancers keep theirs, so that these close
#: first and never send into a connection that is just closing; seconds.
KEEP_ALIVE_S = 75
#: For requests that run when the API is told to stop; seconds.
SHUTDOWN_S = 3


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
    import uvicorn

    from neolayer.functions.endpoint import InvokeProtocol

    settings = Settings.load(os.environ)
    require_parts(settings)
    uvicorn.run(
        "neolayer.app:create_api",
        factory=True,
        host=settings.host,
        port=settings.port,
        http=InvokeProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        workers=settings.api_workers,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


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
