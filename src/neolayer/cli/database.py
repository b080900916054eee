"""The operator's way past the API, straight to the database."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from neolayer.cli.client import credentials
from neolayer.core.settings import BadSettings, Settings
from neolayer.db.pool import Database


def on_database[R](work: Callable[[Database], Awaitable[R]]) -> R:
    """Do something on NEOLAYER_DATABASE_URL, or on the embedded database of a running `neolayer up`.

    Raises:
        BadSettings: there is neither.
        DatabaseUnavailable: it does not answer.
    """
    url = Settings.load(os.environ).database_url or credentials().get("database_url")
    if not url:
        raise BadSettings(["NEOLAYER_DATABASE_URL: which database? Or start `neolayer up` here first"])
    # The pool would tell of each attempt.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)

    async def run() -> R:
        database = Database(url, timeout_s=3)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())
