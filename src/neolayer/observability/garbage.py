"""How often Python looks for garbage in cycles."""

import gc
from typing import Final

#: Containers made since the last look, and looks at the younger generation before one at the older. Python's own
#: (2,000, 10 and 10) look over what waits to be recorded again and again: 7 % of a busy API process.
THRESHOLDS: Final = (50_000, 20, 50)


def tune() -> None:
    """Leave what is there by now out of all further looks, which come less often. Call it when all is set up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
