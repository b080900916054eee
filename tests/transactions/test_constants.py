"""Calls that share their constants do what they do alone, in fewer bytes. On a real node."""

import base64
import random
from typing import Any

from neolayer.chain.scripts import GAS, NEO, build_script, transfer
from neolayer.core.types import Hash160
from neolayer.transactions.constants import shared
from neolayer.transactions.grouping import OVERHEAD_BYTES, isolated, joined, measured, metered, outcomes
from tests.chain.conftest import Key, Node
from tests.transactions.test_pipeline import stranger

SEED = 20261125


def serialize(argument: dict[str, Any]) -> dict[str, Any]:
    return {"contract": "StdLib", "method": "serialize", "args": [argument]}


def arguments(chance: random.Random) -> dict[str, Any]:
    """Of few different values, so that many repeat."""
    match chance.randrange(6):
        case 0:
            return {"type": "Integer", "value": str(chance.choice((-1, 0, 16, 17, 300, 2**40, 2**100, 2**200)))}
        case 1:
            data = bytes([chance.randrange(3)]) * chance.choice((0, 1, 2, 300, 7_000))
            return {"type": "ByteArray", "value": base64.b64encode(data).decode()}
        case 2:
            return {"type": "Boolean", "value": chance.random() < 0.5}
        case 3:
            return {"type": "Array", "value": [arguments(chance) for _ in range(chance.randrange(3))]}
        case 4:
            key = {"type": "String", "value": chance.choice(("key", "other"))}
            return {"type": "Map", "value": [{"key": key, "value": arguments(chance)}]}
        case _:
            return {"type": "Any", "value": None}


async def test_seeded_calls_have_the_results_that_they_have_alone(node: Node, rich: Key) -> None:
    chance = random.Random(SEED)  # noqa: S311 - replayable
    for _ in range(10):
        scripts = [build_script([serialize(arguments(chance))]) for _ in range(chance.randrange(2, 20))]
        alone = [await node.rpc.invoke_script(script, [rich.signer]) for script in scripts]
        together = await node.rpc.invoke_script(joined(scripts), [rich.signer])
        assert together.halted
        assert [one.item for one in outcomes(together.stack)] == [one.stack[0] for one in alone]
        assert all(one.succeeded for one in outcomes(together.stack))
        assert len(joined(scripts)) <= len(b"".join(map(isolated, scripts))) + 1
        used = measured((await node.rpc.invoke_script(metered(scripts), [rich.signer])).stack)
        assert len(used) == len(scripts)


async def test_transfers_share_all_but_receiver_and_amount(node: Node, rich: Key) -> None:
    receivers = [stranger() for _ in range(200)]
    scripts = [build_script([transfer(GAS, rich.account, to, 100_000 + n)]) for n, to in enumerate(receivers)]
    script = joined(scripts)
    assert len(script) / len(scripts) < 51
    result = await node.rpc.invoke_script(script, [rich.signer])
    assert [one.succeeded for one in outcomes(result.stack)] == [True] * 200
    moved = [note["state"]["value"] for note in result.notifications if note["eventname"] == "Transfer"]
    assert [(Hash160(base64.b64decode(to["value"])), int(amount["value"])) for _, to, amount in moved] == [
        (to, 100_000 + n) for n, to in enumerate(receivers)
    ]


async def test_more_constants_than_there_are_short_instructions_for(node: Node, rich: Key) -> None:
    receivers = [stranger() for _ in range(300)]
    scripts = [build_script([transfer(token, rich.account, to, 0)]) for to in receivers for token in (GAS, NEO)]
    # The virtual machine holds 2,048 items, and each call leaves two.
    for some in (scripts[:40], scripts[100:500]):
        result = await node.rpc.invoke_script(joined(some), [rich.signer])
        assert [one.succeeded for one in outcomes(result.stack)] == [True] * len(some)


async def test_a_call_that_throws_leaves_the_constants_to_the_others(node: Node, rich: Key) -> None:
    bad = build_script([{"contract": "StdLib", "method": "atoi", "args": [{"type": "String", "value": "none"}]}])
    good = build_script([transfer(GAS, rich.account, stranger(), 1)])
    result = await node.rpc.invoke_script(joined([good, good]), [rich.signer])
    assert [one.succeeded for one in outcomes(result.stack)] == [True, True]
    # Native contracts fail past every TRY block: the group is then taken apart.
    assert not (await node.rpc.invoke_script(joined([good, bad, good]), [rich.signer])).halted


def test_what_does_not_repeat_or_cannot_be_read_stays_as_it_is() -> None:
    one = build_script([serialize({"type": "Integer", "value": "300"})])
    assert shared([one]) == (b"", [one])
    assert shared([]) == (b"", [])
    jump = b"\x22\x02" + one
    assert shared([one, one, jump]) == (b"", [one, one, jump])
    cut = one[:-3]
    assert shared([one, one, cut]) == (b"", [one, one, cut])


def test_no_script_grows() -> None:
    chance = random.Random(SEED)  # noqa: S311 - replayable
    for _ in range(200):
        scripts = [build_script([serialize(arguments(chance))]) for _ in range(chance.randrange(1, 30))]
        head, rest = shared(scripts)
        assert len(head) + sum(map(len, rest)) <= sum(map(len, scripts))
        assert all(len(isolated(script)) - len(script) <= OVERHEAD_BYTES for script in rest)
