"""How things may be named, and the same in words: patterns as JSON Schema has them, for the API and its errors."""

from typing import Final

#: Of functions and wallets.
NAME: Final = r"^[a-z0-9][a-z0-9-]{0,62}(?!\n)$"
#: What may be called: a function's name, with `@` and a version's number, an alias or `latest` where that is
#: meant.
TARGET: Final = r"^[a-z0-9][a-z0-9-]{0,62}(@[a-z0-9][a-z0-9-]{0,62})?(?!\n)$"
#: Not to be taken for a version's number.
ALIAS: Final = r"^[a-z][a-z0-9-]{0,62}(?!\n)$"
#: As environment variables are named, so that `ctx.secrets.NAME` is plain JavaScript.
SECRET_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,63}(?!\n)$"  # noqa: S105 - a pattern
#: A host that `fetch` may reach.
HOST: Final = r"^(https?://)?(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:[0-9]{1,5})?(?!\n)$"

WORDS: Final = {
    NAME: "expected lower case letters, digits and hyphens, at most 63, not beginning with a hyphen",
    ALIAS: "expected lower case letters, digits and hyphens, at most 63, beginning with a letter",
    SECRET_NAME: "expected letters, digits and underscores, at most 64, not beginning with a digit",
    HOST: "expected a host like api.example.com, *.example.com or api.example.com:8443, "
    "or http://host:port for plain HTTP; no path",
}
