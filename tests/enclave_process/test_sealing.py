"""The sealing root, sealed secrets and evidence."""

import asyncio
import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from neolayer_enclave import protocol
from neolayer_enclave.protocol import Limits, Load, Loaded, SealedSecret
from neolayer_enclave.seal import UPLOADS
from tests.enclave_process.host import HANDLES, Host, Process, Refusal, output


async def start_and_fail(folder: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "neolayer_enclave", "--socket", folder / "s", "--state", folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert out == b""
    assert process.returncode is not None
    return process.returncode, err.decode()


async def test_the_root_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = await Process.start(tmp_path)
    host = await Host.connect(first)
    identity = await host.ask(protocol.Hello(), protocol.Identity)
    root = tmp_path / "state" / "sealing.key"
    assert stat.S_IMODE(root.stat().st_mode) == 0o600
    assert len(root.read_bytes()) == 32
    assert stat.S_IMODE(first.socket.stat().st_mode) == 0o600
    sealed = await host.seal("alice", "KEY", 1, b"value")
    await host.close()
    await first.stop()
    second = await Process.start(tmp_path)
    host = await Host.connect(second)
    assert await host.ask(protocol.Hello(), protocol.Identity) == identity
    load = Load(
        "alice", "b", "f", "export default (i, c) => c.secrets.KEY", Limits(), [SealedSecret("KEY", 1, sealed)], []
    )
    HANDLES["b"] = (await host.ask(load, Loaded)).handle
    assert output(await host.invoke("b")) == "value"
    await host.close()
    await second.stop()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [(os.urandom(32), 0o644, "chmod 600"), (b"short", 0o600, "32 bytes"), (os.urandom(33), 0o600, "32 bytes")],
)
async def test_an_exposed_or_damaged_root_is_refused_in_one_line(
    tmp_path: Path, content: bytes, mode: int, says: str
) -> None:
    root = tmp_path / "sealing.key"
    root.write_bytes(content)
    root.chmod(mode)
    code, text = await start_and_fail(tmp_path)
    assert code == 2
    assert says in text
    assert text.count("\n") == 1


async def test_a_secret_opens_under_its_own_names_only(host: Host) -> None:
    sealed = await host.seal("alice", "KEY", 1, b"value")
    assert b"value" not in sealed
    assert sealed != await host.seal("alice", "KEY", 1, b"value")
    flipped = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    others = [("alice", "KEY", 1, wrong) for wrong in (*flipped, b"", sealed[:-1], sealed[:5])]
    others += [("bob", "KEY", 1, sealed), ("alice", "KEY2", 1, sealed), ("alice", "KEY", 2, sealed)]
    for tenant, name, version, ciphertext in others:
        secrets = [SealedSecret(name, version, ciphertext)]
        with pytest.raises(Refusal) as refusal:
            await host.ask(Load(tenant, "wrong", "f", "export default () => 1", Limits(), secrets, []), Loaded)
        assert refusal.value.code == "seal_invalid"


async def test_a_secret_is_text(host: Host) -> None:
    with pytest.raises(Refusal) as refusal:
        await host.seal("alice", "KEY", 1, b"\xff")
    assert refusal.value.code == "invalid_secret"
    with pytest.raises(Refusal) as refusal:
        await host.seal("alice", "KEY", 1, b"x" * 65_537)
    assert refusal.value.code == "secret_too_large"


async def test_a_wallet_key_is_no_secret_and_a_secret_no_wallet_key(host: Host) -> None:
    wallet = await host.ask(protocol.CreateKey("alice", "KEY"), protocol.WalletKey)
    secrets = [SealedSecret("KEY", 1, wallet.sealed)]
    with pytest.raises(Refusal) as refusal:
        await host.ask(Load("alice", "w", "f", "export default () => 1", Limits(), secrets, []), Loaded)
    assert refusal.value.code == "seal_invalid"


async def test_evidence_binds_nonce_keys_and_measurement(host: Host) -> None:
    nonce = os.urandom(64)
    identity = await host.ask(protocol.Hello(), protocol.Identity)
    evidence = await host.ask(protocol.Attest(nonce), protocol.Evidence)
    assert evidence.provider == "simulated"
    assert evidence.signing_key == identity.signing_key
    assert evidence.encryption_key == identity.encryption_key
    assert evidence.measurement == identity.measurement
    assert (
        evidence.report_data
        == hashlib.sha512(
            protocol.ATTESTATION_DOMAIN
            + nonce
            + evidence.encryption_key
            + evidence.signing_key
            + evidence.measurement
        ).digest()
    )
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), evidence.signing_key)
    signature = encode_dss_signature(int.from_bytes(evidence.quote[:32]), int.from_bytes(evidence.quote[32:]))
    key.verify(signature, evidence.report_data, ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(signature, evidence.report_data[:-1] + b"\0", ec.ECDSA(SHA256()))
    other = await host.ask(protocol.Attest(b""), protocol.Evidence)
    assert other.report_data != evidence.report_data
    with pytest.raises(Refusal):
        await host.ask(protocol.Attest(bytes(65)), protocol.Evidence)


async def test_an_upload_opens_under_its_own_names_and_key_only(host: Host) -> None:
    identity = await host.ask(protocol.Hello(), protocol.Identity)
    key = X25519PublicKey.from_public_bytes(identity.encryption_key)
    upload = UPLOADS.encrypt(b"value", key, info=protocol.upload_info("alice", "KEY", 3))
    sealed = await host.ask(protocol.SealUpload("alice", "KEY", 3, upload), protocol.Sealed)
    assert b"value" not in sealed.ciphertext
    source = "export default (i, c) => c.secrets.KEY"
    secrets = [SealedSecret("KEY", 3, sealed.ciphertext)]
    load = Load("alice", "uploaded", "f", source, Limits(), secrets, [])
    HANDLES["uploaded"] = (await host.ask(load, Loaded)).handle
    assert output(await host.invoke("uploaded")) == "value"

    foreign = UPLOADS.encrypt(b"v", X25519PrivateKey.generate().public_key(), info=upload[:0])
    flipped = [upload[:at] + bytes([upload[at] ^ 1]) + upload[at + 1 :] for at in (0, 31, 32, len(upload) - 1)]
    wrong = [("alice", "KEY", 3, each) for each in (foreign, *flipped, b"", upload[:-1], upload[:40], bytes(60))]
    wrong += [("bob", "KEY", 3, upload), ("alice", "KEZ", 3, upload), ("alice", "KEY", 4, upload)]
    wrong += [("alice\0KEY", "", 3, upload), ("alice", "KEY\x003", 3, upload), ("", "alice", 3, upload)]
    for request in wrong:
        with pytest.raises(Refusal) as refusal:
            await host.ask(protocol.SealUpload(*request), protocol.Sealed)
        assert refusal.value.code == "upload_invalid"


async def test_an_upload_has_the_limits_of_a_plain_secret(host: Host) -> None:
    identity = await host.ask(protocol.Hello(), protocol.Identity)
    key = X25519PublicKey.from_public_bytes(identity.encryption_key)
    for value, code in ((b"\xff", "invalid_secret"), (b"x" * 65_537, "secret_too_large")):
        upload = UPLOADS.encrypt(value, key, info=protocol.upload_info("alice", "KEY", 1))
        with pytest.raises(Refusal) as refusal:
            await host.ask(protocol.SealUpload("alice", "KEY", 1, upload), protocol.Sealed)
        assert refusal.value.code == code


async def test_a_ciphertext_of_any_epoch_opens_and_of_a_forged_one_does_not(host: Host) -> None:
    first = await host.seal("alice", "KEY", 1, b"value")
    sealed = {0: first}
    for epoch in (1, 2, 0xFFFF_FFFE):
        owned = [protocol.OwnedSecret("alice", "KEY", 1, each) for each in (first, first[:-1], b"")]
        owned.append(protocol.OwnedSecret("bob", "KEY", 1, first))
        resealed = (await host.ask(protocol.Reseal(epoch, owned), protocol.Resealed)).ciphertexts
        assert resealed[1:] == [None, None, None]
        assert resealed[0] is not None
        sealed[epoch] = resealed[0]
    back = protocol.OwnedSecret("alice", "KEY", 1, sealed[2])
    assert (await host.ask(protocol.Reseal(0, [back]), protocol.Resealed)).ciphertexts[0] is not None
    source = "export default (i, c) => c.secrets.KEY"
    for epoch, ciphertext in sealed.items():
        secrets = [SealedSecret("KEY", 1, ciphertext)]
        load = Load("alice", f"epoch-{epoch}", "f", source, Limits(), secrets, [])
        HANDLES[f"epoch-{epoch}"] = (await host.ask(load, Loaded)).handle
        assert output(await host.invoke(f"epoch-{epoch}")) == "value"
    flipped = [sealed[1][:at] + bytes([sealed[1][at] ^ 1]) + sealed[1][at + 1 :] for at in range(len(sealed[1]))]
    forged = [*flipped, sealed[1][5:], b"\x02\0\0\0\0" + first, sealed[1][:4], b"\x02"]
    for ciphertext in forged:
        secrets = [SealedSecret("KEY", 1, ciphertext)]
        with pytest.raises(Refusal) as refusal:
            await host.ask(Load("alice", "forged", "f", source, Limits(), secrets, []), Loaded)
        assert refusal.value.code == "seal_invalid"
    for epoch in (-1, 2**32):
        with pytest.raises(Refusal) as refusal:
            await host.ask(protocol.Seal("alice", "KEY", 1, b"v", epoch), protocol.Sealed)
        assert refusal.value.code == "bad_request"


async def test_a_function_is_given_exactly_the_secrets_it_was_loaded_with(host: Host) -> None:
    own, others = await host.seal("alice", "OWN", 1, b"own"), await host.seal("bob", "OWN", 1, b"bobs")
    source = "export default (i, c) => { try { return c.secrets[i] } catch (error) { return error.code } }"
    for tenant, secrets in (
        ("alice", [SealedSecret("OWN", 1, others)]),
        ("bob", [SealedSecret("OWN", 1, own)]),
        ("alice", [SealedSecret("OTHER", 1, own)]),
        ("alice", [SealedSecret("OWN", 2, own)]),
    ):
        with pytest.raises(Refusal) as refusal:
            await host.ask(Load(tenant, "taken", "f", source, Limits(), secrets, []), Loaded)
        assert refusal.value.code == "seal_invalid"
    # A refused load leaves nothing behind.
    with pytest.raises(Refusal) as refusal:
        await host.invoke("taken")
    assert refusal.value.code == "not_loaded"
    granted = await host.load(source, secrets={"OWN": "own"})
    bare = await host.load(source)
    assert output(await host.invoke(granted, "OWN")) == "own"
    assert output(await host.invoke(bare, "OWN")) == "unknown_secret"
    assert output(await host.invoke(granted, "__proto__")) == "unknown_secret"
