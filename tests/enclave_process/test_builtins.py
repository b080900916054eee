"""The globals that a function finds, held to the standards' own examples and to Node's."""

import asyncio
import hashlib
import hmac
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.loading import BOOTSTRAP
from tests.enclave_process.host import Host, logs, output

# Values that JSON cannot carry come out as text.
SHOWN = """
const shown = (value) => {
  if (value instanceof ArrayBuffer) value = new Uint8Array(value);
  if (ArrayBuffer.isView(value)) return Array.from(value, Number);
  return value === undefined ? 'undefined' : value;
};
const caught = async (work) => {
  try { await work(); return 'nothing'; } catch (error) { return `${error.constructor.name} ${error.name}`; }
};
"""


async def evaluate(host: Host, expression: str, input: Any = None, **options: Any) -> Any:
    """The value of a JavaScript expression in an async function, with ``input`` in scope."""
    source = f"{SHOWN}\nexport default async (input, ctx) => shown(await ({expression}));"
    return output(await host.run(source, input, **options))


# --- the script itself --------------------------------------------------------------------------------------


def test_the_script_of_the_isolates_is_what_the_sources_make(tmp_path: Path) -> None:
    again = tmp_path / "bootstrap.js"
    node = bundled_node()
    assert node
    subprocess.run([node, BOOTSTRAP.parent.parent / "build.mjs", again], check=True)
    assert again.read_bytes() == BOOTSTRAP.read_bytes()
    assert again.read_bytes().isascii()


async def test_a_global_is_found_under_its_name_and_can_be_replaced(host: Host) -> None:
    names = (
        "fetch Request Response Headers URL URLSearchParams TextEncoder TextDecoder atob btoa structuredClone Crypto "
        "CryptoKey SubtleCrypto DOMException Event EventTarget AbortController AbortSignal setTimeout queueMicrotask"
    ).split()
    assert await evaluate(host, "input.filter((name) => globalThis[name]?.name !== name)", names) == []
    assert await evaluate(host, "(globalThis.URL = 1, globalThis.fetch = 2, [URL, fetch])") == [1, 2]
    assert await evaluate(host, "Object.keys(globalThis)") == []
    assert await evaluate(host, "self === globalThis && typeof require + typeof process") == "undefinedundefined"
    absent = (
        "['WebAssembly', 'SharedArrayBuffer', 'Atomics', 'ivm', 'neolayer'].filter((name) => name in globalThis)"
    )
    assert await evaluate(host, absent) == []


# --- URL ----------------------------------------------------------------------------------------------------

URLS = [
    ["https://example.com"],
    ["https://EXAMPLE.com:443/a/../b/./c?d=e#f"],
    ["http://example.com:80/"],
    ["http://example.com:8080/"],
    ["https://user:pa%20ss@example.com/"],
    ["https://us er:p@ss@example.com/"],
    ["http://example.com/%7Efoo/%zz"],
    ["http://example.com/ü?ä#ö"],
    ["http://bücher.example/"],
    ["http://BÜCHER.example/"],
    ["http://faß.example/"],
    ["http://☃.net/"],
    ["http://xn--bcher-kva.example/"],
    ["http://xn--/"],
    ["http://xn--a/"],
    ["http://xn--iñvalid.com/"],
    ["http://日本語。jp/"],
    ["http://ＧＯ.com/"],
    ["http://\u00ad/"],
    ["http://a\u00adb/"],
    ["http://\u200d.example/"],
    ["http://क्\u200dष.example/"],
    ["http://אבג.example/"],
    ["http://0à.א.example/"],
    ["http://１.2.3/"],
    ["http://ﷺ.example/"],
    ["http://K.example/"],
    ["http://ᏸ.example/"],
    ["http://ǰ.example/"],
    ["http://a%41.example/"],
    ["http://%ef%bc%85%ef%bc%94%ef%bc%91.com/"],
    ["http://127.1/"],
    ["http://0x7f.1/"],
    ["http://017700000001/"],
    ["http://2130706433/"],
    ["http://256.256.256.256/"],
    ["http://1.2.3.4.5/"],
    ["http://1.2.3.08/"],
    ["http://[::1]/"],
    ["http://[1:2::3]:80/"],
    ["http://[::127.0.0.1]/"],
    ["http://[0:1:2:3:4:5:6:7:8]/"],
    ["http://[::1%eth0]/"],
    ["http://[www.google.com]/"],
    ["http://a b/"],
    ["http://a<b/"],
    ["http://a|b/"],
    ["http://a_b/"],
    ["http://-a-.b/"],
    ["http:///example.com"],
    ["http:\\\\x\\y"],
    ["http:example.com"],
    ["  http://example.com/  "],
    ["ht\ntp://exa\tmple.com/\r"],
    ["http://example.com:65536/"],
    ["http://example.com:-1/"],
    ["http://example.com:0/"],
    ["http://example.com:/"],
    ["http://:80/"],
    ["http://@/"],
    ["http://user@/"],
    ["file:///C|/x/../y"],
    ["file://host/share"],
    ["file:c:\\foo\\bar"],
    ["mailto:a@b.c"],
    ["data:text/plain,hello world#x y"],
    ["javascript:alert(1)"],
    ["blob:https://example.com/id"],
    ["blob:ftp://example.com/id"],
    ["about:blank"],
    ["non-special://a b/"],
    ["non-special://[::1]/x?y"],
    ["non-special:/..//p"],
    ["web+demo:/.//not-a-host/"],
    ["wss://example.com:443/"],
    ["ftp://example.com:21/"],
    ["//example.com/x"],
    [""],
    ["x"],
    ["../c", "http://example.com/a/b/d"],
    ["//other.com/x", "https://example.com/a"],
    ["?q", "http://example.com/a?b#c"],
    ["#f", "http://example.com/a?b#c"],
    ["#f", "mailto:x"],
    ["/x", "mailto:x"],
    ["\\x", "http://example.com/a"],
    ["http:x", "http://example.com/a/"],
    ["https:x", "http://example.com/a/"],
    ["/..//x", "file:///C:/a"],
    ["x", "not a base"],
    ["http://example.com/a'b\"c<d>e`f{g}h|i^j\\k"],
    ["http://example.com/?a'b\"c<d>e`f{g}h|i^j\\k"],
    ["http://example.com/#a'b\"c<d>e`f{g}h|i^j\\k"],
    ["http://example.com/\ud800"],
    ["http://example.com/%2e%2E/x"],
]
PARTS = """(input) => input.map(([url, base]) => {
  try {
    const { href, origin, protocol, username, password, host, hostname, port, pathname, search, hash } = new URL(url, base);
    if (!URL.canParse(url, base) || URL.parse(url, base).href !== href) return 'canParse';
    return [href, origin, protocol, username, password, host, hostname, port, pathname, search, hash];
  } catch (error) {
    return URL.canParse(url, base) ? 'canParse' : error.name;
  }
})"""


def by_node(function: str, input: Any) -> Any:
    node = bundled_node()
    assert node
    text = json.dumps(input)
    done = subprocess.run(
        [node, "-e", f"console.log(JSON.stringify(({function})(JSON.parse(process.argv[1]))))", text],
        check=True,
        capture_output=True,
    )
    return json.loads(done.stdout)


#: Where Node's parser is behind the standard: an ASCII host is kept whatever IDNA says of it
#: (https://url.spec.whatwg.org/#concept-domain-to-ascii), and a label of a right-to-left domain that begins with a
#: digit is refused (RFC 5893, 2, rule 1).
BEYOND_NODE = {"http://xn--/": "http://xn--/", "http://xn--a/": "http://xn--a/", "http://0à.א.example/": None}


async def test_urls_are_parsed_as_node_parses_them(host: Host) -> None:
    ours = await evaluate(host, f"({PARTS})(input)", URLS)
    theirs = by_node(PARTS, URLS)
    assert len(URLS) > 90
    differ = {
        url[0]: None if a == "TypeError" else a[0] for url, a, b in zip(URLS, ours, theirs, strict=True) if a != b
    }
    assert differ == BEYOND_NODE
    assert ours.count("TypeError") > 10
    assert "canParse" not in ours


SETTERS = [
    ["href", "https://other.com/"],
    ["href", "no"],
    ["protocol", "ftp"],
    ["protocol", "mailto:"],
    ["username", "ü@"],
    ["password", ":/"],
    ["host", "h.com:9000"],
    ["host", "[::1]:1"],
    ["hostname", "a b"],
    ["hostname", "x:80"],
    ["port", "443"],
    ["port", "8x"],
    ["port", ""],
    ["pathname", "a b?c#d"],
    ["pathname", "\\..\\x"],
    ["search", "a=ü&b"],
    ["search", ""],
    ["hash", "a b"],
    ["hash", ""],
]


async def test_parts_of_a_url_are_set_as_in_node(host: Host) -> None:
    function = """(input) => input.map(([name, value]) => {
      const url = new URL('https://u:p@example.com:8443/a/b?c=d#e');
      try { url[name] = value } catch (error) { return error.name }
      return [url.href, url.searchParams.toString()];
    })"""
    assert await evaluate(host, f"({function})(input)", SETTERS) == by_node(function, SETTERS)


async def test_search_parameters_are_those_of_node(host: Host) -> None:
    function = """() => {
      const a = new URLSearchParams('?a=1&b=%20+ü&a=2&=x&c&d=%zz');
      const url = new URL('http://x/?q=1');
      url.searchParams.append('ü', 'a b&c');
      const b = new URLSearchParams([['z', '1'], ['a', '2'], ['z', '0']]);
      b.sort(); b.delete('z', '0'); b.set('n', null);
      const seen = []; for (const [name, value] of a) seen.push(name, value);
      return [seen, a.getAll('a'), a.get('none'), a.has('a', '2'), a.size, a.toString(), url.href, b.toString(),
        [...new URLSearchParams({ k: 'v', l: '€' }).keys()], String(new URLSearchParams("~'()*!-._"))];
    }"""
    assert await evaluate(host, f"({function})()") == by_node(function, None)


# --- text and base64 ------------------------------------------------------------------------------------------

TEXTS = ["", "a", "ü", "€", "😀", "a\x00b", "\ufeffx", "x" * 20_000, "€😀" * 9_000, "a\ud800b\udc00"]


async def test_text_is_encoded_and_decoded(host: Host) -> None:
    encoded = await evaluate(host, "input.map((text) => shown(new TextEncoder().encode(text)))", TEXTS)
    assert [bytes(each) for each in encoded] == [
        re.sub("[\ud800-\udfff]", "\ufffd", text).encode() for text in TEXTS
    ]
    whole = TEXTS[:-1]
    again = (
        "input.map((text) => new TextDecoder('UTF8', { ignoreBOM: true }).decode(new TextEncoder().encode(text)))"
    )
    assert await evaluate(host, again, whole) == whole
    assert await evaluate(host, "new TextDecoder().decode(Uint8Array.of(0xef, 0xbb, 0xbf, 65))") == "A"


async def test_a_decoder_joins_what_comes_in_pieces(host: Host) -> None:
    pieces = """((size, text) => {
      const bytes = new TextEncoder().encode(text), decoder = new TextDecoder();
      let out = '';
      for (let at = 0; at < bytes.length; at += size) out += decoder.decode(bytes.subarray(at, at + size), { stream: true });
      return out + decoder.decode() === text.replace(/^\\ufeff/, '');
    })"""
    check = f"[1, 2, 3, 5].map((size) => {pieces}(size, input))"
    assert await evaluate(host, check, "\ufeffaü€😀 ünd \ufeff weiter 😀") == [True] * 4
    cut = "(() => { const d = new TextDecoder(); return d.decode(Uint8Array.of(65, 0xe2, 0x82), { stream: true }) + d.decode() })()"
    assert await evaluate(host, cut) == "A\ufffd"
    fatal = "new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.of(0xff))"
    assert await evaluate(host, f"caught(() => {fatal})") == "TypeError TypeError"
    assert await evaluate(host, "caught(() => new TextDecoder('utf-16le'))") == "RangeError RangeError"
    assert await evaluate(host, "caught(() => new TextDecoder().decode('text'))") == "TypeError TypeError"


async def test_wrong_bytes_become_replacement_characters_as_in_python(host: Host) -> None:
    cases = [
        "c080",
        "e08080",
        "eda080",
        "f0808080",
        "f4908080",
        "f5",
        "e282",
        "e28241",
        "f09f98",
        "80",
        "c3c3bc",
        "fffe",
    ]
    decode = "input.map((bytes) => new TextDecoder().decode(Uint8Array.from(bytes)))"
    ours = await evaluate(host, decode, [list(bytes.fromhex(case)) for case in cases])
    assert ours == [bytes.fromhex(case).decode(errors="replace") for case in cases]


async def test_encode_into_stops_where_a_character_does_not_fit(host: Host) -> None:
    expression = """input.map(([text, room]) => {
      const bytes = new Uint8Array(room), { read, written } = new TextEncoder().encodeInto(text, bytes);
      return [read, written, shown(bytes)];
    })"""
    cases = [["abc", 2], ["aü", 2], ["a😀b", 4], ["a😀b", 5], ["€", 3], ["", 1]]
    assert await evaluate(host, expression, cases) == [
        [2, 2, [97, 98]],
        [1, 1, [97, 0]],
        [1, 1, [97, 0, 0, 0]],
        [3, 5, [97, 0xF0, 0x9F, 0x98, 0x80]],
        [1, 3, [0xE2, 0x82, 0xAC]],
        [0, 0, [0]],
    ]


async def test_base64_follows_the_forgiving_rules_of_node(host: Host) -> None:
    function = """(input) => input.map((text) => {
      const tried = (work) => { try { return work() } catch (error) { return [error.name, error.code] } };
      return [tried(() => btoa(text)), tried(() => atob(text))];
    })"""
    cases = [
        "",
        "a",
        "ab",
        "abc",
        "abcd",
        "ÿ\u0000",
        "€",
        "YQ==",
        "YQ=",
        "YQ",
        " Y Q\n==",
        "Y",
        "Y===",
        "YWJj",
        "!!!!",
        "ab-_",
        "=",
        "YR==",
    ]
    assert await evaluate(host, f"({function})(input)", cases) == by_node(function, cases)


# --- structuredClone --------------------------------------------------------------------------------------------


async def test_values_are_cloned_with_their_kind_and_shape(host: Host) -> None:
    source = """export default () => {
      const shared = { deep: [1, { two: 2n }] };
      const value = {
        shared, again: shared, date: new Date(5), pattern: /a\\/b/giu, map: new Map([[shared, new Set([1, 'x'])]]),
        bytes: Uint8Array.of(1, 2, 3), floats: new Float64Array([1.5]), view: new DataView(new ArrayBuffer(4), 1, 2),
        sparse: [1, , 3], boxed: [new Number(1), new String('s'), new Boolean(false), Object(1n)], nothing: null, un: undefined,
        error: new RangeError('far', { cause: shared }), bare: Object.assign(Object.create(null), { a: 1 }),
      };
      value.self = value;
      value.map.set('self', value.map);
      const copy = structuredClone(value);
      const key = [...copy.map.keys()][0];
      return [
        copy !== value && copy.self === copy && copy.map.get('self') === copy.map, copy.shared === copy.again && copy.shared === key,
        copy.shared !== shared && String(copy.shared.deep[1].two), copy.date.getTime(), String(copy.pattern),
        [...copy.map.get(key)], [...copy.bytes], [...copy.floats], copy.view.byteOffset + copy.view.byteLength,
        1 in copy.sparse, copy.sparse.length, copy.boxed.map((each) => typeof each + typeof each.valueOf()), copy.nothing,
        'un' in copy, copy.error instanceof RangeError, copy.error.message, copy.error.cause === copy.shared,
        Object.getPrototypeOf(copy.bare) === Object.prototype, copy.bytes.buffer !== value.bytes.buffer,
      ];
    }"""
    assert output(await host.run(source)) == [
        True, True, "2", 5, "/a\\/b/giu", [1, "x"], [1, 2, 3], [1.5], 3, False, 3,
        ["objectnumber", "objectstring", "objectboolean", "objectbigint"], None, True, True, "far", True, True, True,
    ]  # fmt: skip


async def test_classes_lose_their_class_and_getters_become_values(host: Host) -> None:
    expression = """(() => {
      class Point { #hidden = 1; x = 1; get y() { return 2 } }
      const copy = structuredClone(Object.assign(new Point(), { get z() { return 3 } }));
      return [copy.constructor === Object, Object.keys(copy), copy.z, structuredClone(new (class extends Map {})([[1, 2]])).get(1)];
    })()"""
    assert await evaluate(host, expression) == [True, ["x", "z"], 3, 2]


@pytest.mark.parametrize(
    "value",
    [
        "() => 1",
        "Symbol('x')",
        "{ f() {} }",
        "[Symbol.iterator]",
        "Promise.resolve()",
        "new WeakMap()",
        "new Headers()",
        "new Response('x')",
        "new AbortController().signal",
        "new URL('http://x')",
        "(() => { let deep = []; for (let i = 0; i < 1e5; i++) deep = [deep]; return deep })()",
    ],
)
async def test_what_cannot_be_cloned_is_refused(host: Host, value: str) -> None:
    refused = await evaluate(host, f"caught(() => structuredClone({value}))")
    assert refused == "DOMException DataCloneError"


async def test_transferred_memory_leaves_its_owner(host: Host) -> None:
    expression = """(() => {
      const bytes = Uint8Array.of(1, 2), copy = structuredClone({ bytes }, { transfer: [bytes.buffer] });
      return [bytes.length, bytes.buffer.detached, [...copy.bytes]];
    })()"""
    assert await evaluate(host, expression) == [0, True, [1, 2]]
    twice = (
        "(() => { const b = new ArrayBuffer(1); return caught(() => structuredClone(b, { transfer: [b, b] })) })()"
    )
    assert await evaluate(host, twice) == "DOMException DataCloneError"


# --- random values ------------------------------------------------------------------------------------------------

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


async def test_uuids_are_of_version_4_and_never_the_same(host: Host) -> None:
    source = "export default () => Array.from({ length: 500 }, () => crypto.randomUUID())"
    bundles = [await host.load(source, tenant=tenant) for tenant in ("alice", "alice", "bob")]
    seen: list[str] = []
    for bundle, tenant in zip(bundles, ("alice", "alice", "bob"), strict=True):
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


# --- crypto.subtle ------------------------------------------------------------------------------------------------

TO_BYTES = "((hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16)))"


@pytest.mark.parametrize("name", ["SHA-1", "SHA-256", "SHA-384", "SHA-512"])
async def test_digests_are_those_of_fips_180_4(host: Host, name: str) -> None:
    two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    texts = ["", "abc", two_blocks, "a" * 1_000_000]
    ours = await evaluate(
        host,
        "Promise.all(input[1].map(async (text) => shown(await crypto.subtle.digest(input[0].toLowerCase(), new TextEncoder().encode(text)))))",
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
  const bytes = {TO_BYTES}, imported = await crypto.subtle.importKey('raw', bytes(key), {{ name: 'hmac', hash }}, false, ['sign', 'verify']);
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
      return [raw.byteLength, jwk.kty, jwk.alg, jwk.key_ops, key.algorithm, key.usages, key.type, again.extractable,
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
      format, typeof key === 'string' ? bytes(key) : key, {{ name: 'ECDSA', namedCurve: 'P-256' }}, true, ['verify']);
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
      const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, '0')).join('');
      return [{ kty, crv, x, y }, hex(await crypto.subtle.exportKey('raw', key)), hex(await crypto.subtle.exportKey('spki', key))];
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


# --- events and aborting --------------------------------------------------------------------------------------------


async def test_events_reach_their_listeners_in_order(host: Host) -> None:
    expression = """(() => {
      const target = new EventTarget(), seen = [];
      const listener = (event) => seen.push(event.type, event.target === target);
      target.addEventListener('x', listener);
      target.addEventListener('x', listener);
      target.addEventListener('x', { handleEvent(event) { seen.push('object'); event.preventDefault() } }, { once: true });
      const went = [target.dispatchEvent(new Event('x', { cancelable: true })), target.dispatchEvent(new Event('x'))];
      target.removeEventListener('x', listener);
      target.dispatchEvent(new Event('x'));
      return [seen, went];
    })()"""
    assert await evaluate(host, expression) == [["x", True, "object", "x", True], [False, True]]


async def test_signals_tell_once_and_why(host: Host) -> None:
    expression = """(async () => {
      const controller = new AbortController(), { signal } = controller, seen = [];
      signal.onabort = (event) => seen.push(event.type);
      signal.addEventListener('abort', () => seen.push('listener'));
      const any = AbortSignal.any([new AbortController().signal, signal]);
      controller.abort(); controller.abort('again');
      const late = AbortSignal.timeout(20);
      await new Promise((done) => late.addEventListener('abort', done));
      return [seen, signal.aborted, signal.reason.name, signal.reason.code, any.reason === signal.reason, late.reason.name,
        AbortSignal.abort(5).reason, await caught(() => signal.throwIfAborted()), await caught(() => new AbortSignal()),
        AbortSignal.any([AbortSignal.abort(1), AbortSignal.abort(2)]).reason];
    })()"""
    assert await evaluate(host, expression) == [
        ["abort", "listener"], True, "AbortError", 20, True, "TimeoutError", 5, "DOMException AbortError",
        "TypeError TypeError", 1,
    ]  # fmt: skip


async def test_an_exception_is_an_error_with_name_and_code(host: Host) -> None:
    expression = """(() => {
      const error = new DOMException('why', 'AbortError');
      return [error instanceof Error, error instanceof DOMException, error.name, error.message, error.code,
        String(error), Object.prototype.toString.call(error), error.stack.split('\\n')[0], new DOMException().name,
        new DOMException('m', { name: 'X', cause: 7 }).cause];
    })()"""
    assert await evaluate(host, expression) == [
        True, True, "AbortError", "why", 20, "AbortError: why", "[object DOMException]", "AbortError: why", "Error", 7,
    ]  # fmt: skip


# --- console and clock ------------------------------------------------------------------------------------------------


async def test_the_console_is_complete(host: Host) -> None:
    source = """export default () => {
      console.assert(true, 'no'); console.assert(false, 'yes', { a: 1 });
      console.count(); console.count(); console.count('x'); console.countReset(); console.count();
      console.group('outer'); console.log('inner'); console.groupEnd(); console.log('out');
      console.table([{ a: 1, b: 2 }], ['b']); console.dir({ a: [1] });
      console.time('t'); console.timeLog('t', 'more'); console.timeEnd('t'); console.timeEnd('t');
      console.log(new Headers({ a: 'b' }), new URL('http://x/'), new Response('x', { status: 201 }));
      console.log(new DOMException('why', 'DataError').name, crypto);
      return Object.keys(console).length;
    }"""
    result = await host.run(source)
    assert output(result) == 19
    lines = [re.sub(r"\d+ ms", "N ms", line) for line in logs(result)]
    assert lines == [
        "Assertion failed: yes { a: 1 }",
        "default: 1", "default: 2", "x: 1", "default: 1",
        "outer", "  inner", "out",
        "0: [Object: null prototype] { b: 2 }", "{ a: [1] }",
        "t: N ms more", "t: N ms", "Timer 't' does not exist",
        'Headers { a: "b" } URL "http://x/" Response { status: 201, url: \'\' }',
        "DataError Crypto {}",
    ]  # fmt: skip


async def test_labels_of_the_console_end_with_their_call(host: Host) -> None:
    bundle = await host.load("export default () => { console.count(); console.group('g'); console.log('x') }")
    for _ in range(2):
        assert logs(await host.invoke(bundle)) == ["default: 1", "g", "  x"]


async def test_the_clock_goes_forward_in_milliseconds(host: Host) -> None:
    expression = """(async () => {
      const before = performance.now();
      await new Promise((done) => setTimeout(done, 30));
      const after = performance.now();
      return [Number.isInteger(before), after - before >= 29, Math.abs(Date.now() - performance.timeOrigin - after) < 5];
    })()"""
    assert await evaluate(host, expression) == [True, True, True]


# --- an author who changes everything -----------------------------------------------------------------------------

HOSTILE = """
const trap = function () { throw new Error('trapped') };
const spoil = (object) => {
  for (const key of Reflect.ownKeys(object)) {
    if (key === 'constructor') continue;
    try { Object.defineProperty(object, key, { get: trap, set: trap, configurable: true }) } catch {}
  }
};
const { defineProperty } = Object;
const kinds = [Map, Set, Array, String, Promise, RegExp, Uint8Array, ArrayBuffer, DataView, Date, Number, Function];
const own = [Reflect, JSON, Math, Array, String, Promise, Uint8Array, ArrayBuffer, Symbol, Error];
const targets = [...kinds.map((kind) => kind.prototype), Reflect.getPrototypeOf(Uint8Array.prototype), ...own, Object];
export default async function (input, ctx) {
  if (input.spoil) {
    for (let i = 0; i < targets.length; i++) spoil(targets[i]);
    for (const name of ['get', 'set', 'value', 'writable', 'then', 'toJSON', 'id', 'pending', 'resolve', '0', '1']) {
      defineProperty({}.__proto__, name, { get: () => { throw 1 }, set: () => { throw 1 }, configurable: true });
    }
  }
  return input.value;
}
"""


async def test_an_author_who_spoils_every_prototype_spoils_their_own_calls_only(host: Host) -> None:
    spoiled = HOSTILE.replace("for (const name of [", "for (let i = 0, names = [").replace(
        "'0', '1']) {", "'0', '1'], name; i < 11; i++) { name = names[i];"
    )
    bundle = await host.load(spoiled)
    other = await host.load(
        "export default (input) => [input, new URL('http://x/').host, crypto.randomUUID().length]"
    )
    result = await host.invoke(bundle, {"spoil": True, "value": 1})
    for n in range(3):
        again = await host.invoke(bundle, {"spoil": False, "value": n})
        # Whatever they get is an answer to this call: their value, or an error of their own making.
        assert again.error is not None or output(again) == n
        assert output(await host.invoke(other, n)) == [n, "x", 36]
    assert result.error is None or result.error.code in ("function_error", "invalid_output")


async def test_a_spoiled_prototype_does_not_reach_our_answers(host: Host) -> None:
    async def answer(name: str, argument: Any) -> Any:
        return {"name": name, "argument": argument}

    source = """
      Object.prototype.toJSON = () => 'forged';
      Array.prototype[Symbol.iterator] = () => { throw new Error('iterator') };
      Promise.prototype.then = () => { throw new Error('then') };
      Map.prototype.get = Map.prototype.set = () => { throw new Error('map') };
      String.prototype.slice = String.prototype.indexOf = () => 'forged';
      Object.defineProperty(Uint8Array, Symbol.species, { get() { throw new Error('species') } });
      JSON.parse = JSON.stringify = () => 'forged';
      Reflect.apply = () => 'forged';
      export default (input, ctx) => {
        console.log('line', { a: input });
        return new Promise((resolve) => setTimeout(() => resolve(`${input}`), 5));
      }"""
    result = await host.run(source, 7, host=answer)
    assert output(result) == "7"
    assert logs(result) == ["line { a: 7 }"]


async def test_code_from_strings_is_not_needed(host: Host) -> None:
    source = """
      globalThis.eval = undefined;
      const none = () => { throw new Error('code from strings') };
      for (const kind of [function () {}, async function () {}, function* () {}]) {
        Object.defineProperty(Object.getPrototypeOf(kind), 'constructor', { value: none });
      }
      globalThis.Function = none;
      export default async () => [
        new URL('http://b\\u00fccher.example/').host, structuredClone([1]), (await crypto.subtle.digest('SHA-1', new Uint8Array(1))).byteLength,
        crypto.randomUUID().length, new Request('http://x/ y').url, new TextDecoder().decode(new TextEncoder().encode('x')),
      ]"""
    assert output(await host.run(source)) == ["xn--bcher-kva.example", [1], 20, 36, "http://x/%20y", "x"]


async def test_calls_that_run_at_once_get_their_own_answers(host: Host) -> None:
    source = """export default async ({ n }) => {
      const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(`${n}`));
      return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
    }"""
    bundle = await host.load(source)
    results = await asyncio.gather(*(host.invoke(bundle, {"n": n}) for n in range(50)))
    assert [output(result) for result in results] == [
        hashlib.sha256(str(n).encode()).hexdigest() for n in range(50)
    ]
