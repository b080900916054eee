"""``neolayer devnet``: the private network of `neolayer up`."""

import asyncio
import logging
from typing import Any

from cyclopts import App

from neolayer.chain.devnet import Devnet
from neolayer.chain.payload import address_of, parse_account
from neolayer.chain.rpc import RpcClient
from neolayer.cli.client import DEFAULT, Connection, call, credentials, home
from neolayer.cli.output import console, print_json
from neolayer.core.errors import ServiceError
from neolayer.core.types import gas_parse, gas_text

app = App(name="devnet", help="The private Neo network of `neolayer up`.")


class NoDevnet(ServiceError):
    """No private network here: it exists where `neolayer up` runs without NEOLAYER_RPC_URLS."""

    code = "no_devnet"


@app.command
def fund(account: str, gas: str = "100", /, *, connection: Connection = DEFAULT) -> None:
    """Give GAS out of the genesis block to an account, and wait until it is there.

    Example: neolayer devnet fund default 50

    Parameters
    ----------
    account
        A wallet's name, an address `N…` or a script hash `0x…`.
    gas
        How much.
    """
    port = credentials().get("devnet_rpc_port")
    if port is None:
        raise NoDevnet
    if account.startswith("0x") or (len(account) == 34 and account.startswith("N")):
        to = parse_account(account)
    else:
        to = parse_account(call(connection, "GET", f"/wallets/{account}")["address"])

    # Its notes on tries that failed are for logs.
    logging.getLogger("stamina").addHandler(logging.NullHandler())

    async def run() -> dict[str, Any]:
        devnet = Devnet.open(home() / "devnet", port)
        rpc = RpcClient([devnet.rpc_url])
        try:
            txid = await devnet.fund(rpc, to, gas_parse(gas))
            await devnet.wait(rpc, txid)
            return {"address": address_of(to), "gas": gas_text(gas_parse(gas)), "txid": str(txid)}
        finally:
            await rpc.aclose()

    done = asyncio.run(run())
    if connection.json:
        print_json(done)
    else:
        console.print(f"[green]✓[/] {done['gas']} GAS to {done['address']}  {done['txid']}")
