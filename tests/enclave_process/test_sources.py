"""From an author's text to a function: ES modules in all their forms, and erasable TypeScript."""

import asyncio
import hashlib
from typing import Any

import pytest

from neolayer_enclave.protocol import Check, Checked
from tests.enclave_process.host import Host, Refusal, output


@pytest.mark.parametrize(
    "source",
    [
        "export default function () { return 7 }",
        "export default function(){return 7}",
        "export default function named() { return 7 }",
        "export default async function () { return 7 }",
        "export default async function named() { return await 7 }",
        "export default async () => 7",
        "export default () => 7;",
        "export default (() => 7)",
        "export default(function () { return 7 })",
        "export/* a */default/* b */async /* c */function/* d */(/* e */) { return 7 }",
        "export\ndefault\nfunction\n(\n)\n{ return 7 }",
        "export // a comment\ndefault // export default\n() => 7",
        "const f = () => 7; export default f",
        "const f = () => 7\nexport default f\n",
        "const f = () => 7; export { f as default }",
        "const f = () => 7; export { f as default, f as other, f as 'a } name' }; export {}",
        "function main() { return 7 } export {}; export { /* nothing */ }",
        "export function main() { return 7 }",
        "export async function main() { return 7 }",
        "export const main = () => 7, { a, b: [c] } = { b: [1] };",
        "export class A { static f() { return 7 } } export default A.f",
        "const text = `export default 1; export {} ${ `export { x }` }`; // export\nexport default () => 7",
        "const a = { export: 1, default: 2, import: 3 }; a.export; a.import; export default () => a.export + 6",
        "const x = 1\nexport {}\n(function () { globalThis.ran = x + 6 })()\nexport default () => globalThis.ran",
        "export default function () { return ran }\n(1);\nvar ran = 7",
        "const $default = 7; export default () => $default",
        "const value = await Promise.resolve(7); export default () => value",
        "let value; for await (const each of [7]) value = each; export default () => value",
        "#!/usr/bin/env neolayer\nexport default () => 7",
        "\ufeffexport default () => 7",
        "const a = '\u2028';\u00a0export\u00a0default\u3000() => 7",
        "export default () => 7 // the end",
        "export default () => 7 /* the end */\n// export default 5",
        "export default () => (this === undefined ? 7 : 0)",
        "const a = '<!-- in a string -->', b = `<!--`; export default () => a.length - 15 + b.length - 2",
        "export default function f\\u0061() { return 7 }",
        "const füñ = () => 7; export { füñ as default }",
        "/* € 😀 */ export default function /* 😀 */ () { return 7 }",
        "await Promise.resolve(); var a = later(); function later() { return 7 } export default () => a",
    ],
)
async def test_every_form_of_an_export_is_understood(host: Host, source: str) -> None:
    await host.ask(Check("alice", source), Checked)
    bundle = await host.load(source)
    assert [output(await host.invoke(bundle)) for _ in range(3)] == [7, 7, 7]


@pytest.mark.parametrize("kind", ["class", "class extends Object", "class Named"])
async def test_a_class_is_called_without_new_and_says_so(host: Host, kind: str) -> None:
    result = await host.run(f"export default {kind} {{}}\n[1].map(String)")
    assert result.error is not None
    assert "cannot be invoked without 'new'" in result.error.message


async def test_the_top_level_is_strict_and_leaves_nothing_in_the_global_scope(host: Host) -> None:
    source = """
      var one = 1; let two = 2; function three() {} class Four {}
      export const five = 5;
      let wrote; try { undeclared = 1 } catch (error) { wrote = error.name }
      export default () => [Object.keys(globalThis), typeof globalThis.one, typeof globalThis.three, wrote];
    """
    assert output(await host.run(source)) == [[], "undefined", "undefined", "ReferenceError"]


@pytest.mark.parametrize(
    ("before", "line", "column"),
    [
        ("export default function (input) { ", 1, 35),
        ("export default async function* named () { ", 1, 43),
        ("/* 😀 */ export default (input) => { ", 1, 38),
        ("export\ndefault\n  async function (input) { ", 3, 28),
        ("const a = 1; export { a }; export default () => { ", 1, 51),
        ("export const a = () => {}; export default () => { ", 1, 51),
        ("const a = 1;\r\nconst b = 2;\rconst c = 3;\u2028export default () => { ", 4, 24),
        ("const f: () => void = (a?: number): void => { ", 1, 47),
        ("interface A<T> { a: T }\n  type B = A<number>;\nexport default (input: B): any => { ", 3, 37),
    ],
)
async def test_stack_traces_and_syntax_errors_point_into_the_authors_text(
    host: Host, before: str, line: int, column: int
) -> None:
    export = "\nexport default f;" if "const f" in before else ""
    if "*" in before and "function*" in before:
        thrown = await host.run("export default async function* named () { boom() }")
        assert thrown.error is None  # a generator does nothing until it is asked
    else:
        thrown = await host.run(f"{before}boom() }}{export}")
        assert thrown.error is not None
        assert thrown.error.stack.split("\n")[1].strip().rstrip(")").endswith(f"hello.js:{line}:{column}")
    with pytest.raises(Refusal) as refusal:
        await host.ask(Check("alice", f"{before}let é = 1, é = 2 }}{export}"), Checked)
    failure = refusal.value.failure
    assert (failure.code, failure.line, failure.column) == ("syntax_error", line, column + len("let é = 1, "))


@pytest.mark.parametrize(
    ("source", "code", "line", "column"),
    [
        ("export default () => 1;\n return 1", "syntax_error", 2, 2),
        ("}); (function () {", "syntax_error", 1, 1),
        ("export default () => a<!--b", "syntax_error", 1, 26),
        ("export default () => 1;\n--> 5", "syntax_error", 2, 3),
        ("const x = await (1", "syntax_error", 1, 19),
        ("with (a) {} export default () => 1", "syntax_error", 1, 1),
        ("export { missing as default }", "syntax_error", 1, 10),
        ("const m = 1;\n  export default () => import.meta.url", "import_not_supported", 2, 24),
        ("export default async () =>\n  (await import('node:fs')).x", "import_not_supported", 2, 10),
        ("export * from './other.js'", "import_not_supported", None, None),
        ("export { default } from './other.js'", "import_not_supported", None, None),
        ("await new Promise(() => {}); export default () => 1", "no_entry_point", None, None),
        ("\n  await Promise.reject(new Error('no'));\nexport default () => 1", "invalid_function", 2, 24),
        ("export default 5 as number", "no_entry_point", None, None),
        ("let a: number = 1;\nenum Colour { red }\nexport default () => 1", "typescript_not_erasable", 2, 1),
        ("class A {\n constructor(private x: number) {}\n}", "typescript_not_erasable", 2, 22),
        ("namespace N { export const x = 1 }", "typescript_not_erasable", 1, 1),
        ("export default (a: number) => <any>a", "typescript_not_erasable", 1, 31),
        ("let a: number = 1;\nlet b: = 2;", "syntax_error", 2, 8),
        ("let a: number = 1;\nlet a: string = ''", "syntax_error", 2, 5),
        ("import { x } from 'y';\nlet a: number = x; export default () => 1", "import_not_supported", None, None),
    ],
)
async def test_what_cannot_be_a_function_is_refused_with_code_and_place(
    host: Host, source: str, code: str, line: int | None, column: int | None
) -> None:
    with pytest.raises(Refusal) as refusal:
        await host.ask(Check("alice", source), Checked)
    failure = refusal.value.failure
    assert (failure.code, failure.line, failure.column) == (code, line, column)


TYPESCRIPT = """
import type { Never } from './never';
interface Order<T extends object = {}> { readonly amount: number; note?: string; extra: T }
type Total = { total: number } & Record<string, unknown>;
declare const elsewhere: string;
abstract class Base<T> { protected declare x: T; abstract go(): T; static of<U>(this: void, u: U): U { return u } }
function sum(orders: Order<{}>[], by?: (order: Order<{}>) => number): number;
function sum(this: void, orders: Order<{}>[], by = (order: Order<{}>): number => order.amount): number {
  return orders.reduce<number>((total, order) => total + by(order)!, 0);
}
export default async function (input: { orders: Order<{}>[] }, ctx: unknown): Promise<Total> {
  const orders = input.orders as Order<{}>[] satisfies unknown[];
  return { total: sum(orders), of: Base.of<string>('x'), first: orders[0]!.amount };
}
export type { Total };
export {};
"""


async def test_types_are_erased_and_the_hash_is_that_of_the_authors_text(host: Host) -> None:
    checked = await host.ask(Check("alice", TYPESCRIPT), Checked)
    assert checked.code_hash == hashlib.sha256(TYPESCRIPT.encode()).digest()
    value: Any = output(await host.run(TYPESCRIPT, {"orders": [{"amount": 2}, {"amount": 3}]}))
    assert value == {"total": 5, "of": "x", "first": 2}


async def test_what_parses_as_javascript_is_javascript(host: Host) -> None:
    assert output(await host.run("const a = 1, b = 2, c = 3; export default () => [a < b, b > (c)]")) == [
        True,
        False,
    ]
    ambiguous = "const f = 1, T = 2; export default () => f<T>(0)"
    assert output(await host.run(ambiguous)) is True


async def test_sources_of_many_tenants_may_be_prepared_at_once(host: Host) -> None:
    sources = [f"export default (n: number) => n + {n}" for n in range(12)]
    results = await asyncio.gather(*(host.run(source, 1, tenant=f"t{n % 3}") for n, source in enumerate(sources)))
    assert [output(result) for result in results] == [1 + n for n in range(12)]
