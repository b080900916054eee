"""What PostgreSQL's planner knows of young tables.

Plans made while a table was empty stay with the prepared statements until it is analysed, which autovacuum thinks
of once a minute: a deployment that gets its first ten thousand transactions within that minute would read whole
tables for each of them.
"""

import asyncio
import logging
from typing import Final

import psycopg
from psycopg import sql

from neolayer.core.errors import ServiceError
from neolayer.db.pool import Database

_log = logging.getLogger(__name__)
LOOK_S: Final = 1.0
#: Larger tables change slowly enough for autovacuum; rows.
YOUNG: Final = 200_000
#: A table is looked at anew when so many rows and this part of it were written since the last time.
CHANGED_ROWS: Final = 500
CHANGED_PART: Final = 0.5
_DUE: Final = b"""
SELECT relid::regclass::text FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE pg_get_userbyid(c.relowner) = current_user
  AND n_live_tup < %(young)s AND n_mod_since_analyze > %(rows)s + %(part)s * n_live_tup
"""


async def keep_statistics(database: Database) -> None:
    """Analyse young tables that changed much, until cancelled. Any number of processes may do this at once."""
    params = {"young": YOUNG, "rows": CHANGED_ROWS, "part": CHANGED_PART}
    while True:
        try:
            for (table,) in await database.fetch(_DUE, params):
                # One that another process looks at just now is left to it.
                statement = sql.SQL("ANALYZE (SKIP_LOCKED) {}").format(sql.SQL(table))
                await database.execute(statement.as_bytes())
        except (ServiceError, psycopg.Error) as error:
            # Among others a table that was dropped just now.
            _log.warning("young tables are not analysed: %s", error)
        await asyncio.sleep(LOOK_S)
