"""What an author's function can do and sees."""

import asyncio
import json
from typing import Any

import pytest

from neolayer_enclave import protocol
from neolayer_enclave.protocol import Check, Checked, Limits, Load, Loaded
from tests.enclave_process.host import EXECUTION, Host, HostError, Refusal, logs, output


@pytest.mark.parametrize(
    "source",
    [
        "export default async function (input, ctx) { return input.a + 1; }",
        "export default (input) => input.a + 1;",
        "function main(input) { return input.a + 1; }",
        "async function main(input, ctx) { await null; return input.a + 1; } // the last line is a comment",
        "const add = (x) => x + 1;\nfunction main(input) { return add(input.a); }\nexport { add };",
        "// export\nfunction main(input) { return input.a + 1 }",
    ],
)
async def test_a_function_is_the_default_export_or_main(either_host: Host, source: str) -> None:
    await either_host.ask(Check("alice", source), Checked)
    bundle = await either_host.load(source)
    results = [await either_host.invoke(bundle, {"a": n}) for n in range(5)]
    assert [output(result) for result in results] == [1, 2, 3, 4, 5]
    # For a direct one the isolate was made ahead.
    assert [result.cold for result in results] == [either_host.client is None, False, False, False, False]
    assert all(result.wall_us > 0 and result.heap_bytes > 0 for result in results)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("undefined", "null"),
        ("null", "null"),
        ("'ü€😀'", '"ü€😀"'),
        ("[1,{a:[]}]", '[1,{"a":[]}]'),
        ("new Date(0)", '"1970-01-01T00:00:00.000Z"'),
    ],
)
async def test_the_output_is_json_text(either_host: Host, value: str, text: str) -> None:
    result = await either_host.run(f"export default () => {value}")
    assert result.output.decode() == text


async def test_no_input_is_undefined_and_input_arrives_unchanged(either_host: Host) -> None:
    bundle = await either_host.load("export default (input) => input === undefined ? 'none' : input")
    assert output(await either_host.invoke(bundle)) == "none"
    for value in (0, False, "", "ü€😀\u0000\n", {"__proto__": 1, "a": [None, 1.5, "x" * 300_000]}):
        assert output(await either_host.invoke(bundle, value)) == value


async def test_input_that_is_not_json_fails_the_call(either_host: Host) -> None:
    bundle = await either_host.load("export default () => 1")
    result = protocol.decode_result(await either_host.call(bundle, b"{"))
    assert result.error is not None
    assert result.error.code == "invalid_input"
    with pytest.raises(Refusal) as refusal:
        await either_host.call(bundle, b'"' + b"x" * 1_048_576)
    assert refusal.value.code == "input_too_large"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("10n", "BigInt"),
        ("(() => { const a = {}; a.a = a; return a })()", "circular"),
        ("() => 1", "a function is not JSON"),
        ("Symbol('x')", "a symbol is not JSON"),
        ("'x'.repeat(1048577)", "1048576 bytes"),
        ("'€'.repeat(500000)", "1048576 bytes"),
        ("({ toJSON() { throw new Error('no') } })", "no"),
    ],
)
async def test_a_value_that_is_not_json_is_an_invalid_output(either_host: Host, value: str, says: str) -> None:
    result = await either_host.run(f"export default () => ({value})")
    assert result.error is not None
    assert result.error.code == "invalid_output"
    assert says in result.error.message
    assert result.output == b""


async def test_what_a_function_throws_is_shown_with_its_own_frames_only(either_host: Host) -> None:
    source = """
        function inner() {
          throw new TypeError('boom');
        }
        export default async function (input, ctx) {
          await ctx.neo.read({});
          [1].map(() => inner());
        }"""

    async def answer(name: str, argument: Any) -> Any:
        return {}

    result = await either_host.run(source, name="pay out/v1", host=answer)
    assert result.error is not None
    assert result.error.code == "function_error"
    assert result.error.message == "TypeError: boom"
    head, *frames = result.error.stack.splitlines()
    assert head == "TypeError: boom"
    assert frames[0].strip() == "at inner (pay_out_v1.js:3:17)"
    assert len(frames) == 3
    assert all("pay_out_v1.js:" in frame for frame in frames)


@pytest.mark.parametrize(
    ("thrown", "message"),
    [
        ("'text'", "text"),
        ("null", "null"),
        ("undefined", "undefined"),
        ("{ a: 1 }", "{ a: 1 }"),
        ("{ get message() { throw 1 } }", "the thrown value cannot be shown"),
        ("Object.assign(new Error('x'), { name: 'Mine' })", "Mine: x"),
        ("10n", "10n"),
    ],
)
async def test_anything_may_be_thrown(either_host: Host, thrown: str, message: str) -> None:
    result = await either_host.run(f"export default () => {{ throw ({thrown}) }}")
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("function_error", message)


async def test_a_function_sees_the_secrets_it_was_given_and_no_others(either_host: Host) -> None:
    source = """export default (input, { secrets }) => {
      const refused = [];
      for (const name of ['OTHER', 'toString', '__proto__', 'constructor']) {
        try { secrets[name] } catch (error) { refused.push([error.code, error.message]) }
      }
      try { secrets.TOKEN = 'changed' } catch (error) { refused.push([error.name]) }
      return { token: secrets.TOKEN, names: Object.keys(secrets), json: JSON.stringify(secrets), refused }
    }"""
    value = output(await either_host.run(source, secrets={"TOKEN": "t0k€n"}))
    assert value["token"] == "t0k€n"
    assert value["names"] == ["TOKEN"]
    assert value["json"] == '{"TOKEN":"t0k€n"}'
    assert value["refused"][0] == ["unknown_secret", "this function was not given a secret named OTHER"]
    assert [each[0] for each in value["refused"]] == ["unknown_secret"] * 4 + ["TypeError"]


async def test_an_unknown_secret_fails_the_call_with_a_clear_message(host: Host) -> None:
    result = await host.run("export default (i, ctx) => {\n  return ctx.secrets.MISSING\n}")
    assert result.error is not None
    assert "MISSING" in result.error.message
    assert "hello.js:2:" in result.error.stack


async def test_a_function_asks_the_host_many_times_at_once(either_host: Host) -> None:
    asked: list[tuple[str, Any]] = []

    async def answer(name: str, argument: Any) -> Any:
        asked.append((name, argument))
        await asyncio.sleep(0.05 - argument["n"] / 1000)
        return {"n": argument["n"], "ü": "€"}

    source = """export default async (input, ctx) => {
      const reads = Array.from({ length: 20 }, (_, n) => ctx.neo.read({ n }));
      const sent = await ctx.neo.send({ n: 20 });
      return { answers: (await Promise.all(reads)).map((answer) => answer.n), sent, id: ctx.executionId };
    }"""
    value = output(await either_host.run(source, host=answer))
    assert value == {"answers": list(range(20)), "sent": {"n": 20, "ü": "€"}, "id": str(EXECUTION)}
    assert asked == [("neo.read", {"n": n}) for n in range(20)] + [("neo.send", {"n": 20})]


async def test_a_refusal_of_the_host_rejects_with_its_code(either_host: Host) -> None:
    async def refuse(name: str, argument: Any) -> Any:
        raise HostError("insufficient_gas", "the wallet has no GAS")

    source = """export default async (input, ctx) => {
      try { await ctx.neo.send({}) } catch (error) {
        return [error instanceof Error, error.code, error.message, error.stack]
      }
    }"""
    is_error, code, message, stack = output(await either_host.run(source, host=refuse))
    assert (is_error, code, message) == (True, "insufficient_gas", "the wallet has no GAS")
    assert stack.startswith("Error: the wallet has no GAS\n")
    assert "hello.js:2:" in stack
    assert "neolayer" not in stack
    failed = await either_host.run("export default (i, ctx) => ctx.neo.send({})", host=refuse)
    assert failed.error is not None
    assert failed.error.code == "function_error"
    assert failed.error.message == "the wallet has no GAS (insufficient_gas)"
    odd = await either_host.run("export default (i, ctx) => ctx.neo.read(() => 1)")
    assert odd.error is not None
    assert odd.error.message == "TypeError: the request is not JSON (invalid_request)"


async def test_console_shows_values_and_their_level(either_host: Host) -> None:
    source = """export default () => {
      console.log('text', 1, -0, true, null, undefined, 10n, Symbol('s'));
      console.info({ a: { b: [1, 'two', , { c: { d: { e: { f: 1 } } } }] }, get g() { throw 1 } });
      console.warn([1, 2], new Map([['k', { v: 1 }]]), new Set([1]), function named() {}, class A {}, () => 1);
      const loop = { name: 'loop' }; loop.self = loop;
      console.error(loop, new Date(0), /x/g, Object.create(null), new (class Point { x = 1 }));
      console.debug(new Error('shown'), Promise.resolve(), new Uint8Array([1, 2]));
      console.log(new Proxy({}, { ownKeys() { throw 1 } }));
    }"""
    result = await either_host.run(source)
    entries = json.loads(result.logs)
    assert [level for _, level, _ in entries] == ["log", "info", "warn", "error", "debug", "log"]
    assert all(0 <= ms < 1000 for ms, _, _ in entries)
    text = [text for _, _, text in entries]
    assert text[0] == "text 1 -0 true null undefined 10n Symbol(s)"
    assert text[1] == '{ a: { b: [1, "two", <empty>, { c: { d: [Object] } }] }, g: [Getter] }'
    assert text[2] == (
        '[1, 2] Map { "k" => { v: 1 } } Set { 1 } [Function: named] [Function: A] [Function: (anonymous)]'
    )
    assert text[3] == (
        '{ name: "loop", self: [Circular] } 1970-01-01T00:00:00.000Z /x/g '
        "[Object: null prototype] {} Point { x: 1 }"
    )
    assert text[4].startswith("Error: shown\n    at ")
    assert "neolayer" not in text[4]
    assert text[4].endswith("Promise {} TypedArray [1, 2]")
    assert text[5] == "[value that cannot be shown]"


async def test_logs_are_cut_with_a_mark(either_host: Host) -> None:
    many = logs(await either_host.run("export default () => { for (let i = 0; i < 5000; i++) console.log(i) }"))
    assert many[:1000] == [str(n) for n in range(1000)]
    assert len(many) == 1001
    assert "truncated" in many[-1]
    large = await either_host.run(
        "export default () => { for (;console.log('€'.repeat(5000)) || !globalThis.n--;) ; }", cpu_ms=300
    )
    assert len(large.logs) < 270_000
    assert "truncated" in logs(large)[-1]
    line = logs(await either_host.run("export default () => console.log('x'.repeat(1e6))"))
    assert len(line[0]) < 17_000


async def test_what_the_top_level_logs_comes_with_the_first_call(host: Host) -> None:
    bundle = await host.load("console.log('loaded'); export default () => console.log('called')")
    assert logs(await host.invoke(bundle)) == ["loaded", "called"]
    assert logs(await host.invoke(bundle)) == ["called"]


async def test_timers_run_in_order_and_can_be_cleared(either_host: Host) -> None:
    source = """export default async () => {
      const seen = [];
      const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
      const never = setTimeout(() => seen.push('never'), 5);
      const every = setInterval((what) => { if (seen.push(what) === 3) clearInterval(every) }, 2, 'tick');
      clearTimeout(never);
      queueMicrotask(() => seen.push('micro'));
      await wait(50);
      setTimeout(() => console.log('after the end'), 1);
      return seen;
    }"""
    assert output(await either_host.run(source)) == ["micro", "tick", "tick"]
    thrown = await either_host.run(
        "export default () => new Promise(() => setTimeout(() => { throw new Error('late') }, 1))"
    )
    assert thrown.error is not None
    assert (thrown.error.code, thrown.error.message) == ("function_error", "late")


async def test_text_is_encoded_and_decoded_as_utf_8(host: Host) -> None:
    source = """export default (input) => {
      const bytes = new TextEncoder().encode(input);
      const decode = (...bytes) => new TextDecoder().decode(new Uint8Array(bytes));
      const strict = new TextDecoder('utf-8', { fatal: true });
      let fatal; try { strict.decode(new Uint8Array([0xff])) } catch (error) { fatal = error.name }
      const lone = [...new TextEncoder().encode('\\ud800')];
      return { bytes: [...bytes], back: new TextDecoder().decode(bytes), fatal, lone,
        bad: decode(0x61, 0xe2, 0x82, 0x62, 0xc0, 0x80, 0xed, 0xa0, 0x80, 0xf4, 0x90, 0x80, 0x80, 0xf0, 0x9f) }
    }"""
    text = "aü€😀\u0000"
    value = output(await host.run(source, text))
    assert bytes(value["bytes"]) == text.encode()
    assert value["back"] == text
    assert value["fatal"] == "TypeError"
    assert value["lone"] == [0xEF, 0xBF, 0xBD]
    bad = bytes([0x61, 0xE2, 0x82, 0x62, 0xC0, 0x80, 0xED, 0xA0, 0x80, 0xF4, 0x90, 0x80, 0x80, 0xF0, 0x9F])
    assert value["bad"] == bad.decode(errors="replace")


@pytest.mark.parametrize(
    ("source", "code", "position"),
    [
        ("export default function () {\n  return 1 +;\n}", "syntax_error", (2, 13)),
        ("function main() {\n", "syntax_error", (2, 1)),
        ("let a = 1;\nlet a = 2;", "syntax_error", (2, 5)),
        ("export default 1; export default 2", "syntax_error", (1, 26)),
        ("import x from 'fs'; export default () => x", "import_not_supported", (None, None)),
        ("const a = 1", "no_entry_point", (None, None)),
        ("export default 5", "no_entry_point", (None, None)),
        ("export const other = () => 1", "no_entry_point", (None, None)),
        ("const x = 1;\nundefinedName();\nexport default () => 1", "invalid_function", (2, 1)),
        ("for (;;);", "invalid_function", (None, None)),
    ],
)
async def test_a_source_that_cannot_be_a_function_is_refused_with_its_place(
    host: Host, source: str, code: str, position: tuple[int | None, int | None]
) -> None:
    with pytest.raises(Refusal) as refusal:
        await host.ask(Check("alice", source), Checked)
    failure = refusal.value.failure
    assert failure.code == code
    assert (failure.line, failure.column) == position
    assert "/" not in failure.message.replace("nor a", "")


async def test_a_top_level_that_fails_fails_the_calls(host: Host) -> None:
    bundle = await host.load("\nnotDefined(); export default () => 1")
    for result in await asyncio.gather(host.invoke(bundle), host.invoke(bundle)):
        assert result.error is not None
        assert result.error.code == "invalid_function"
        assert result.error.message == "ReferenceError: notDefined is not defined"
        assert result.error.stack.splitlines()[1].strip() == "at hello.js:2:1"


async def test_state_stays_with_a_bundle_and_never_leaves_it(host: Host) -> None:
    source = "globalThis.seen ??= []; export default (input) => { seen.push(input); return seen }"
    one, other = await host.load(source), await host.load(source)
    foreign = await host.load(source, tenant="bob")
    assert output(await host.invoke(one, 1)) == [1]
    assert output(await host.invoke(one, 2)) == [1, 2]
    assert output(await host.invoke(other, 3)) == [3]
    assert output(await host.invoke(foreign, 4)) == [4]


async def test_a_bundle_is_loaded_again_only_with_the_same_content(host: Host) -> None:
    def load(source: str, limits: Limits) -> Load:
        return Load("alice", "same", "f", source, limits, [], ["example.com"])

    source = "export default () => 1"
    await asyncio.gather(*(host.ask(load(source, Limits()), Loaded) for _ in range(5)))
    for wrong in (load(source + " ", Limits()), load(source, Limits(cpu_ms=20))):
        with pytest.raises(Refusal) as refusal:
            await host.ask(wrong, Loaded)
        assert refusal.value.code == "bundle_conflict"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"timeout_ms": 99}, "invalid_limits"),
        ({"cpu_ms": 10_001}, "invalid_limits"),
        ({"memory_mb": 513}, "invalid_limits"),
        ({"egress": ["not a host"]}, "invalid_egress"),
        ({"egress": ["*"]}, "invalid_egress"),
        ({"egress": ["ftp://example.com"]}, "invalid_egress"),
        ({"egress": ["example.com/path"]}, "invalid_egress"),
    ],
)
async def test_a_bundle_that_cannot_run_is_refused(host: Host, options: dict[str, Any], code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        await host.load("export default () => 1", **options)
    assert refusal.value.code == code


async def test_a_source_has_a_largest_size(host: Host) -> None:
    source = "export default () => 1 //"
    with pytest.raises(Refusal) as refusal:
        await host.load(source + "x" * 1_048_576)
    assert refusal.value.code == "source_too_large"
    with pytest.raises(Refusal) as refusal:
        await host.ask(Check("alice", source + "x" * 1_048_576), Checked)
    assert refusal.value.code == "source_too_large"
    assert output(await host.run(source + "x" * 1_000_000)) == 1
