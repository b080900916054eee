"""``neolayer chain``: the Neo nodes that the service uses."""

from typing import Any

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call
from neolayer.cli.output import notes, print_fields, print_json, print_table
from neolayer.core.errors import Unavailable

app = App(name="chain", help="The Neo nodes that the service uses.")


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
