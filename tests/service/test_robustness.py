"""Hostile and unlucky input: never a 500, nothing that stops others, nothing half done."""

import asyncio
import base64
import hashlib
import json
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.service.beside import answers
from tests.system import System, free_port


async def test_no_input_of_a_client_is_a_500(system: System) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    symbol = b'"calls": [{"contract": "GasToken", "method": "symbol"}]}'
    read = {"contract": "StdLib", "method": "jsonDeserialize"}
    nested = "[" * 60 + "]" * 60
    cases: list[tuple[str, str, bytes]] = [
        ("POST", "/keys", b'{"name": "a\\u0000b"}'),
        ("POST", "/keys", b'{"name": "\\ud800"}'),
        ("POST", "/keys", b'{"name": "\xff"}'),
        ("POST", "/keys", b""),
        ("POST", "/keys", deep),
        ("GET", "/functions/%00", b""),
        ("GET", "/functions/%FF", b""),
        ("DELETE", "/functions/%00", b""),
        ("POST", "/functions/%00/invoke", b""),
        ("POST", "/functions/a%2Fb/invoke", b""),
        ("POST", "/functions//invoke", b""),
        ("POST", "/functions/none/invoke", deep),
        ("GET", "/wallets/%00", b""),
        ("GET", "/executions?function=%00", b""),
        ("GET", "/executions?cursor=%00", b""),
        ("GET", "/executions?code=%00", b""),
        ("GET", "/executions?since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z", b""),
        ("GET", "/executions/stream?function=%00", b""),
        ("GET", "/executions/%00", b""),
        ("POST", "/executions/%00/replay", b""),
        ("GET", "/functions/%00/versions", b""),
        ("GET", "/functions/a/versions/99999999999999999999", b""),
        ("GET", "/functions/a/versions?cursor=x", b""),
        ("PUT", "/functions/%00/aliases/live", b'{"versions": [{"version": 1}]}'),
        ("PUT", "/functions/a/aliases/%00", b'{"versions": [{"version": 1}]}'),
        ("PUT", "/functions/a/aliases/live", b'{"versions": [{"version": 99999999999999999999}]}'),
        ("DELETE", "/functions/a/aliases/%00", b""),
        ("POST", "/functions/a@%00/invoke", b""),
        ("POST", "/functions/a@%F0%9F%98%80/invoke", b""),
        ("POST", "/functions/a@%D9%A3/invoke", b""),
        ("POST", "/functions/@/invoke", b""),
        ("GET", "/transactions?state=nope", b""),
        ("PUT", "/functions/nul", b'{"source": "export default () => `\\u0000`"}'),
        ("PUT", "/secrets/NUL", b'{"value": "\\u0000"}'),
        (
            "POST",
            "/transactions",
            b'{"wallet": "\\u0000", ' + symbol,
        ),
        ("POST", "/transactions", b'{"calls": ' + deep + b"}"),
        (
            "POST",
            "/transactions",
            b'{"max_fee": "1e900000", ' + symbol,
        ),
        ("POST", "/transactions", b'{"valid_for_blocks": 99999999999999999999, "calls": [{}]}'),
        ("POST", "/chain/read", json.dumps(read | {"args": [{"type": "String", "value": nested}]}).encode()),
        ("POST", "/chain/read", json.dumps(read | {"args": [{"type": "Integer", "value": 10**400}]}).encode()),
        ("GET", "/attestation?nonce=%FF", b""),
        ("GET", "/attestation?nonce=" + "A" * 200, b""),
    ]
    for method, path, body in cases:
        status, headers, answer = await system.raw(method, "/api/v1" + path, body=body)
        assert status < 500, (method, path, status, answer)
        if status >= 400:
            assert headers["content-type"] == "application/problem+json", (method, path)
            assert answer["code"]


async def test_text_that_a_database_cannot_hold_keeps_nothing_from_being_recorded(
    system: System,
) -> None:
    source = r"""export default (input) => {
      console.log('\u0000', '\ud800', 'x'.repeat(16383) + '\u{1f600}');
      if (input) throw new Error('\u0000 \ud800');
      return '\u0000 \ud800';
    }"""
    await system.request("PUT", "/functions/odd-text", {"source": source})
    _, execution = await system.invoke("odd-text")
    record = await system.get(f"/executions/{execution}")
    assert record["status"] == "succeeded"
    logs = (await system.get(f"/executions/{execution}/logs"))["items"]
    assert len(logs) == 1
    status, _, problem = await system.raw("POST", "/api/v1/functions/odd-text/invoke", body=b"1")
    assert (status, problem["code"]) == (422, "function_error")
    assert (await system.get(f"/executions/{problem['execution']}"))["status"] == "failed"


async def test_half_a_body_never_runs(system: System) -> None:
    await system.request("PUT", "/functions/counts-bodies", {"source": "export default (input) => input"})
    for sent, announced in ((b"", 10), (b"12", 10), (b'{"a": 1}', 20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(
            b"POST /api/v1/functions/counts-bodies/invoke HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {system.key}\r\ncontent-length: {announced}\r\n\r\n".encode()
            + sent
        )
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await reader.read()
    await system.invoke("counts-bodies", 1)
    assert len((await system.get("/executions", function="counts-bodies"))["items"]) == 1


async def test_attestation_binds_the_nonce_and_the_keys(system: System) -> None:
    nonce = b"\x01\xfe fresh"
    evidence = await system.get("/attestation", nonce=base64.urlsafe_b64encode(nonce).decode())
    assert (evidence["type"], evidence["simulated"]) == ("simulated", True)

    def raw(name: str) -> bytes:
        return base64.b64decode(evidence[name])

    bound = raw("nonce") + raw("encryption_key") + raw("signing_key") + raw("measurement")
    assert raw("nonce") == nonce
    assert raw("report_data") == hashlib.sha512(b"neolayer/attestation/1" + bound).digest()
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw("signing_key"))
    quote = raw("quote")
    signature = encode_dss_signature(int.from_bytes(quote[:32]), int.from_bytes(quote[32:]))
    key.verify(signature, raw("report_data"), ec.ECDSA(hashes.SHA256()))


async def test_wrong_keys_are_throttled_and_good_ones_go_on(system: System) -> None:
    async def attempt(key: str) -> int:
        status, _, _ = await system.raw("GET", "/api/v1/wallets", headers={"authorization": f"Bearer {key}"})
        return status

    assert await attempt(system.key) == 200
    try:
        statuses = [await attempt(f"nsl_wrong{number}") for number in range(130)]
        assert set(statuses) == {401, 429}
        assert await attempt(system.key) == 200
        await asyncio.sleep(5.5)  # the cached look-up ends; the key must not be locked out by strangers
        assert await attempt(system.key) == 200
    finally:
        await system.forget_failed_logins()


async def test_the_framework_answers_invocations_just_as_the_raw_handler_does(system: System) -> None:
    """`NEOLAYER_OPT_RAW_INVOKE` off and on give the same answers."""
    source = "export default (i) => { if (i === 0) throw new Error('no'); return i }"
    await system.request("PUT", "/functions/same", {"source": source})
    port = free_port()
    environ = system.environ_of_parts | {"NEOLAYER_PORT": str(port), "NEOLAYER_OPT_RAW_INVOKE": "false"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "api"), env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    path = "/api/v1/functions/same/invoke"
    cases = [
        (path, b'{"a": [1, "\xc3\xbc"]}', system.key),
        (path, b"", system.key),
        (path, b"0", system.key),
        (path, b"{", system.key),
        (path, b'"\xff"', system.key),
        (path, b'"' + b"x" * 1_000_001 + b'"', system.key),
        (path, b"1", "nsl_wrong"),
        (path.replace("same", "none"), b"1", system.key),
    ]
    try:
        framework = f"http://127.0.0.1:{port}"
        await system.eventually(lambda: answers(framework))
        answered = {}
        for url in (framework, system.url):
            seen = []
            for target, body, key in cases:
                headers = {"authorization": f"Bearer {key}"}
                status, got, answer = await system.raw("POST", target, body=body, headers=headers, url=url)
                if isinstance(answer, dict):
                    answer.pop("execution", None)
                    answer.pop("detail", None) if status == 413 else None
                seen.append((status, got["content-type"], answer, "neolayer-execution" in got))
            answered[url] = seen
        assert answered[framework] == answered[system.url]
        assert [entry[0] for entry in answered[framework]] == [200, 200, 422, 400, 400, 413, 401, 404]
    finally:
        process.terminate()
        await process.wait()
