"""Named SQL: each room keeps its statements in a ``queries.sql`` beside its ``store.py``."""

import re
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(rb"^-- name: (\w+)\s*$", re.MULTILINE)


def load_queries(package: str) -> dict[str, bytes]:
    """Statements of ``queries.sql`` in a package, by the name in the ``-- name: …`` line above each.

    Bytes, because psycopg takes a `str` only where it can see that it is a literal.
    """
    text = files(package).joinpath("queries.sql").read_bytes()
    parts = _NAME.split(text)[1:]
    names = [name.decode() for name in parts[::2]]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/queries.sql names a statement twice")
    return dict(zip(names, (body.strip() for body in parts[1::2]), strict=True))
