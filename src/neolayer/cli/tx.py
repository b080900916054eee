"""``neolayer tx``."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from neolayer.cli.client import DEFAULT, Client, Connection, call, items
from neolayer.cli.output import console, notes, print_fields, print_json, print_table
from neolayer.core.errors import InvalidRequest, NotFound, ServiceError
from neolayer.core.types import gas_parse

app = App(name="tx", help="Transactions.")
#: One request of `watch` waits for a change this long at most; seconds.
_WAIT_S: Final = 20
State = Literal["queued", "signed", "sent", "confirmed", "faulted", "expired", "rejected", "cancelled"]
Speed = Literal["economy", "standard", "fast", "urgent"]
_FINAL: Final = ("confirmed", "faulted", "expired", "rejected", "cancelled")


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
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotConfirmed(
                    f"transaction {id} is still {events[-1]['state']} after {timeout_s:g} s; it goes on"
                )
            wait = max(min(left, _WAIT_S), 0.1)
            await client.get(f"/transactions/{id}", wait=f"{wait:.1f}", after=events[-1]["number"])


@app.command
def transfer(
    to: str,
    gas: str,
    /,
    *,
    wallet: str = "default",
    max_fee: str | None = None,
    idempotency_key: str | None = None,
    connection: Connection = DEFAULT,
) -> None:
    """Send GAS from a wallet.

    Example: neolayer tx transfer Nadia4GBzUavRs1T6S9UYk8BXkPG6xVZj8 1.5

    Parameters
    ----------
    to
        Address `N…` or script hash `0x…`.
    gas
        How much.
    wallet
        Name or id of the wallet that pays.
    max_fee
        Most GAS for system fee and network fee together.
    idempotency_key
        The same key sends it once only, however often you try.
    """
    sender = call(connection, "GET", f"/wallets/{wallet}")["address"]
    args = [
        {"type": "Hash160", "value": sender},
        {"type": "Hash160", "value": to},
        {"type": "Integer", "value": str(gas_parse(gas))},
        {"type": "Any", "value": None},
    ]
    body: dict[str, Any] = {
        "wallet": wallet,
        "calls": [{"contract": "GasToken", "method": "transfer", "args": args}],
        "max_fee": max_fee,
    }
    _submit(body, idempotency_key, connection)


@app.command
def send(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    idempotency_key: str | None = None,
    connection: Connection = DEFAULT,
) -> None:
    """Send a transaction described by a JSON file; `-` reads it from standard input.

    Example: neolayer tx send payout.json --idempotency-key payout-17

    Parameters
    ----------
    file
        {"wallet": "default", "calls": [{"contract", "method", "args": [{"type", "value"}]}]}
    idempotency_key
        The same key and file send it once only, however often you try.
    """
    try:
        body = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        name = "standard input" if file == "-" else file
        raise InvalidRequest(f"{name} is not JSON: {error}") from None
    _submit(body, idempotency_key, connection)


def _submit(body: Any, idempotency_key: str | None, connection: Connection) -> None:
    headers = {"idempotency-key": idempotency_key} if idempotency_key else None
    view = call(connection, "POST", "/transactions", body=body, headers=headers)
    if connection.json:
        print_json(view)
    else:
        console.print(f"[green]✓[/] {view['id']}  {view['state']}")
        notes.print(f"Follow it: neolayer tx watch {view['id']}")


@app.command
def cancel(id: str, /, *, max_fee: str | None = None, connection: Connection = DEFAULT) -> None:
    """Cancel a transaction: at once while it is queued; later by another that takes its place, if that is in time.

    Example: neolayer tx cancel 0199c0de-…

    Parameters
    ----------
    max_fee
        Most GAS that cancelling may cost.
    """
    _replace(id, "cancel", {"max_fee": max_fee}, connection)


@app.command
def speed_up(
    id: str, /, *, speed: Speed = "fast", max_fee: str | None = None, connection: Connection = DEFAULT
) -> None:
    """Pay more for a transaction that waits for its block.

    Example: neolayer tx speed-up 0199c0de-… --speed urgent

    Parameters
    ----------
    speed
        Which of the fees that recent full blocks took it should pay.
    max_fee
        Replaces the transaction's own; GAS.
    """
    _replace(id, "speed-up", {"speed": speed, "max_fee": max_fee}, connection)


def _replace(id: str, how: str, body: dict[str, Any], connection: Connection) -> None:
    view = call(connection, "POST", f"/transactions/{id}/{how}", body=body)
    if connection.json:
        print_json(view)
        return
    cause = f": {view['cause']['message']}" if view["cause"] else ""
    console.print(f"[green]✓[/] {view['id']}  {view['state']}{cause}")
    if view["state"] not in _FINAL:
        notes.print(f"Follow it: neolayer tx watch {view['id']}")


@app.command(name="list")
def list_(*, state: State | None = None, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List transactions, newest first.

    Example: neolayer tx list --state confirmed
    """
    page = call(connection, "GET", "/transactions", params={"state": state, "limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {
        "id": "ID",
        "state": "STATE",
        "block": "BLOCK",
        "system_fee": "SYSTEM FEE",
        "created_at": "CREATED",
    }
    print_table(items(page), columns, empty="No transactions.")


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
