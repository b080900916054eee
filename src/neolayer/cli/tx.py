"""``neolayer tx``."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from cyclopts import App

from neolayer.cli.client import DEFAULT, Client, Connection, call
from neolayer.cli.output import console, notes, print_fields, print_json, print_table
from neolayer.core.errors import InvalidRequest, NotFound, ServiceError

app = App(name="tx", help="Transactions.")
_POLL_S: Final = 0.25
_FINAL: Final = ("confirmed", "faulted", "expired", "cancelled", "rejected")


class NotConfirmed(ServiceError):
    """The transaction did not have its effect."""

    code = "not_confirmed"


@app.command
def watch(id: str | None = None, /, *, timeout_s: float = 120, connection: Connection = DEFAULT) -> None:
    """Follow a transaction until it is final. Exit code 1 unless it is confirmed.

    Example: neolayer tx watch

    Parameters
    ----------
    id
        Of the transaction; the newest one if left out.
    timeout_s
        Give up watching after so many seconds; the transaction goes on.
    """
    view = asyncio.run(_watch(id, timeout_s, connection))
    if connection.json:
        print_json(view)
    elif view["state"] in ("confirmed", "faulted"):
        print_fields(
            {
                "txid": view["txid"],
                "block": view["block"],
                "block time": view["block_time"],
                "GAS burned": f"{view['system_fee']} (system fee)",
                "network fee": f"{view['network_fee']} GAS",
            }
        )
    if view["state"] != "confirmed":
        cause = view["cause"] or {}
        raise NotConfirmed(f"the transaction is {view['state']}: {cause.get('message', 'no cause given')}")


async def _watch(id: str | None, timeout_s: float, connection: Connection) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    shown = 0
    async with Client(connection) as client:
        if id is None:
            newest = (await client.get("/transactions", limit=1))["items"]
            if not newest:
                raise NotFound("no transactions yet")
            id = newest[0]["id"]
        while True:
            events = (await client.get(f"/transactions/{id}/events"))["items"]
            if not connection.json:
                for event in events[shown:]:
                    cause = f"  {event['cause']['message']}" if event["cause"] else ""
                    console.print(f"{event['at'][11:23]}  {event['state']:10}{cause}", markup=False)
            shown = len(events)
            if events[-1]["state"] in _FINAL:
                return dict(await client.get(f"/transactions/{id}"))
            if time.monotonic() > deadline:
                raise NotConfirmed(
                    f"transaction {id} is still {events[-1]['state']} after {timeout_s:g} s; it goes on"
                )
            await asyncio.sleep(_POLL_S)


@app.command
def send(file: Path, /, *, idempotency_key: str | None = None, connection: Connection = DEFAULT) -> None:
    """Send a transaction described by a JSON file; `-` reads it from standard input.

    Example: neolayer tx send examples/transfer.json --idempotency-key payout-17

    Parameters
    ----------
    file
        {"wallet": "default", "calls": [{"contract", "method", "args": [{"type", "value"}]}]}
    idempotency_key
        The same key and file send it once only, however often you try.
    """
    try:
        body = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from None
    headers = {"idempotency-key": idempotency_key} if idempotency_key else None
    view = call(connection, "POST", "/transactions", body=body, headers=headers)
    if connection.json:
        print_json(view)
    else:
        console.print(f"[green]✓[/] {view['id']}  {view['state']}")
        notes.print(f"Follow it: neolayer tx watch {view['id']}")


@app.command(name="list")
def list_(*, state: str | None = None, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List transactions, newest first.

    Example: neolayer tx list --state confirmed
    """
    page = call(connection, "GET", "/transactions", params={"state": state, "limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {
        "id": "ID",
        "wallet": "WALLET",
        "state": "STATE",
        "block": "BLOCK",
        "system_fee": "SYSTEM FEE",
        "network_fee": "NETWORK FEE",
        "created_at": "CREATED",
    }
    print_table(page["items"], columns, empty="No transactions.")


@app.command
def show(id: str, /, *, connection: Connection = DEFAULT) -> None:
    """Show one transaction.

    Example: neolayer tx show 0199c0de-…
    """
    view = call(connection, "GET", f"/transactions/{id}")
    if connection.json:
        print_json(view)
    else:
        print_fields(view)
