"""Transactions through the API, checked at the node by raw JSON-RPC."""

import asyncio
import json
import sys

from tests.system import RECEIVER, System, new_receiver


async def test_a_transfer_is_confirmed_and_the_chain_agrees(system: System) -> None:
    receiver = new_receiver()
    accepted = await system.transfer("default", receiver, 12345)
    assert accepted["state"] == "queued"
    view = await system.settled(accepted["id"])
    assert (view["state"], view["result"]["vmstate"]) == ("confirmed", "HALT")
    assert await system.gas_of(receiver) == 12345

    on_chain = await system.rpc("getrawtransaction", view["txid"], 1)
    block = await system.rpc("getblock", view["block"], 1)
    assert view["txid"] in [transaction["hash"] for transaction in block["tx"]]
    assert on_chain["validuntilblock"] == view["valid_until_block"]
    assert on_chain["sysfee"] == str(round(float(view["system_fee"]) * 10**8))
    events = (await system.get(f"/transactions/{view['id']}/events"))["items"]
    assert [event["state"] for event in events] == ["queued", "signed", "sent", "confirmed"]
    assert [event["number"] for event in events] == [1, 2, 3, 4]


async def test_one_idempotency_key_by_100_clients_at_once_has_one_effect(system: System) -> None:
    receiver = new_receiver()
    answers = await asyncio.gather(
        *(system.transfer("default", receiver, 777, idempotency_key="hundred", status=None) for _ in range(100))
    )
    assert len({answer["id"] for answer in answers}) == 1
    assert (await system.settled(answers[0]["id"]))["state"] == "confirmed"
    assert await system.gas_of(receiver) == 777


async def test_an_idempotency_key_with_another_body_is_409(system: System) -> None:
    first = await system.transfer("default", RECEIVER, 1, idempotency_key="twice")
    again = await system.transfer("default", RECEIVER, 1, idempotency_key="twice", status=200)
    assert again["id"] == first["id"]
    problem = await system.transfer("default", RECEIVER, 2, idempotency_key="twice", status=409)
    assert problem["code"] == "idempotency_mismatch"


async def test_a_function_sends_once_per_call_and_the_intent_names_its_execution(system: System) -> None:
    source = """export default async (input, ctx) => {
      const wallet = await ctx.neo.wallet();
      const call = {contract: 'GasToken', method: 'transfer', args: [
        {type: 'Hash160', value: wallet.address}, {type: 'Hash160', value: input.to},
        {type: 'Integer', value: input.amount}, {type: 'Any', value: null}]};
      return (await ctx.neo.send({calls: [call]})).id;
    }"""
    await system.request("PUT", "/functions/pays", {"source": source})
    receiver = new_receiver()
    id, execution = await system.invoke("pays", {"to": receiver, "amount": 31})
    view = await system.settled(id)
    assert (view["state"], view["execution"]) == ("confirmed", execution)
    assert await system.gas_of(receiver) == 31


async def test_what_would_fault_is_refused_with_the_exception_and_stores_nothing(system: System) -> None:
    newest = (await system.get("/transactions", limit=1))["items"]
    call = {"contract": "PolicyContract", "method": "setFeePerByte", "args": [{"type": "Integer", "value": 1}]}
    problem = await system.post("/transactions", {"calls": [call]}, status=422)
    assert problem["code"] == "simulation_faulted", problem
    assert "committee" in problem["exception"]
    assert (await system.get("/transactions", limit=1))["items"] == newest


async def test_what_no_contract_can_take_is_refused_before_it_is_tried(system: System) -> None:
    newest = (await system.get("/transactions", limit=1))["items"]
    number, account = {"type": "Integer", "value": 1}, {"type": "Hash160", "value": RECEIVER}
    transfer = {"contract": "GasToken", "method": "transfer", "args": [account, account, number, number]}
    for call, code, place in (
        ({"contract": "0x" + "11" * 20, "method": "symbol"}, "unknown_contract", "calls[0].contract"),
        ({"contract": "GasToken", "method": "noSuchMethod"}, "unknown_method", "calls[0].method"),
        ({"contract": "GasToken", "method": "balanceOf"}, "unknown_method", "calls[0].args"),
        ({"contract": "GasToken", "method": "balanceOf", "args": [number]}, "bad_argument", "calls[0].args[0]"),
        (transfer | {"call_flags": "ReadOnly"}, "bad_call_flags", "calls[0].call_flags"),
    ):
        problem = await system.post("/transactions", {"calls": [call]}, status=422)
        assert problem["code"] == code, problem
        assert place in problem["detail"]
    assert (await system.get("/transactions", limit=1))["items"] == newest


async def test_a_transaction_for_another_network_is_refused(system: System) -> None:
    network = (await system.rpc("getversion"))["protocol"]["network"]
    problem = await system.transfer("default", RECEIVER, 1, network=860833102, status=422)
    assert problem["code"] == "wrong_network"
    assert str(network) in problem["detail"]
    accepted = await system.transfer("default", RECEIVER, 1, network=network)
    assert (await system.settled(accepted["id"]))["state"] == "confirmed"


async def test_malformed_calls_name_the_place(system: System) -> None:
    good = {"type": "Hash160", "value": RECEIVER}
    for call, code in (
        ({"contract": "GasTokem", "method": "symbol"}, "bad_contract_hash"),
        ({"contract": "0x12", "method": "symbol"}, "bad_contract_hash"),
        (
            {"contract": "GasToken", "method": "balanceOf", "args": [{"type": "Hash160", "value": "Nope"}]},
            "bad_address",
        ),
        (
            {"contract": "GasToken", "method": "balanceOf", "args": [{"type": "Integer", "value": "x"}]},
            "bad_argument",
        ),
        ({"contract": "GasToken", "method": "balanceOf", "args": [good], "flags": 1}, "bad_call"),
        ({"contract": "GasToken"}, "bad_method"),
    ):
        problem = await system.post("/transactions", {"calls": [call]}, status=422)
        assert problem["code"] == code
        assert "calls[0]" in problem["detail"]


async def test_a_wallet_without_gas_is_refused_and_says_what_is_missing(system: System) -> None:
    wallet = await system.post("/wallets", {"name": "empty"}, status=201)
    assert wallet["gas"] == "0"
    calls = [{"contract": "GasToken", "method": "symbol"}]
    problem = await system.post("/transactions", {"wallet": "empty", "calls": calls}, status=422)
    assert (problem["code"], problem["balance"]) == ("insufficient_gas", "0")
    assert wallet["address"] in problem["detail"]


async def test_gas_that_the_calls_move_must_be_there_beside_the_fees(system: System) -> None:
    wallet = await system.post("/wallets", {"name": "exact"}, status=201)
    funding = await system.transfer("default", wallet["address"], 10**8)
    assert (await system.settled(funding["id"]))["state"] == "confirmed"
    problem = await system.transfer("exact", RECEIVER, 10**8, status=422)
    assert problem["code"] == "insufficient_gas"
    assert float(problem["needed"]) > 1
    assert problem["detail"].endswith(f"needs {problem['needed']}")
    problem = await system.transfer("exact", RECEIVER, 2 * 10**8, status=422)
    # Never simulated: what the fees would be is unknown.
    assert problem["detail"].endswith("has 1 GAS, needs 2 and the fees")


async def test_a_fee_that_is_none_is_refused_with_the_members_name(system: System) -> None:
    problem = await system.transfer("default", RECEIVER, 1, max_fee="much", status=422)
    assert problem["code"] == "invalid_request"
    assert problem["detail"].startswith("max_fee: 'much' ")


async def test_a_query_parameter_is_refused_under_the_name_that_clients_give_it(system: System) -> None:
    problem = await system.get("/transactions", state="done", status=422)
    assert problem["detail"].startswith("state: ")
    assert [error["key"] for error in problem["errors"]] == ["state"]


async def test_a_fee_above_the_cap_is_refused(system: System) -> None:
    problem = await system.transfer("default", RECEIVER, 1, max_fee="0.001", status=422)
    assert problem["code"] == "fee_above_cap"
    assert float(problem["fee"]) > 0.001


async def test_transfers_that_exceed_the_balance_together_cost_no_fees_for_nothing(system: System) -> None:
    """Two of more than half the balance both simulate well; the second waits and is then refused."""
    wallet = await system.post("/wallets", {"name": "contended"}, status=201)
    funding = await system.transfer("default", wallet["address"], 2 * 10**8)
    await system.settled(funding["id"])
    sent = await asyncio.gather(*(system.transfer("contended", RECEIVER, 120_000_000 + n) for n in range(2)))
    views = [await system.settled(view["id"]) for view in sent]
    assert sorted(view["state"] for view in views) == ["confirmed", "rejected"]
    confirmed, rejected = sorted(views, key=lambda view: str(view["state"]))
    assert rejected["cause"]["code"] == "simulation_faulted"
    assert "ASSERT" in rejected["cause"]["message"]
    spent = 2 * 10**8 - await system.gas_of(wallet["address"])
    fees = round((float(confirmed["system_fee"]) + float(confirmed["network_fee"])) * 10**8)
    assert spent == int(confirmed["calls"][0]["args"][2]["value"]) + fees


async def test_a_paused_wallet_and_tenant_refuse_with_the_reason_until_resumed(system: System) -> None:
    await system.post("/wallets", {"name": "held"}, status=201)
    funding = await system.transfer("default", (await system.get("/wallets/held"))["address"], 10**8)
    await system.settled(funding["id"])
    paused = await system.post("/wallets/held/pause", {"reason": "key under review"})
    assert paused["paused"]["reason"] == "key under review"
    problem = await system.transfer("held", RECEIVER, 1, status=409)
    assert problem["code"] == "wallet_paused"
    assert "key under review" in problem["detail"]
    assert (await system.post("/wallets/held/resume", None))["paused"] is None
    assert (await system.transfer("held", RECEIVER, 1, status=None))["state"] == "queued"
    assert (await system.post("/wallets/nobody/pause", {"reason": "x"}, status=404))["code"] == "wallet_not_found"
    assert (await system.post("/wallets/held/pause", {"reason": ""}, status=422))["code"] == "invalid_request"

    await operate(system, "tenants", "pause", "default", "--reason", "unpaid")
    problem = await system.transfer("default", RECEIVER, 1, status=409)
    assert (problem["code"], "unpaid" in problem["detail"]) == ("tenant_paused", True)
    await operate(system, "tenants", "resume", "default")
    accepted = await system.transfer("default", RECEIVER, 1)
    assert (await system.settled(accepted["id"]))["state"] == "confirmed"


async def test_the_pool_of_workers_is_scaled_from_the_command_line(system: System) -> None:
    await operate(system, "workers", "scale", "0")
    accepted = await system.transfer("default", RECEIVER, 1)
    await asyncio.sleep(2)
    assert (await system.get(f"/transactions/{accepted['id']}"))["state"] == "queued"
    await operate(system, "workers", "scale", "3")
    assert (await system.settled(accepted["id"]))["state"] == "confirmed"
    assert json.loads(await operate(system, "workers", "show", "--json")) == {"transactions": 3}


async def operate(system: System, *words: str) -> str:
    """The operator's command line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", *words), env=system.environ, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    return out.decode()


async def test_queue_members_are_shown_and_bad_ones_are_refused(system: System) -> None:
    later = "2030-01-01T00:00:00Z"
    view = await system.transfer(
        "default", RECEIVER, 1, group="never", fifo_key="orders", not_before=later, priority="low"
    )
    shown = await system.get(f"/transactions/{view['id']}")
    assert (shown["group"], shown["fifo_key"], shown["priority"]) == ("never", "orders", "low")
    assert shown["not_before"].startswith("2030-01-01T00:00:00")
    assert shown["state"] == "queued"
    for settings in (
        {"group": "always"},
        {"fifo_key": ""},
        {"not_before": "tomorrow"},
        {"not_before": "2030-01-01T00:00:00"},
        {"not_before_block": -1},
        {"on_expiry": "retry"},
    ):
        problem = await system.transfer("default", RECEIVER, 1, status=422, **settings)
        assert problem["code"] == "invalid_request"
