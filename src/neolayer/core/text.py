"""Text from outside on its way into the database, and what errors of connections say."""

import os


def storable(text: str) -> str:
    """Text as PostgreSQL's ``text`` and UTF-8 can hold it: U+0000 and lone surrogates become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def connection_reason(error: OSError) -> str:
    """Why a connection was not made, in the operating system's words: asyncio's hold the address once more."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
