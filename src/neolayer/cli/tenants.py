"""``neolayer tenants``: for the operator, beside the API and straight on the database."""

from typing import Annotated, Any
from uuid import UUID

from cyclopts import App, Parameter

from neolayer.cli.database import on_database
from neolayer.cli.output import console, notes, print_json
from neolayer.db.pool import Database

app = App(name="tenants", help="Tenants of this deployment (operator).")
Json = Annotated[bool, Parameter(negative="")]


@app.command
def create(name: str, /, *, json: Json = False) -> None:
    """Make a tenant with a first API key; a tenant of that name gets one more key.

    Works on NEOLAYER_DATABASE_URL, or on the embedded database of a running `neolayer up`.

    Example: neolayer tenants create acme
    """

    async def made(database: Database) -> dict[str, Any]:
        from neolayer.accounts.service import create_tenant

        tenant_id, key = await create_tenant(database, name)
        return {"tenant": name, "id": str(tenant_id), "api_key": key.key}

    tenant = on_database(made)
    if json:
        print_json(tenant)
        return
    console.print(tenant["api_key"])
    notes.print("Keep it now: it is stored hashed and cannot be shown again.")


@app.command
def pause(name: str, /, *, reason: str, json: Json = False) -> None:
    """Sign no transactions for a tenant and accept none; what is queued waits, what was sent goes its way.

    Example: neolayer tenants pause acme --reason "invoice 17 is unpaid"

    Parameters
    ----------
    reason
        Shown to the tenant.
    """

    async def paused(database: Database) -> UUID:
        from neolayer.accounts.service import pause_tenant

        return await pause_tenant(database, name, reason)

    _say({"tenant": name, "id": str(on_database(paused)), "paused": reason}, "paused", json)


@app.command
def resume(name: str, /, *, json: Json = False) -> None:
    """End a tenant's pause.

    Example: neolayer tenants resume acme
    """

    async def resumed(database: Database) -> UUID:
        from neolayer.accounts.service import resume_tenant

        return await resume_tenant(database, name)

    _say({"tenant": name, "id": str(on_database(resumed)), "paused": None}, "resumed", json)


def _say(answer: dict[str, Any], done: str, json: bool) -> None:
    if json:
        print_json(answer)
    else:
        console.print(f"[green]✓[/] {answer['tenant']} is {done}")
