"""Sealing every secret anew under the key of the next epoch.

The tables alone say how far a rotation has come: while some secrets are of an older epoch than others, it is not
done, and the next run goes on. So it may be killed at any time. A value keeps its version and functions notice
nothing: the enclave opens ciphertexts of every epoch.
"""

from typing import Final
from uuid import UUID

import msgspec

from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave, OwnedSecret

_SQL: Final = load_queries("neolayer.secrets")
#: Of one request to the enclave and one transaction; so many of the largest secrets fit into a frame.
BATCH: Final = 100


class Rotation(msgspec.Struct, frozen=True):
    epoch: int
    resealed: int
    #: It went on with one that was not finished.
    resumed: bool
    #: ``tenant/name`` of ciphertexts that the enclave cannot open: damaged, or of another enclave.
    unreadable: list[str]


async def rotate_seal(database: Database, enclave: Enclave) -> Rotation:
    """Bring all secrets of all tenants to the newest epoch; begin a new one when they are there already."""
    row = await database.fetch_one(_SQL["epochs"])
    assert row is not None
    oldest, newest = row
    epoch = newest if oldest < newest else newest + 1
    resealed = 0
    unreadable: list[str] = []
    tenant_id, name = UUID(int=0), ""
    while True:
        params = {"epoch": epoch, "tenant_id": tenant_id, "name": name, "limit": BATCH}
        rows = await database.fetch(_SQL["of_older_epochs"], params)
        if not rows:
            return Rotation(epoch, resealed, oldest < newest, unreadable)
        tenant_id, name = rows[-1][:2]
        ciphertexts = await enclave.reseal(
            epoch, [OwnedSecret(str(row[0]), row[1], row[2], bytes(row[3])) for row in rows]
        )
        sealed = [(*row[:3], text) for row, text in zip(rows, ciphertexts, strict=True) if text is not None]
        unreadable += [f"{row[0]}/{row[1]}" for row, text in zip(rows, ciphertexts, strict=True) if text is None]
        columns = [list(column) for column in zip(*sealed, strict=True)] or [[], [], [], []]
        names = ("tenant_ids", "names", "versions", "ciphertexts")
        resealed += await database.execute(
            _SQL["store_resealed"], {"epoch": epoch, **dict(zip(names, columns, strict=True))}
        )
