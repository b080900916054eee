"""What the launcher is told."""

import marshal
from typing import NamedTuple


class Plan(NamedTuple):
    """What to become."""

    #: Program, its arguments; as seen from the new root, if there is to be one.
    argv: list[str]
    environment: dict[str, str]
    layers: list[str]
    #: Files of control groups to write our process number into.
    groups: list[str]
    #: What of the file system stays, and where.
    binds: list[tuple[str, str]]
    read: list[str]
    execute: list[str]

    def encode(self) -> str:
        """One argument of a command line. Not JSON, which takes longer to import than all the rest."""
        return marshal.dumps(tuple(self)).hex()
