"""Another API process beside a running system, on the same parts."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.system import System, free_port


@asynccontextmanager
async def another_api(system: System, **settings: str) -> AsyncIterator[str]:
    """Its address. ``settings``: without the prefix, in lower case."""
    port = free_port()
    given = {f"NEOLAYER_{name.upper()}": value for name, value in settings.items()}
    environ = system.environ_of_parts | {"NEOLAYER_PORT": str(port)} | given
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "api"), env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await system.eventually(lambda: answers(url))
        yield url
    finally:
        process.terminate()
        await process.wait()


async def answers(url: str) -> bool:
    try:
        async with aiohttp.request("GET", url + "/health/live") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
