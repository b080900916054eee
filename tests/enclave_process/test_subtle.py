"""`crypto`: random values, and what the enclave computes for `crypto.subtle`."""

import asyncio
import hashlib
import hmac
import json
import re
import subprocess
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.loading import BOOTSTRAP
from tests.enclave_process.host import Host, output
from tests.enclave_process.javascript import evaluate

# --- random values ------------------------------------------------------------------------------------------

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


async def test_uuids_are_of_version_4_and_never_the_same(host: Host) -> None:
    source = "export default () => Array.from({ length: 500 }, () => crypto.randomUUID())"
    bundles = [await host.load(source, tenant=tenant) for tenant in ("alice", "alice", "bob")]
    seen: list[str] = []
    for bundle in bundles:
        for _ in range(3):
            seen += output(await host.invoke(bundle))
    assert all(UUID.fullmatch(each) for each in seen)
    assert len(set(seen)) == len(seen) == 4500


async def test_random_bytes_look_random_across_new_seeds(host: Host) -> None:
    source = """let drawn = 0;
      export default () => {
        const counts = new Array(256).fill(0), bytes = new Uint8Array(65536);
        for (let i = 0; i < 10; i++) { crypto.getRandomValues(bytes); for (const byte of bytes) counts[byte]++; }
        return [counts, [...bytes.subarray(0, 16)]];
      }"""
    bundle = await host.load(source, cpu_ms=5000)
    blocks = set()
    for _ in range(5):
        # The first MB is drawn in the second call: from then on each has a fresh seed in it.
        counts, block = output(await host.invoke(bundle))
        mean = 10 * 65536 / 256
        # Chi-squared of 255 degrees of freedom: above 400 with probability 1e-8.
        assert sum((count - mean) ** 2 / mean for count in counts) < 400
        blocks.add(tuple(block))
    assert len(blocks) == 5


GENERATOR = """
const [script, first, second] = process.argv.slice(1);
const vm = require('node:vm'), realm = vm.createContext({});
const entries = vm.runInContext(require('node:fs').readFileSync(script, 'utf8'), realm);
const latin1 = (hex) => Buffer.from(hex, 'hex').latin1Slice();
const { begin, install, run, seed, take } = entries;
begin(() => {}, 'f.js', '{}', latin1(first));
const draw = vm.runInContext(`(length) => {
  let hex = '';
  for (const byte of crypto.getRandomValues(new Uint8Array(length))) hex += byte.toString(16).padStart(2, '0');
  return hex;
}`, realm);
const discard = vm.runInContext('() => crypto.getRandomValues(new Uint8Array(65536))', realm);
const drawn = [];
const entry = (mb) => {
  drawn.push(draw(100));
  for (let i = 0; i < 16 * mb; i++) discard();
};
install(async () => entry);
setImmediate(() => {
  run(false, 1, 'e', '0');
  const asked = [take()];
  run(false, 2, 'e', '2');
  asked.push(take());
  seed(latin1(second));
  run(false, 3, 'e', '0');
  asked.push(take());
  console.log(JSON.stringify([drawn, asked.map((text) => text.includes('S '))]));
});
"""


def test_the_generator_is_chacha20_of_its_seed_and_takes_a_fresh_one() -> None:
    node = bundled_node()
    assert node
    first, second = bytes(range(40)), bytes(range(100, 140))
    command = [node, "-e", GENERATOR, BOOTSTRAP, first.hex(), second.hex()]
    done = subprocess.run(command, check=True, capture_output=True)
    drawn, asked = json.loads(done.stdout)
    # Counter and nonce have 64 bits each, as in the original cipher.
    stream = Cipher(ChaCha20(first[:32], bytes(8) + first[32:]), None).encryptor().update(bytes(200)).hex()
    assert drawn[0] + drawn[1] == stream
    assert asked == [False, True, False]
    assert len(set(drawn)) == 3
    # The old state and the fresh seed both matter: what another isolate has of it says nothing.
    assert (
        drawn[2]
        != Cipher(ChaCha20(second[:32], bytes(8) + second[32:]), None).encryptor().update(bytes(100)).hex()
    )


async def test_random_values_fill_what_they_are_given(host: Host) -> None:
    filled = """['Int8Array', 'Uint8ClampedArray', 'Uint16Array', 'Int32Array', 'BigUint64Array'].map((name) => {
      const array = new globalThis[name](64);
      return crypto.getRandomValues(array) === array && array.some((each) => each != 0);
    })"""
    assert await evaluate(host, filled) == [True] * 5
    part = "(() => { const all = new Uint8Array(96); crypto.getRandomValues(all.subarray(32, 64)); return all })()"
    value = await evaluate(host, part)
    assert (any(value[:32]), any(value[32:64]), any(value[64:])) == (False, True, False)
    for wrong, name in (
        ("new Float32Array(1)", "TypeMismatchError"),
        ("new DataView(new ArrayBuffer(1))", "TypeMismatchError"),
        ("[1]", "TypeMismatchError"),
        ("new Uint8Array(65537)", "QuotaExceededError"),
    ):
        assert await evaluate(host, f"caught(() => crypto.getRandomValues({wrong}))") == f"DOMException {name}"


# --- crypto.subtle ------------------------------------------------------------------------------------------

TO_BYTES = "((hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16)))"


@pytest.mark.parametrize("name", ["SHA-1", "SHA-256", "SHA-384", "SHA-512"])
async def test_digests_are_those_of_fips_180_4(host: Host, name: str) -> None:
    two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    texts = ["", "abc", two_blocks, "a" * 1_000_000]
    ours = await evaluate(
        host,
        """Promise.all(input[1].map(async (text) => {
          const data = new TextEncoder().encode(text);
          return shown(await crypto.subtle.digest(input[0].toLowerCase(), data));
        }))""",
        [name, texts],
    )
    assert [bytes(each) for each in ours] == [
        hashlib.new(name.replace("-", ""), text.encode()).digest() for text in texts
    ]
    known = {
        "SHA-1": "a9993e364706816aba3e25717850c26c9cd0d89d",
        "SHA-256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    if name in known:
        assert bytes(ours[1]).hex() == known[name]


#: RFC 4231, 4.2–4.4, 4.7 and 4.8: key, data, HMAC-SHA-256.
RFC_4231 = [
    ("0b" * 20, b"Hi There".hex(), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe".hex(),
        b"what do ya want for nothing?".hex(),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    ("aa" * 20, "dd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (
        "aa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First".hex(),
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        "aa" * 131,
        (
            b"This is a test using a larger than block-size key and a larger than block-size data. "
            b"The key needs to be hashed before being used by the HMAC algorithm."
        ).hex(),
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]
HMAC_SIGN = f"""Promise.all(input.map(async ([hash, key, data]) => {{
  const bytes = {TO_BYTES}, imported = await crypto.subtle.importKey('raw', bytes(key), {{ name: 'hmac',
    hash }}, false, ['sign', 'verify']);
  const signature = new Uint8Array(await crypto.subtle.sign('HMAC', imported, bytes(data)));
  const good = await crypto.subtle.verify('HMAC', imported, signature, bytes(data));
  signature[0] ^= 1;
  const bad = await crypto.subtle.verify('HMAC', imported, signature, bytes(data));
  signature[0] ^= 1;
  const short = await crypto.subtle.verify('HMAC', imported, signature.subarray(1), bytes(data));
  return [Array.from(signature, (byte) => byte.toString(16).padStart(2, '0')).join(''), good, bad, short];
}}))"""


async def test_hmac_is_that_of_rfc_4231(host: Host) -> None:
    ours = await evaluate(host, HMAC_SIGN, [["SHA-256", key, data] for key, data, _ in RFC_4231])
    assert ours == [[expected, True, False, False] for _, _, expected in RFC_4231]
    others = [[name, key, data] for name in ("SHA-1", "SHA-384", "SHA-512") for key, data, _ in RFC_4231]
    expected = [
        hmac.new(bytes.fromhex(key), bytes.fromhex(data), name.replace("-", "").lower()).hexdigest()
        for name, key, data in others
    ]
    assert [each[0] for each in await evaluate(host, HMAC_SIGN, others)] == expected


async def test_hmac_keys_are_made_and_travel_as_raw_and_jwk(host: Host) -> None:
    expression = """(async () => {
      const { subtle } = crypto, algorithm = { name: 'HMAC', hash: 'SHA-512' }, data = Uint8Array.of(1, 2, 3);
      const key = await subtle.generateKey(algorithm, true, ['sign', 'verify', 'sign']);
      const raw = await subtle.exportKey('raw', key), jwk = await subtle.exportKey('jwk', key);
      const again = await subtle.importKey('jwk', jwk, algorithm, false, ['verify']);
      const same = await subtle.importKey('raw', raw, algorithm, false, ['verify']);
      const signature = await subtle.sign('HMAC', key, data);
      return [raw.byteLength, jwk.kty, jwk.alg, jwk.key_ops, key.algorithm, key.usages, key.type,
        again.extractable,
        await subtle.verify('HMAC', again, signature, data), await subtle.verify('HMAC', same, signature, data),
        await caught(() => subtle.exportKey('raw', again)), await caught(() => subtle.sign('HMAC', again, data))];
    })()"""
    assert await evaluate(host, expression) == [
        128, "oct", "HS512", ["sign", "verify"], {"name": "HMAC", "hash": {"name": "SHA-512"}, "length": 1024},
        ["sign", "verify"], "secret", False, True, True,
        "DOMException InvalidAccessError", "DOMException InvalidAccessError",
    ]  # fmt: skip


VERIFY_P256 = f"""Promise.all(input.map(async ([format, key, hash, signature, data]) => {{
  const bytes = {TO_BYTES};
  try {{
    const imported = await crypto.subtle.importKey(
      format, typeof key === 'string' ? bytes(key) : key, {{ name: 'ECDSA', namedCurve: 'P-256' }}, true,
        ['verify']);
    return await crypto.subtle.verify({{ name: 'ECDSA', hash }}, imported, bytes(signature), bytes(data));
  }} catch (error) {{
    return error.name;
  }}
}}))"""


async def test_ecdsa_signatures_are_verified(host: Host) -> None:
    # RFC 6979, A.2.5: the key and its signatures of "sample".
    point = (
        "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
        "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
    )
    sample = b"sample".hex()
    r = "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    s = "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(point))
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()
    compressed = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "YP7UuiVanTHJYet0xjVtaMBJuJI7Yfps5mliLmDyn7Y",
        "y": "eQP-EAi4vJmkGunpVii8ZPLxsgwtfp9Rd6PClNRGIpk",
    }
    cases: list[tuple[list[Any], Any]] = [
        (["raw", point, "SHA-256", r + s, sample], True),
        (["raw", compressed, "SHA-256", r + s, sample], True),
        (["spki", spki, "SHA-256", r + s, sample], True),
        (["jwk", jwk, "SHA-256", r + s, sample], True),
        # ECDSA itself takes n - s for s.
        (["raw", point, "SHA-256", r + f"{order - int(s, 16):064x}", sample], True),
        (["raw", point, "SHA-384", r + s, sample], False),
        (["raw", point, "SHA-256", r + s, sample + "00"], False),
        (["raw", point, "SHA-256", s + r, sample], False),
        (["raw", point, "SHA-256", "00" * 64, sample], False),
        (["raw", point, "SHA-256", "00" * 32 + s, sample], False),
        (["raw", point, "SHA-256", r + "00" * 32, sample], False),
        (["raw", point, "SHA-256", f"{order:064x}" + s, sample], False),
        (["raw", point, "SHA-256", r + f"{order:064x}", sample], False),
        (["raw", point, "SHA-256", "ff" * 64, sample], False),
        (["raw", point, "SHA-256", (r + s)[:-2], sample], False),
        (["raw", point, "SHA-256", r + s + "00", sample], False),
        (["raw", point, "SHA-256", "", sample], False),
        (["raw", point[:-2] + "00", "SHA-256", r + s, sample], "DataError"),
        (["raw", "04" + "00" * 64, "SHA-256", r + s, sample], "DataError"),
        (["raw", "00", "SHA-256", r + s, sample], "DataError"),
        (["raw", "", "SHA-256", r + s, sample], "DataError"),
        (["spki", spki[:-2], "SHA-256", r + s, sample], "DataError"),
        (["spki", point, "SHA-256", r + s, sample], "DataError"),
        (["jwk", {**jwk, "x": jwk["y"]}, "SHA-256", r + s, sample], "DataError"),
        (["jwk", {**jwk, "crv": "P-384"}, "SHA-256", r + s, sample], "DataError"),
        (["jwk", {**jwk, "x": jwk["x"] + "="}, "SHA-256", r + s, sample], "DataError"),
        (["jwk", {**jwk, "d": jwk["x"]}, "SHA-256", r + s, sample], "NotSupportedError"),
        (["jwk", {**jwk, "use": "enc"}, "SHA-256", r + s, sample], "DataError"),
        (["jwk", {**jwk, "key_ops": ["sign"]}, "SHA-256", r + s, sample], "DataError"),
        (["pkcs8", point, "SHA-256", r + s, sample], "NotSupportedError"),
        (["raw", point, "MD5", r + s, sample], "NotSupportedError"),
    ]
    other = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    other_spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()
    cases.append((["spki", other_spki, "SHA-256", r + s, sample], "DataError"))
    private = ec.derive_private_key(11, ec.SECP256R1())
    for hash in (SHA256(), SHA384()):
        numbers = decode_dss_signature(private.sign(b"x" * 100_000, ec.ECDSA(hash)))
        signature = "".join(f"{number:064x}" for number in numbers)
        raw = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex()
        cases.append((["raw", raw, hash.name.upper().replace("SHA", "SHA-"), signature, "78" * 100_000], True))
    assert await evaluate(host, VERIFY_P256, [case for case, _ in cases]) == [expected for _, expected in cases]
    exported = """(async () => {
      const algorithm = { name: 'ECDSA', namedCurve: 'P-256' };
      const key = await crypto.subtle.importKey('jwk', input, algorithm, true, ['verify']);
      const { x, y, kty, crv } = await crypto.subtle.exportKey('jwk', key);
      const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2,
        '0')).join('');
      return [{ kty, crv, x, y }, hex(await crypto.subtle.exportKey('raw', key)),
        hex(await crypto.subtle.exportKey('spki', key))];
    })()"""
    assert await evaluate(host, exported, jwk) == [jwk, point, spki]


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("subtle.digest('MD5', data)", "DOMException NotSupportedError"),
        ("subtle.digest('SHA-256', 'text')", "TypeError TypeError"),
        ("subtle.digest('SHA-256', new Uint8Array(1_048_577))", "RangeError RangeError"),
        ("subtle.digest({}, data)", "TypeError TypeError"),
        ("subtle.encrypt('AES-GCM', null, data)", "DOMException NotSupportedError"),
        (
            "subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign'])",
            "DOMException NotSupportedError",
        ),
        ("subtle.importKey('raw', data, { name: 'HMAC', hash: 'SHA-256' }, true, [])", "DOMException SyntaxError"),
        (
            "subtle.importKey('raw', data, { name: 'HMAC', hash: 'SHA-256' }, true, ['encrypt'])",
            "DOMException SyntaxError",
        ),
        (
            "subtle.importKey('raw', new Uint8Array(0), { name: 'HMAC', hash: 'SHA-1' }, true, ['sign'])",
            "DOMException DataError",
        ),
        ("subtle.sign('HMAC', {}, data)", "TypeError TypeError"),
        ("new CryptoKey()", "TypeError TypeError"),
    ],
)
async def test_what_subtle_cannot_do_is_said_by_name(host: Host, expression: str, error: str) -> None:
    source = (
        f"(() => {{ const {{ subtle }} = crypto, data = Uint8Array.of(1); return caught(() => {expression}) }})()"
    )
    assert await evaluate(host, source) == error


async def test_a_call_computes_within_a_budget(host: Host) -> None:
    many = """(async () => {
      const one = () => crypto.subtle.digest('SHA-256', Uint8Array.of(1)).then(() => 'ok', (error) => error.name);
      const names = [];
      for (let i = 0; i < 1010; i += 10) names.push(...await Promise.all(Array.from({ length: 10 }, one)));
      return [names.filter((name) => name === 'ok').length, names.at(-1)];
    })()"""
    assert await evaluate(host, many) == [1000, "QuotaExceededError"]
    much = """(async () => {
      const data = new Uint8Array(1_000_000);
      for (let i = 0; i < 70; i++) {
        try { await crypto.subtle.digest('SHA-1', data) } catch (error) { return [i, error.name] }
      }
    })()"""
    assert await evaluate(host, much, cpu_ms=10_000, timeout_ms=30_000) == [67, "QuotaExceededError"]


async def test_every_operation_of_a_burst_is_answered(host: Host) -> None:
    """What waits for the tenant's thread is bounded; what is refused then says so, and leaves room again."""
    source = """export default async () => {
      const data = new Uint8Array(1_000_000).fill(7);
      const one = () => crypto.subtle.digest('SHA-512', data).then(() => 'ok', (error) => error.name);
      return Promise.all(Array.from({ length: 15 }, one));
    }"""
    bundles = [await host.load(source, cpu_ms=10_000, timeout_ms=30_000, tenant="carol") for _ in range(3)]
    for _ in range(3):
        results = await asyncio.gather(*(host.invoke(bundle) for bundle in bundles))
        answers = [answer for result in results for answer in output(result)]
        assert len(answers) == 45
        assert {"ok"} <= set(answers) <= {"ok", "QuotaExceededError"}
    # Alone, a call may have 15 MB waiting.
    assert set(output(await host.invoke(bundles[0]))) == {"ok"}
