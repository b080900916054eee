"""Text from outside on its way into the database."""


def storable(text: str) -> str:
    """Text as PostgreSQL's ``text`` and UTF-8 can hold it: U+0000 and lone surrogates become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
