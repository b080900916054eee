"""``neolayer workers``: for the operator, straight on the database."""

from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import NonNegativeInt

from neolayer.cli.database import on_database
from neolayer.cli.output import console, print_json
from neolayer.db.pool import Database

app = App(name="workers", help="Worker processes of this deployment (operator).")
Json = Annotated[bool, Parameter(negative="")]


@app.command
def scale(size: NonNegativeInt, /, *, json: Json = False) -> None:
    """Have every worker process work on so many batches of transactions at a time, from now on.

    For more processes start more `neolayer worker`. What is being worked on is finished first.

    Example: neolayer workers scale 8

    Parameters
    ----------
    size
        0 to 256; 0 stops signing and sending, confirming goes on.
    """

    async def scaled(database: Database) -> None:
        from neolayer.transactions.pool import scale

        await scale(database, size)

    on_database(scaled)
    _say(size, json)


@app.command
def show(*, json: Json = False) -> None:
    """Show what `scale` was last told.

    Example: neolayer workers show
    """

    async def size(database: Database) -> int | None:
        from neolayer.transactions.pool import pool_size

        return await pool_size(database)

    _say(on_database(size), json)


def _say(size: int | None, json: bool) -> None:
    if json:
        print_json({"transactions": size})
    else:
        told = "what its NEOLAYER_TRANSACTION_WORKERS says" if size is None else size
        console.print(f"batches of transactions at a time in each worker process: {told}")
