"""Values of granted secrets do not leave in logs, messages and stacks, however they were written there."""

import base64
import json
import re
from urllib.parse import quote, quote_plus

import pytest

from tests.enclave_process.host import Host, logs, output

PASSWORD = 'p"a/s+s w0rd=€\\ñ'
WRITTEN = {
    "as it is": PASSWORD,
    "JSON": json.dumps(PASSWORD, ensure_ascii=False),
    "JSON in JSON": json.dumps(json.dumps({"p": PASSWORD}, ensure_ascii=False), ensure_ascii=False),
    "URL component": quote(PASSWORD, safe="!~*'()"),
    "URL component, codes in lower case": re.sub(
        "%..", lambda code: code[0].lower(), quote(PASSWORD, safe="!~*'()")
    ),
    "form": quote_plus(PASSWORD, safe="*"),
    "hexadecimal": PASSWORD.encode().hex(),
    "HEXADECIMAL": PASSWORD.encode().hex().upper(),
    "Base64": base64.b64encode(PASSWORD.encode()).decode(),
    "Base64 for URLs": base64.urlsafe_b64encode(PASSWORD.encode()).decode().rstrip("="),
    "Basic authentication": base64.b64encode(f"user:{PASSWORD}".encode()).decode(),
    "Basic authentication, one off": base64.b64encode(f"users:{PASSWORD}!".encode()).decode(),
}
SAYS = """export default (input, ctx) => {
  console.log('logged ' + input.text + '.');
  console.error({ deep: [input.text] }, new Error('in an error ' + input.text));
  if (input.fail) throw new TypeError('failed with ' + input.text + '.');
  return input.text;
}"""


@pytest.mark.parametrize("written", WRITTEN, ids=str)
async def test_a_value_is_replaced_however_it_is_written(host: Host, written: str) -> None:
    text = WRITTEN[written]
    bundle = await host.load(SAYS, secrets={"PASSWORD": PASSWORD})
    failed = await host.invoke(bundle, {"text": text, "fail": True})
    assert failed.error is not None
    # At its ends Base64 mixes in what stands beside the value.
    core = text[8:-8] if "Bas" in written else text
    for shown in (*logs(failed), failed.error.message, failed.error.stack):
        assert "[secret PASSWORD]" in shown, shown
        assert core not in shown
    assert failed.error.message.startswith("TypeError: failed with ")
    # What a function returns is its author's decision.
    assert output(await host.invoke(bundle, {"text": text})) == text


async def test_what_is_no_secret_stays_as_it_is(host: Host) -> None:
    bundle = await host.load(SAYS, secrets={"PASSWORD": PASSWORD, "PIN": "123", "EMPTY_LOOKING": "    "})
    for text in ("password", "123", "PASSWORD", '\\n"', "\x00\n\t😀", PASSWORD[:-1], "[secret OTHER]", "secret"):
        result = await host.invoke(bundle, {"text": text})
        assert logs(result)[0] == f"logged {text}."


async def test_values_that_meet_or_hold_each_other_are_gone_whole(host: Host) -> None:
    secrets = {"A": "abcdefgh", "B": "efghijkl", "HOLDS_A": "xxabcdefghxx", "WORD": "secret"}
    bundle = await host.load(SAYS, secrets=secrets)
    for text, shown in (
        ("abcdefghijkl", "logged [secret A]."),
        ("xxabcdefghxx", "logged [secret HOLDS_A]."),
        ("abcdefghabcdefgh", "logged [secret A][secret A]."),
        ("the secret is abcdefgh", "logged the [secret WORD] is [secret A]."),
    ):
        result = await host.invoke(bundle, {"text": text})
        assert logs(result)[0] == shown


async def test_each_line_of_a_key_is_a_secret(host: Host) -> None:
    key = "-----BEGIN KEY-----\nMHcCAQEEIBkg4LVWM9nuwNSk3yByxZpYRTBnVJk5GkMbr4\nabc\n-----END KEY-----\n"
    source = (
        "export default (input, ctx) => { for (const line of ctx.secrets.KEY.split('\\n')) console.log(line) }"
    )
    result = await host.run(source, secrets={"KEY": key})
    assert "MHcCAQEEIBkg" not in result.logs.decode()
    assert "[secret KEY]" in logs(result)


@pytest.mark.parametrize("at", range(1, 40, 6))
async def test_a_value_that_is_cut_off_does_not_show_its_beginning(host: Host, at: int) -> None:
    """Lines end after 16,384 characters, messages after 4,096."""
    value = "begin-0123456789-0123456789-0123456789-end"
    source = """export default (input, ctx) => {
      console.log('x'.repeat(16384 - input) + ctx.secrets.LONG);
      throw 'y'.repeat(4096 - input) + ctx.secrets.LONG;
    }"""
    result = await host.invoke(await host.load(source, secrets={"LONG": value}), at)
    assert result.error is not None
    for shown in (logs(result)[0].removesuffix("… (cut)"), result.error.message):
        assert value[:4] not in shown
        assert ("[secr" in shown[-60:]) or at < 6


async def test_logs_of_a_call_that_was_ended_are_redacted_too(host: Host) -> None:
    """They leave while the call runs, because they would be lost with it."""
    value = "a-value-to-hide"
    endless = "export default (i, ctx) => { console.log(ctx.secrets.V); for (;;); }"
    waiting = "export default async (i, ctx) => { console.log(ctx.secrets.V); await new Promise(() => {}); }"
    coded = """export default (i, ctx) => {
      throw Object.assign(new Error(ctx.secrets.V), { name: ctx.secrets.V, code: ctx.secrets.V })
    }"""
    for source, code in ((endless, "cpu_limit"), (waiting, "timeout"), (coded, "function_error")):
        bundle = await host.load(source, secrets={"V": value}, cpu_ms=100, timeout_ms=400)
        result = await host.invoke(bundle)
        assert result.error is not None
        assert result.error.code == code
        shown = result.logs.decode() + result.error.message + result.error.stack
        assert value not in shown
        assert "[secret V]" in shown


async def test_names_longer_than_values_do_not_swell_the_logs_past_their_limit(host: Host) -> None:
    source = """export default (input, ctx) => {
      for (let i = 0; i < 200; i++) console.log(ctx.secrets[input].repeat(300));
      throw ctx.secrets[input].repeat(1000);
    }"""
    name = "N" * 64
    result = await host.invoke(await host.load(source, secrets={name: "abcd"}), name)
    assert result.error is not None
    assert len(result.error.message) == 4096
    assert len(result.logs) <= 262_144 + 200
    lines = logs(result)
    assert lines[0] == f"[secret {name}]" * 300
    assert lines[-1].startswith("log truncated")


async def test_a_large_secret_and_many_of_them_are_found(host: Host) -> None:
    secrets = {f"S{n}": f"{n:04}-" + "v" * (65_000 if n < 3 else 30) for n in range(100)}
    source = """export default (input, ctx) => {
      console.log(ctx.secrets.S1.slice(0, 10000));
      console.log(ctx.secrets.S50, ctx.secrets.S99);
      throw new Error(ctx.secrets.S77);
    }"""
    result = await host.run(source, secrets=secrets)
    assert logs(result)[1] == "[secret S50] [secret S99]"
    assert result.error is not None
    assert result.error.message == "[secret S77]"
