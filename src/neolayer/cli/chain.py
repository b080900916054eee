"""``neolayer chain``: the Neo nodes that the service uses, and contracts that are watched."""

from typing import Any

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import console, notes, print_fields, print_json, print_table
from neolayer.core.errors import Unavailable

app = App(name="chain", help="Neo nodes that the service uses; contracts to watch.")


@app.command
def nodes(*, connection: Connection = DEFAULT) -> None:
    """Show each node: its state and why, height, speed, errors. The one that is asked first comes first.

    Example: neolayer chain nodes
    """
    page = call(connection, "GET", "/chain/nodes")
    if not isinstance(page, dict) or not isinstance(page.get("nodes"), list):
        raise Unavailable("whoever answers at that address is not this API: check --url or NEOLAYER_URL")
    if connection.json:
        print_json(page)
        return
    print_fields({name: page[name] for name in ("network", "height", "selection", "degraded")})
    columns = {
        "url": "NODE",
        "state": "STATE",
        "height": "HEIGHT",
        "lag": "LAG",
        "score": "SCORE",
        "ewma_ms": "MS",
        "p95_ms": "P95 MS",
        "errors": "ERRORS",
        "load": "IN FLIGHT",
        "user_agent": "AGENT",
        "reason": "REASON",
    }
    print_table([_row(node) for node in page["nodes"]], columns, empty="No nodes: set NEOLAYER_RPC_URLS.")
    if page["degraded"]:
        notes.print("[yellow]no node is fit: all of them are used all the same[/]")


@app.command
def watch(contract: str, /, *, event: str | None = None, connection: Connection = DEFAULT) -> None:
    """Have what a contract notifies of among your events from now on.

    Example: neolayer chain watch GasToken --event Transfer

    Parameters
    ----------
    contract
        0x… or the name of a native contract.
    event
        As the contract names it; all of them if left out.
    """
    body = {"contract": contract} | ({} if event is None else {"event": event})
    made = call(connection, "POST", "/chain/watches", body=body)
    if connection.json:
        print_json(made)
    else:
        print_fields(made)


@app.command
def watches(*, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List what is watched.

    Example: neolayer chain watches
    """
    page = call(connection, "GET", "/chain/watches", params={"limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {"id": "ID", "contract": "CONTRACT", "event": "EVENT", "events": "EVENTS", "created_at": "CREATED"}
    rows = [row | {"event": row["event"] or "all"} for row in items(page)]
    print_table(rows, columns, empty="Nothing is watched. `neolayer chain watch CONTRACT` begins.")


@app.command
def unwatch(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """End a watch; its events stay.

    Example: neolayer chain unwatch 0198c0de-5b1f-7c3a-9f51-3f6f0a0f5c11
    """
    call(connection, "DELETE", f"/chain/watches/{id}")
    if connection.json:
        print_json({"deleted": id})
    else:
        console.print(f"[green]✓[/] {id} ended")


def _row(node: dict[str, Any]) -> dict[str, Any]:
    """Speed is that of the method that the node answered most often."""
    methods = node["methods"].values()
    most = max(methods, key=lambda method: method["answers"], default={"ewma_ms": None, "p95_ms": None})
    return node | {
        "ewma_ms": most["ewma_ms"],
        "p95_ms": most["p95_ms"],
        "errors": f"{100 * node['error_rate']:.1f} %",
        "load": f"{node['in_flight']}/{node['concurrency_limit']}",
    }
