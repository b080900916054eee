"""Secrets that are encrypted to the enclave before they leave the client, and the evidence that this rests on."""

import asyncio
import base64
import os
import sys
from typing import Any

import pytest

from neolayer.enclave.verify import EvidenceRejected, Verified, verify
from tests.system import System

CANARY = "sealed-canary-19c4-never-seen-by-the-host"


async def attested(system: System) -> Verified:
    nonce = os.urandom(32)
    evidence = await system.get("/attestation", nonce=base64.urlsafe_b64encode(nonce).decode())
    return verify(evidence, nonce, accept_simulated=True)


async def begin(system: System, name: str, **options: Any) -> dict[str, Any]:
    return dict(await system.post(f"/secrets/{name}/uploads", None, status=201, **options))


def sealed(ciphertext: bytes, version: int) -> dict[str, Any]:
    return {"sealed": {"version": version, "ciphertext": base64.b64encode(ciphertext).decode()}}


async def cli(system: System, *arguments: str, stdin: str = "", **environ: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", *arguments),
        env=system.environ | environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def reader_of(system: System, name: str, *, key: str | None = None) -> str:
    function = f"reads-{name.lower().replace('_', '-')}"
    source = f"export default (input, ctx) => ctx.secrets.{name}"
    await system.request("PUT", f"/functions/{function}", {"source": source, "secrets": [name]}, key=key)
    return function


async def test_the_command_line_encrypts_and_the_host_sees_ciphertext_only(system: System) -> None:
    code, out, err = await cli(system, "secrets", "set", "SEALED_CANARY", CANARY)
    assert (code, "encrypted" in out, "simulated" in err) == (0, True, True), err
    assert (await system.invoke(await reader_of(system, "SEALED_CANARY")))[0] == CANARY
    listed = {each["name"]: each for each in (await system.get("/secrets"))["items"]}
    assert listed["SEALED_CANARY"]["uploaded"] == "sealed"
    # The function returned it, so its execution holds it: what its author gives back is recorded.
    dump = "\n".join(line for line in (await system.dump()).splitlines() if "reads-sealed-canary" not in line)
    assert CANARY not in dump
    assert CANARY not in system.logs()

    code, out, _ = await cli(system, "secrets", "set", "PLAIN_ONE", "--plain", stdin="in the open\n")
    assert (code, "saw it" in out) == (0, True)
    listed = {each["name"]: each for each in (await system.get("/secrets"))["items"]}
    assert listed["PLAIN_ONE"]["uploaded"] == "plain"
    assert (await system.invoke(await reader_of(system, "PLAIN_ONE")))[0] == "in the open"


async def test_the_command_line_refuses_whom_it_was_not_told_to_trust(system: System) -> None:
    measurement = (await attested(system)).measurement.hex()
    code, _, err = await cli(system, "secrets", "set", "PINNED", "v", "--measurement", "00" * 32)
    assert (code, measurement in err) == (1, True)
    code, _, err = await cli(system, "secrets", "set", "PINNED", "v", "--measurement", "no hex")
    assert (code, "hexadecimal" in err) == (1, True)
    code, _, err = await cli(system, "secrets", "set", "PINNED", "v", "--tenant", str(os.urandom(4).hex()))
    assert (code, "tenant" in err) == (1, True)
    # Linux takes the unspecified address for this machine, the command line does not.
    elsewhere = {"NEOLAYER_URL": f"http://0.0.0.0:{system.port}", "NEOLAYER_API_KEY": system.key}
    code, _, err = await cli(system, "secrets", "set", "PINNED", "v", **elsewhere)
    assert (code, "--accept-simulated" in err) == (1, True)
    assert "PINNED" not in {each["name"] for each in (await system.get("/secrets"))["items"]}
    for options, environ in (
        (("--measurement", measurement), {}),
        (("--accept-simulated", "--tenant", (await begin(system, "PINNED"))["tenant"]), elsewhere),
    ):
        code, _, err = await cli(system, "secrets", "set", "PINNED", "v", *options, **environ)
        assert code == 0, err


async def test_evidence_is_accepted_for_this_nonce_and_a_provider_named_by_the_caller_only(system: System) -> None:
    nonce = os.urandom(32)
    evidence = await system.get("/attestation", nonce=base64.urlsafe_b64encode(nonce).decode())
    assert verify(evidence, nonce, accept_simulated=True).provider == "simulated"

    def rejected(says: str, given: dict[str, Any], with_nonce: bytes = nonce, **options: Any) -> None:
        with pytest.raises(EvidenceRejected, match=says):
            verify(given, with_nonce, **({"accept_simulated": True} | options))

    rejected("--accept-simulated", evidence, accept_simulated=False)
    rejected("not about", evidence, os.urandom(32))
    rejected("other code", evidence, measurement=bytes(32))
    other = base64.b64encode(os.urandom(32)).decode()
    rejected("not about", evidence | {"encryption_key": other})
    rejected("not about", evidence | {"measurement": other})
    rejected("cannot be verified", evidence | {"type": "tdx"})
    rejected("not signed", evidence | {"quote": base64.b64encode(os.urandom(64)).decode()})
    rejected("not signed", evidence | {"quote": base64.b64encode(bytes(64)).decode()})
    for name in ("report_data", "signing_key", "encryption_key", "measurement", "quote"):
        rejected(name, evidence | {name: "short"})
        rejected(name, {key: value for key, value in evidence.items() if key != name})
        rejected(name, evidence | {name: 7})


async def test_an_upload_that_is_played_again_brings_no_old_value_back(system: System) -> None:
    enclave = await attested(system)
    first = await begin(system, "REPLAYED")
    old = sealed(enclave.encrypt(first["tenant"], "REPLAYED", first["version"], "old"), first["version"])
    assert (await system.request("PUT", "/secrets/REPLAYED", old))["uploaded"] == "sealed"
    function = await reader_of(system, "REPLAYED")
    assert (await system.invoke(function))[0] == "old"

    async def refused(body: Any) -> None:
        assert (await system.request("PUT", "/secrets/REPLAYED", body, status=409))["code"] == "secret_overwritten"

    await refused(old)
    await system.request("PUT", "/secrets/REPLAYED", {"value": "new"})
    await refused(old)
    assert (await system.invoke(function))[0] == "new"
    await system.request("DELETE", "/secrets/REPLAYED", status=204)
    await refused(old)
    assert (await system.invoke_fails(function))["code"] == "function_error"

    # Nor can its bytes be presented under a version that was given out since.
    again = await begin(system, "REPLAYED")
    ciphertext = base64.b64decode(old["sealed"]["ciphertext"])
    body = sealed(ciphertext, again["version"])
    assert (await system.request("PUT", "/secrets/REPLAYED", body, status=422))["code"] == "upload_invalid"
    far = sealed(ciphertext, again["version"] + 1)
    assert (await system.request("PUT", "/secrets/REPLAYED", far, status=409))["code"] == "upload_not_begun"
    # Of two that were begun, the one begun later stays.
    late = await begin(system, "REPLAYED")
    for upload, value, status in ((late, "late", 200), (again, "early", 409)):
        encrypted = enclave.encrypt(upload["tenant"], "REPLAYED", upload["version"], value)
        await system.request("PUT", "/secrets/REPLAYED", sealed(encrypted, upload["version"]), status=status)
    assert (await system.invoke(function))[0] == "late"


async def test_an_upload_of_another_tenant_name_or_version_is_refused(system: System) -> None:
    enclave = await attested(system)
    mallory = await system.new_tenant("uploads-mallory")
    mine = await begin(system, "SWAPPED")
    other = await begin(system, "SWAPPED_TOO")
    theirs = await begin(system, "SWAPPED", key=mallory)
    assert theirs["tenant"] != mine["tenant"]
    tenant, version = mine["tenant"], mine["version"]
    upload = sealed(enclave.encrypt(tenant, "SWAPPED", version, "mine"), version)
    wrong = [
        ("SWAPPED", mallory, upload),
        ("SWAPPED_TOO", None, upload),
        ("SWAPPED", None, sealed(enclave.encrypt(theirs["tenant"], "SWAPPED", version, "v"), version)),
        ("SWAPPED", None, sealed(enclave.encrypt(tenant, "SWAPPED_TOO", other["version"], "v"), version)),
        ("SWAPPED", None, sealed(enclave.encrypt(tenant, "SWAPPED", version + 1, "v"), version)),
    ]
    for name, key, body in wrong:
        problem = await system.request("PUT", f"/secrets/{name}", body, key=key, status=422)
        assert problem["code"] == "upload_invalid"
    assert "SWAPPED" not in {each["name"] for each in (await system.get("/secrets"))["items"]}
    assert (await system.request("PUT", "/secrets/SWAPPED", upload))["version"] == version


async def test_an_upload_that_makes_no_sense_is_refused(system: System) -> None:
    fine = sealed(b"x" * 60, 1)["sealed"]
    for body in (
        {},
        {"value": "v", "sealed": fine},
        {"sealed": {"version": 1}},
        {"sealed": fine | {"version": 0}},
        {"sealed": fine | {"version": 2**31}},
        {"sealed": fine | {"ciphertext": "no base64!"}},
        {"sealed": fine | {"more": 1}},
        {"sealed": sealed(b"x" * 70_000, 1)["sealed"]},
        {"sealed": None},
    ):
        problem = await system.request("PUT", "/secrets/SENSELESS", body, status=422)
        assert problem["code"] == "invalid_request", body
