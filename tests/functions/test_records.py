"""The quick way to write a record says the same as the usual one."""

import random
import string
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from neolayer.core.types import Principal
from neolayer.enclave import ErrorInfo, Limits, Result
from neolayer.functions.model import Bundle, ExecutionRecord
from neolayer.functions.records import line
from neolayer.functions.service import Invocation

SEED = 11
COLUMNS = list(ExecutionRecord.__struct_fields__)
ALPHABET = string.ascii_letters + string.digits + " \"{}[],:'%$;|<>\u007f€ü😀\u2028\u0085"
SPECIAL = "\\\t\n\r"


def invocation(chance: random.Random, output: str, **changes: Any) -> Invocation:
    def id() -> UUID:
        return UUID(int=chance.getrandbits(128))

    values: dict[str, Any] = {"secrets": [], "egress": [], "isolation": "version", "max_attempts": 3}
    bundle = Bundle(
        str(id()), "t", id(), f"f-{chance.randrange(9)}", chance.randrange(1, 99), "", Limits(), **values
    )
    numbers = [chance.choice((0, 1, 2**31, 2**32 - 1, chance.randrange(10**6))) for _ in range(6)]
    wall_us, cpu_us, queue_us, heap, peak, fetches = numbers
    result: dict[str, Any] = {"output": output.encode(), "error": None, "logs": b"", "cold": False}
    result |= {name: value for name, value in changes.items() if name in result}
    made = Invocation(
        cast(Any, None),
        Principal(id(), id()),
        bundle,
        b"",
        cast(Any, None),
        cast("str | None", changes.get("alias")),
    )
    made._result = Result(
        **result,
        wall_us=wall_us,
        cpu_us=cpu_us,
        queue_us=queue_us,
        heap_bytes=heap,
        peak_bytes=peak,
        fetches=fetches,
    )
    made._bytes_in = chance.randrange(10**6)
    # Whole seconds are written shorter.
    made._created = chance.choice((1_700_000_000.0, 1_700_000_000 + chance.random() * 1e8))
    return made


def columns(text: str) -> list[Any]:
    assert text.endswith("\n")
    values: list[Any] = text[:-1].split("\t")
    assert len(values) == len(COLUMNS)
    at = COLUMNS.index("created_at")
    values[at] = datetime.fromisoformat(values[at])
    return values


def test_a_plain_result_is_the_same_row_both_ways() -> None:
    chance = random.Random(SEED)  # noqa: S311
    for _ in range(2_000):
        call = invocation(chance, "".join(chance.choices(ALPHABET, k=chance.randrange(40))))
        quick = call.make_line()
        assert quick is not None
        assert columns(quick.decode()) == columns(line(call.make_record()))


def test_what_the_quick_way_cannot_write_goes_the_usual_one() -> None:
    chance = random.Random(SEED)  # noqa: S311
    for _ in range(500):
        text = chance.choices(ALPHABET, k=20)
        text[chance.randrange(20)] = chance.choice(SPECIAL)
        assert invocation(chance, "".join(text)).make_line() is None
    for change in ({"error": ErrorInfo("timeout", "late")}, {"logs": b"[1]"}, {"cold": True}, {"alias": "canary"}):
        call = invocation(chance, "1", **change)
        assert call.make_line() is None
        assert columns(line(call.make_record()))
