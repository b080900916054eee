"""``neolayer secrets``."""

import getpass
import sys
from typing import Annotated

from cyclopts import App, Parameter

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, print_json, print_table
from neolayer.core.errors import InvalidRequest

app = App(name="secrets", help="Secrets that only functions in the enclave can read.")


@app.command(name="set")
def set_(
    name: str,
    value: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    connection: Connection = DEFAULT,
) -> None:
    """Set a secret. Functions granted to it see the new value from their next call on.

    Example: neolayer secrets set CLAIM_CODE open-sesame

    Parameters
    ----------
    name
        As in `ctx.secrets.NAME`.
    value
        Asked for when left out; read from standard input when that is a pipe.
    """
    if value is None:
        value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if not value:
        raise InvalidRequest(f"{name} would be empty; `neolayer secrets delete {name}` removes it")
    secret = call(connection, "PUT", f"/secrets/{name}", body={"value": value})
    if connection.json:
        print_json(secret)
    else:
        console.print(f"[green]✓[/] {secret['name']} version {secret['version']}, sealed by the enclave")


@app.command(name="list")
def list_(*, connection: Connection = DEFAULT) -> None:
    """List secrets; values are never shown.

    Example: neolayer secrets list
    """
    page = call(connection, "GET", "/secrets")
    if connection.json:
        print_json(page)
        return
    columns = {"name": "NAME", "version": "VERSION", "created_at": "CREATED", "updated_at": "UPDATED"}
    print_table(items(page), columns, empty="No secrets. `neolayer secrets set NAME` makes one.")


@app.command
def delete(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """Delete a secret.

    Example: neolayer secrets delete CLAIM_CODE
    """
    call(connection, "DELETE", f"/secrets/{name}")
    if connection.json:
        print_json({"deleted": name})
    else:
        console.print(f"[green]✓[/] {name} deleted")
