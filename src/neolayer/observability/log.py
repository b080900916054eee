"""Process-wide logging: one line a record on stderr."""

import logging
import sys
import time


def configure_logging(level: str) -> None:
    """``level``: debug, info, warning or error. Times are UTC."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
