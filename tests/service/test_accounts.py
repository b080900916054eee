"""API keys: shown once, stored hashed, revocable, and good for their own tenant only."""

from tests.system import System


async def test_a_key_works_until_it_is_revoked(system: System) -> None:
    created = await system.post("/keys", {"name": "temporary"}, status=201)
    assert created["key"].startswith("nsl_")
    assert len(created["key"]) >= 4 + 43  # 256 bits in base64url
    assert (await system.get("/keys", key=created["key"]))["items"]

    revoked = await system.request("DELETE", f"/keys/{created['id']}")
    assert revoked["revoked_at"] is not None
    problem = await system.get("/keys", key=created["key"], status=401)
    assert problem["code"] == "unauthenticated"


async def test_the_database_holds_no_key(system: System) -> None:
    created = await system.post("/keys", {"name": "hidden"}, status=201)
    assert created["key"] not in await system.dump()
    listed = (await system.get("/keys"))["items"]
    assert created["key"] not in str(listed)
    assert created["key"].startswith(next(key["prefix"] for key in listed if key["id"] == created["id"]))


async def test_use_of_a_key_is_recorded(system: System) -> None:
    created = await system.post("/keys", {"name": "used"}, status=201)
    await system.get("/wallets", key=created["key"])

    async def last_used() -> object:
        items = (await system.get("/keys", limit=100))["items"]
        return next(key["last_used_at"] for key in items if key["id"] == created["id"])

    await system.eventually(last_used, timeout_s=15)


async def test_no_key_and_a_wrong_key_are_401_with_a_hint(system: System) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Bearer nsl_wrong"}, {"authorization": "Basic eDp5"}):
        status, answer_headers, problem = await system.raw("GET", "/api/v1/keys", headers=headers)
        assert (status, problem["code"]) == (401, "unauthenticated")
        assert answer_headers["www-authenticate"] == "Bearer"


async def test_what_belongs_to_another_tenant_is_404_on_every_route(system: System) -> None:
    other = await system.new_tenant("someone-else")
    key = await system.post("/keys", {"name": "mine"}, status=201)
    wallet = await system.post("/wallets", {"name": "mine-only"}, status=201)
    await system.request("PUT", "/functions/mine-only", {"source": "export default () => 1"})
    execution = (await system.invoke("mine-only"))[1]
    await system.request("PUT", "/secrets/MINE_ONLY", {"value": "x"})
    transaction = await system.transfer("default", wallet["address"], 1)

    for method, path in (
        ("DELETE", f"/keys/{key['id']}"),
        ("GET", f"/wallets/{wallet['id']}"),
        ("GET", "/wallets/mine-only"),
        ("GET", "/functions/mine-only"),
        ("DELETE", "/functions/mine-only"),
        ("POST", "/functions/mine-only/invoke"),
        ("GET", f"/executions/{execution}"),
        ("GET", f"/executions/{execution}/logs"),
        ("DELETE", "/secrets/MINE_ONLY"),
        ("GET", f"/transactions/{transaction['id']}"),
        ("GET", f"/transactions/{transaction['id']}/events"),
    ):
        problem = await system.request(method, path, key=other, status=404)
        assert problem["code"].endswith("not_found"), (method, path, problem)
    for path in ("/wallets", "/functions", "/executions", "/secrets", "/transactions"):
        assert (await system.get(path, key=other))["items"] == []
    spend = {"wallet": wallet["id"], "calls": [{"contract": "GasToken", "method": "symbol"}]}
    assert (await system.post("/transactions", spend, key=other, status=404))["code"] == "wallet_not_found"


async def test_lists_come_in_pages(system: System) -> None:
    for number in range(5):
        await system.post("/wallets", {"name": f"paged-{number}"}, status=201)
    seen, cursor = [], None
    while True:
        page = await system.get("/wallets", limit=2, cursor=cursor)
        seen += [wallet["id"] for wallet in page["items"]]
        assert len(page["items"]) <= 2
        if (cursor := page["next"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen, reverse=True)
    assert {wallet["id"] for wallet in (await system.get("/wallets", limit=100))["items"]} == set(seen)


async def test_bad_requests_have_stable_codes(system: System) -> None:
    cases = [
        ("POST", "/api/v1/keys", b'{"name":', 400, "malformed_json"),
        ("POST", "/api/v1/keys", b'{"name": 1}', 422, "invalid_request"),
        ("POST", "/api/v1/keys", b'{"nom": "x"}', 422, "invalid_request"),
        ("POST", "/api/v1/keys", b'{"name": "' + b"x" * 1_100_000 + b'"}', 413, "body_too_large"),
        ("POST", "/api/v1/wallets", b'{"name": "No Good"}', 422, "invalid_request"),
        ("GET", "/api/v1/keys?limit=1000", b"", 422, "invalid_request"),
        ("GET", "/api/v1/keys?cursor=!", b"", 422, "invalid_request"),
        ("GET", "/api/v1/nothing", b"", 404, "not_found"),
        ("PATCH", "/api/v1/keys", b"", 405, "method_not_allowed"),
    ]
    for method, path, body, status, code in cases:
        got, headers, problem = await system.raw(method, path, body=body)
        assert (got, problem["code"]) == (status, code), (method, path, problem)
        assert headers["content-type"] == "application/problem+json"
