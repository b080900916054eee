"""``neolayer wallets``."""

from cyclopts import App

from neolayer.cli.client import DEFAULT, Connection, call, items
from neolayer.cli.output import print_fields, print_json, print_table

app = App(name="wallets", help="Wallets whose keys live in the enclave.")


@app.command
def create(name: str, /, *, connection: Connection = DEFAULT) -> None:
    """Make a wallet.

    Example: neolayer wallets create payouts
    """
    _show(call(connection, "POST", "/wallets", body={"name": name}), connection)


@app.command(name="list")
def list_(*, limit: int = 20, connection: Connection = DEFAULT) -> None:
    """List wallets with their GAS.

    Example: neolayer wallets list
    """
    page = call(connection, "GET", "/wallets", params={"limit": limit})
    if connection.json:
        print_json(page)
        return
    columns = {"name": "NAME", "address": "ADDRESS", "gas": "GAS", "created_at": "CREATED"}
    print_table(items(page), columns, empty="No wallets. `neolayer wallets create NAME` makes one.")


@app.command
def show(wallet: str, /, *, connection: Connection = DEFAULT) -> None:
    """Show one wallet.

    Example: neolayer wallets show default

    Parameters
    ----------
    wallet
        Its name or id.
    """
    _show(call(connection, "GET", f"/wallets/{wallet}"), connection)


@app.command
def pause(wallet: str, /, *, reason: str, connection: Connection = DEFAULT) -> None:
    """Sign nothing with a wallet until it is resumed; what was sent goes its way.

    Example: neolayer wallets pause payouts --reason "key under review"

    Parameters
    ----------
    wallet
        Its name or id.
    reason
        Shown to whoever uses it.
    """
    _show(call(connection, "POST", f"/wallets/{wallet}/pause", body={"reason": reason}), connection)


@app.command
def resume(wallet: str, /, *, connection: Connection = DEFAULT) -> None:
    """End a wallet's pause.

    Example: neolayer wallets resume payouts

    Parameters
    ----------
    wallet
        Its name or id.
    """
    _show(call(connection, "POST", f"/wallets/{wallet}/resume"), connection)


def _show(wallet: dict[str, object], connection: Connection) -> None:
    if connection.json:
        print_json(wallet)
    else:
        paused = wallet.pop("paused")
        shown = wallet | {"gas": wallet["gas"] or "unknown: no node answers"}
        if isinstance(paused, dict):
            shown["paused"] = f"{paused['reason']} (since {paused['since']})"
        print_fields(shown)
