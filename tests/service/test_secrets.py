"""Secrets are written, granted and used; the host never holds one in the open."""

from tests.system import System

CANARY = "canary-7f3a-never-in-the-open"


async def test_a_function_sees_the_newest_version_of_its_secret(system: System) -> None:
    await system.request("PUT", "/secrets/ROTATED", {"value": "first"})
    source = "export default (input, ctx) => ctx.secrets.ROTATED"
    await system.request("PUT", "/functions/reads-rotated", {"source": source, "secrets": ["ROTATED"]})
    assert (await system.invoke("reads-rotated"))[0] == "first"
    second = await system.request("PUT", "/secrets/ROTATED", {"value": "second"})
    assert second["version"] == 2
    assert (await system.invoke("reads-rotated"))[0] == "second"


async def test_a_secret_is_nowhere_in_the_database_logs_answers_or_metrics(system: System) -> None:
    await system.request("PUT", "/secrets/CANARY", {"value": CANARY})
    source = "export default (input, ctx) => ctx.secrets.CANARY.length"
    await system.request("PUT", "/functions/reads-canary", {"source": source, "secrets": ["CANARY"]})
    assert (await system.invoke("reads-canary"))[0] == len(CANARY)
    assert CANARY not in await system.dump()
    assert CANARY not in system.logs()
    assert CANARY not in str(await system.get("/secrets"))
    _, _, metrics = await system.raw("GET", "/metrics")
    assert CANARY not in str(metrics)


async def test_a_function_reads_only_what_it_was_granted(system: System) -> None:
    await system.request("PUT", "/secrets/NOT_GRANTED", {"value": "x"})
    await system.request(
        "PUT", "/functions/reads-too-much", {"source": "export default (input, ctx) => ctx.secrets.NOT_GRANTED"}
    )
    problem = await system.invoke_fails("reads-too-much")
    assert problem["code"] == "function_error"
    assert "NOT_GRANTED" in problem["detail"]


async def test_deploying_with_a_secret_that_does_not_exist_is_refused_and_stores_nothing(system: System) -> None:
    body = {"source": "export default () => 1", "secrets": ["NO_SUCH_SECRET"]}
    problem = await system.request("PUT", "/functions/wants-nothing", body, status=422)
    assert (problem["code"], problem["secrets"]) == ("unknown_secret", ["NO_SUCH_SECRET"])
    await system.get("/functions/wants-nothing", status=404)


async def test_a_deleted_secret_is_gone_for_functions_and_its_version_is_never_used_again(system: System) -> None:
    await system.request("PUT", "/secrets/SHORT_LIVED", {"value": "one"})
    source = "export default (input, ctx) => ctx.secrets.SHORT_LIVED"
    await system.request("PUT", "/functions/reads-short", {"source": source, "secrets": ["SHORT_LIVED"]})
    assert (await system.invoke("reads-short"))[0] == "one"
    await system.request("DELETE", "/secrets/SHORT_LIVED", status=204)
    assert (await system.invoke_fails("reads-short"))["code"] == "function_error"
    await system.request("DELETE", "/secrets/SHORT_LIVED", status=404)
    assert (await system.request("PUT", "/secrets/SHORT_LIVED", {"value": "two"}))["version"] == 2
    assert (await system.invoke("reads-short"))[0] == "two"


async def test_bad_names_and_values_are_refused(system: System) -> None:
    for name, body in (
        ("a-b", {"value": "x"}),
        ("1A", {"value": "x"}),
        ("OK", {}),
        ("OK", {"value": "x" * 70_000}),
    ):
        problem = await system.request("PUT", f"/secrets/{name}", body, status=422)
        assert problem["code"] == "invalid_request"
