"""``neolayer keys``."""

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, notes, print_fields, print_json, print_table

app = App(name="keys", help="API keys of this tenant.")


@app.command
def create(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """Make an API key; it is shown once.

    Example: neolayer keys create ci

    Parameters
    ----------
    name
        What the key is for.
    """
    key = call(connection, "POST", "/keys", body={"name": name})
    if connection.json:
        print_json(key)
        return
    console.print(key["key"])
    notes.print("Keep it now: it is stored hashed and cannot be shown again.")


@app.command(name="list")
def list_(*, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List API keys, newest first.

    Example: neolayer keys list
    """
    page = call(connection, "GET", "/keys", params={"limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {
        "id": "ID",
        "name": "NAME",
        "prefix": "KEY",
        "last_used_at": "LAST USED",
        "revoked_at": "REVOKED",
    }
    print_table(items(page), columns, empty="No keys.")


@app.command
def revoke(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Revoke an API key, at once and for good.

    Example: neolayer keys revoke 0199c0de-…

    Parameters
    ----------
    id
        As `neolayer keys list` shows it.
    """
    key = call(connection, "DELETE", f"/keys/{id}")
    if connection.json:
        print_json(key)
    else:
        print_fields({"revoked": key["name"], "at": key["revoked_at"]})
