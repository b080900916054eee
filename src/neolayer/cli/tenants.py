"""``neolayer tenants``: for the operator, beside the API and straight on the database."""

import asyncio
import logging
import os
from typing import Annotated, Any

from cyclopts import App, Parameter

from neolayer.cli.client import credentials
from neolayer.cli.output import console, notes, print_json
from neolayer.core.settings import BadSettings, Settings

app = App(name="tenants", help="Tenants of this deployment (operator).")


@app.command
def create(name: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Make a tenant with a first API key; a tenant of that name gets one more key.

    Works on NEOLAYER_DATABASE_URL, or on the embedded database of a running `neolayer up`.

    Example: neolayer tenants create acme
    """
    url = Settings.load(os.environ).database_url or credentials().get("database_url")
    if not url:
        raise BadSettings(["NEOLAYER_DATABASE_URL: which database? Or start `neolayer up` here first"])
    made = asyncio.run(_create(url, name))
    if json:
        print_json(made)
        return
    console.print(made["api_key"])
    notes.print("Keep it now: it is stored hashed and cannot be shown again.")


async def _create(url: str, name: str) -> dict[str, Any]:
    from neolayer.accounts.service import create_tenant
    from neolayer.db.pool import Database

    # The pool would tell of each attempt.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    database = Database(url, timeout_s=3)
    await database.open()
    try:
        tenant_id, key = await create_tenant(database, name)
        return {"tenant": name, "id": str(tenant_id), "api_key": key.key}
    finally:
        await database.close()
