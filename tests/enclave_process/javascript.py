"""Expressions in JavaScript, evaluated by a function and by Node."""

import json
import subprocess
from typing import Any

from neolayer_enclave.__main__ import bundled_node
from tests.enclave_process.host import Host, output

# `shown`: what JSON cannot carry, as something it can. `caught`: the class and name of what a function throws.
PRELUDE = """
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
    """The value of an expression in an async function, with ``input`` in scope."""
    source = f"{PRELUDE}\nexport default async (input, ctx) => shown(await ({expression}));"
    return output(await host.run(source, input, **options))


def by_node(function: str, input: Any) -> Any:
    """What a function answers when Node runs it with its own globals."""
    node = bundled_node()
    assert node
    program = f"console.log(JSON.stringify(({function})(JSON.parse(process.argv[1]))))"
    done = subprocess.run([node, "-e", program, json.dumps(input)], check=True, capture_output=True)
    return json.loads(done.stdout)
