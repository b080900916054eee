"""Versions and aliases: immutable, weighted, switched in one step, and gone back to under load."""

import asyncio
import hashlib
from collections import Counter
from typing import Any

from tests.service.beside import another_api
from tests.system import System


async def deploy(system: System, name: str, *values: Any, **settings: object) -> None:
    """A version for each value, which it returns."""
    for value in values:
        body = {"source": f"export default () => {value!r}", **settings}
        await system.request("PUT", f"/functions/{name}", body)


async def put_alias(system: System, name: str, alias: str, *, status: int = 200, **weights: int) -> Any:
    """``v3=90``: version 3 with weight 90."""
    versions = [{"version": int(version[1:]), "weight": weight} for version, weight in weights.items()]
    return await system.request("PUT", f"/functions/{name}/aliases/{alias}", {"versions": versions}, status=status)


async def called(system: System, target: str, times: int = 1) -> Counter[Any]:
    return Counter([(await system.invoke(target))[0] for _ in range(times)])


async def test_versions_are_listed_newest_first_with_their_code_hash_and_source(system: System) -> None:
    await deploy(system, "kept", 1, 2, 3)
    first = await system.get("/functions/kept/versions", limit=2)
    rest = await system.get("/functions/kept/versions", limit=2, cursor=first["next"])
    listed = first["items"] + rest["items"]
    assert [version["version"] for version in listed] == [3, 2, 1]
    assert rest["next"] is None
    assert [version["source"] for version in listed] == [None] * 3
    assert listed[0]["aliases"] == ["latest", "live"]
    for number in (1, 2, 3):
        version = await system.get(f"/functions/kept/versions/{number}")
        assert version["source"] == f"export default () => {number}"
        assert version["code_hash"] == hashlib.sha256(version["source"].encode()).hexdigest()
    assert (await system.get("/functions/kept/versions/4", status=404))["code"] == "version_not_found"
    assert (await system.get("/functions/none/versions", status=404))["code"] == "function_not_found"


async def test_a_version_and_an_alias_are_called_by_name(system: System) -> None:
    await deploy(system, "by-name", 1, 2, 3)
    await put_alias(system, "by-name", "stable", v2=1)
    assert (await system.invoke("by-name@1"))[0] == 1
    assert (await system.invoke("by-name@stable"))[0] == 2
    assert (await system.invoke("by-name@latest"))[0] == 3
    assert (await system.invoke("by-name@live"))[0] == 3
    _, execution = await system.invoke("by-name@stable")
    record = await system.get(f"/executions/{execution}")
    assert (record["function"], record["version"], record["alias"]) == ("by-name", 2, "stable")
    for target, code in (
        ("by-name@9", "version_not_found"),
        ("by-name@99999999999999999999", "version_not_found"),
        ("by-name@0", "version_not_found"),
        ("by-name@none", "alias_not_found"),
        ("by-name@", "alias_not_found"),
        ("by-name@1@2", "alias_not_found"),
        ("none@live", "function_not_found"),
    ):
        status, problem = await system.invoke_any(target)
        assert (status, problem["code"]) == (404, code), target


async def test_live_follows_deploys_until_it_is_pinned_and_again_when_the_pin_is_gone(system: System) -> None:
    await deploy(system, "pinned", 1, 2)
    assert await called(system, "pinned") == {2: 1}
    await put_alias(system, "pinned", "live", v1=1)
    assert await called(system, "pinned") == {1: 1}
    await deploy(system, "pinned", 3)
    assert await called(system, "pinned") == {1: 1}
    shown = await system.get("/functions/pinned")
    assert (shown["version"], shown["live"], shown["pinned"]) == (3, [{"version": 1, "weight": 1}], True)
    await system.request("DELETE", "/functions/pinned/aliases/live", status=204)
    assert await called(system, "pinned") == {3: 1}
    assert not (await system.get("/functions/pinned"))["pinned"]


async def test_a_held_version_is_there_and_not_live(system: System) -> None:
    await deploy(system, "held", 1)
    await deploy(system, "held", 2, hold=True)
    await deploy(system, "held", 3, hold=True)
    assert await called(system, "held") == {1: 1}
    assert await called(system, "held@latest") == {3: 1}
    await deploy(system, "held-first", 1, hold=True)
    assert await called(system, "held-first") == {1: 1}


async def test_of_as_many_calls_as_the_weights_sum_each_version_gets_its_weight(system: System) -> None:
    await deploy(system, "canary", "old", "new", "newest")
    await put_alias(system, "canary", "live", v1=17, v2=2, v3=1)
    # The process hears its own notice, too, and then deals a new round.
    await asyncio.sleep(0.5)
    # Two rounds within the time that the cache keeps them: exact, whatever the start.
    assert await called(system, "canary", 40) == {"old": 34, "new": 4, "newest": 2}
    await put_alias(system, "canary", "live", v1=500, v2=500)
    await asyncio.sleep(0.5)
    assert await called(system, "canary", 20) == {"old": 10, "new": 10}


async def test_aliases_that_cannot_be_are_refused_and_change_nothing(system: System) -> None:
    await deploy(system, "refuses", 1, 2)
    for alias, weights, status, code in (
        ("live", {"v3": 1}, 404, "version_not_found"),
        ("live", {"v1": 600, "v2": 600}, 422, "invalid_request"),
        ("live", {"v1": 0}, 422, "invalid_request"),
        ("live", {"v0": 1}, 422, "invalid_request"),
        ("live", {}, 422, "invalid_request"),
        ("latest", {"v1": 1}, 422, "invalid_request"),
        ("7", {"v1": 1}, 422, "invalid_request"),
        ("Upper", {"v1": 1}, 422, "invalid_request"),
    ):
        problem = await put_alias(system, "refuses", alias, status=status, **weights)
        assert problem["code"] == code, (alias, weights)
    twice = {"versions": [{"version": 1}, {"version": 1}]}
    await system.request("PUT", "/functions/refuses/aliases/live", twice, status=422)
    assert (await put_alias(system, "none", "live", status=404, v1=1))["code"] == "function_not_found"
    assert [alias["name"] for alias in (await system.get("/functions/refuses/aliases"))["items"]] == [
        "latest",
        "live",
    ]
    problem = await system.request("DELETE", "/functions/refuses/aliases/none", status=404)
    assert problem["code"] == "alias_not_found"


async def test_going_back_under_load_fails_no_call_and_is_seen_by_every_api_process(system: System) -> None:
    """Versions switch back and forth while two API processes are called; after each answer no old one is run."""
    await deploy(system, "switched", 1, 2)
    async with another_api(system) as other:
        path = "/api/v1/functions/switched/invoke"
        outcomes: Counter[tuple[int, Any]] = Counter()
        stopped = False

        async def load(url: str) -> None:
            while not stopped:
                status, _, answer = await system.raw("POST", path, url=url)
                outcomes[status, answer] += 1

        loads = [asyncio.create_task(load(url)) for url in (system.url, other) * 4]
        for version in (1, 2) * 8:
            await put_alias(system, "switched", "live", **{f"v{version}": 1})
            assert (await system.raw("POST", path))[2] == version

            async def seen(version: int = version) -> bool:
                return (await system.raw("POST", path, url=other))[2] == version

            await system.eventually(seen, 2)
            await asyncio.sleep(0.05)
        stopped = True
        await asyncio.gather(*loads)
    assert set(outcomes) == {(200, 1), (200, 2)}
    assert min(outcomes.values()) > 20


async def test_isolation_and_attempts_belong_to_the_version(system: System) -> None:
    await deploy(system, "settings", 1)
    await deploy(system, "settings", 2, isolation="call", max_attempts=5)
    one, two = [await system.get(f"/functions/settings/versions/{number}") for number in (1, 2)]
    assert (one["isolation"], one["max_attempts"]) == ("version", 3)
    assert (two["isolation"], two["max_attempts"]) == ("call", 5)
    counts = "let n = 0; export default () => ++n"
    for isolation, outputs in (("version", [1, 2, 3]), ("call", [1, 1, 1])):
        await system.request("PUT", "/functions/isolated", {"source": counts, "isolation": isolation})
        assert [(await system.invoke("isolated"))[0] for _ in range(3)] == outputs
    bad = {"source": "export default () => 1", "isolation": "none"}
    assert (await system.request("PUT", "/functions/settings", bad, status=422))["code"] == "invalid_request"


async def test_a_function_made_again_under_its_name_has_none_of_the_old_aliases(system: System) -> None:
    await deploy(system, "reborn", 1, 2)
    await put_alias(system, "reborn", "live", v1=1)
    await put_alias(system, "reborn", "old", v1=1)
    await system.request("DELETE", "/functions/reborn", status=204)
    await deploy(system, "reborn", "new")
    assert (await system.invoke("reborn"))[0] == "new"
    assert (await system.invoke_any("reborn@old"))[0] == 404
