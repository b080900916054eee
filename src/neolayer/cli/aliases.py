"""``neolayer functions versions``, ``rollback``, ``promote`` and ``alias``."""

from typing import Any

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, notes, print_json, print_table
from neolayer.core.errors import Conflict, InvalidRequest

app = App(name="alias", help="Names for versions, with weights; `live` is what a function's plain name calls.")


def versions(name: str, /, *, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List a function's versions, newest first, and which are live.

    Example: neolayer functions versions top-up
    """
    page = call(connection, "GET", f"/functions/{name}/versions", params={"limit": limit})
    if connection.json:
        print_json(page)
        return
    rows = [item | {"code": item["code_hash"][:16]} for item in items(page)]
    columns = {"version": "VERSION", "aliases": "ALIASES", "code": "CODE", "created_at": "DEPLOYED"}
    print_table(rows, columns, empty="No versions.")


def rollback(name: str, /, *, to: int | None = None, connection: Connection = DEFAULT) -> None:
    """Make an earlier version live, at once. Deploys do not change what is live until you promote one.

    Example: neolayer functions rollback top-up

    Parameters
    ----------
    to
        This version; otherwise the one before the newest that is live.
    """
    if to is None:
        live = call(connection, "GET", f"/functions/{name}")["live"]
        to = max(share["version"] for share in live) - 1
        if to == 0:
            raise Conflict(f"version 1 of {name} is live: there is none before it")
    _put(name, "live", {to: 1}, connection)


def promote(name: str, /, *, version: int | None = None, connection: Connection = DEFAULT) -> None:
    """Make the latest version live, and every one that is deployed from now on.

    Example: neolayer functions promote top-up

    Parameters
    ----------
    version
        Make this version live instead, and no other by itself.
    """
    if version is not None:
        _put(name, "live", {version: 1}, connection)
        return
    call(connection, "DELETE", f"/functions/{name}/aliases/live")
    function = call(connection, "GET", f"/functions/{name}")
    if connection.json:
        print_json(function)
    else:
        console.print(f"[green]✓[/] {name} version {function['version']} is live, and so is what is deployed next")


@app.command(name="set")
def set_(name: str, alias: str, /, *weights: str, connection: Connection = DEFAULT) -> None:
    """Make an alias or switch it. `live` may be set, too: part of the calls can try a new version.

    Example: neolayer functions alias set top-up live 3=90 4=10

    Parameters
    ----------
    weights
        A version's number, or several with their weights as VERSION=WEIGHT.
    """
    given: dict[int, int] = {}
    for text in weights:
        version, _, weight = text.partition("=")
        if not version.isdecimal() or not (weight or "1").isdecimal():
            raise InvalidRequest(f"{text!r} is neither a version like 3 nor a version and its weight like 3=90")
        given[int(version)] = int(weight or "1")
    if not given:
        raise InvalidRequest("which version? Such as: neolayer functions alias set top-up live 3=90 4=10")
    _put(name, alias, given, connection)


@app.command(name="list")
def list_(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """List the aliases of a function.

    Example: neolayer functions alias list top-up
    """
    page = call(connection, "GET", f"/functions/{name}/aliases")
    if connection.json:
        print_json(page)
        return
    rows = [item | {"versions": shares(item["versions"])} for item in items(page)]
    columns = {"name": "NAME", "versions": "VERSIONS", "pinned": "PINNED", "updated_at": "SINCE"}
    print_table(rows, columns, empty="No aliases.")


@app.command
def delete(name: str, alias: str, /, *, connection: Connection = DEFAULT) -> None:
    """Delete an alias. Deleting `live` makes it follow the latest version.

    Example: neolayer functions alias delete top-up stable
    """
    call(connection, "DELETE", f"/functions/{name}/aliases/{alias}")
    if connection.json:
        print_json({"deleted": alias})
    else:
        console.print(f"[green]✓[/] {name}@{alias} deleted")


def _put(name: str, alias: str, weights: dict[int, int], connection: Connection) -> None:
    versions = [{"version": version, "weight": weight} for version, weight in weights.items()]
    view = call(connection, "PUT", f"/functions/{name}/aliases/{alias}", body={"versions": versions})
    if connection.json:
        print_json(view)
        return
    console.print(f"[green]✓[/] {name}@{alias} is {shares(view['versions'])}")
    if alias == "live":
        notes.print(f"Deploys do not change that any more, until: neolayer functions promote {name}")


def shares(versions: list[dict[str, Any]]) -> str:
    """In words: ``3`` or ``3 90 %, 4 10 %``."""
    if len(versions) == 1:
        return str(versions[0]["version"])
    whole = sum(share["weight"] for share in versions)
    return ", ".join(f"{share['version']} {100 * share['weight'] / whole:g} %" for share in versions)
