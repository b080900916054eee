"""Sources of functions of a wanted size, always the same: many functions and classes; a call uses a fifth."""

SMALL = "export default (input) => ({ hello: input.name, n: input.n + 1 });"

STEP = """
// Step {n}: sums the records of kind {kind} and keeps the largest.
function step{n}(records, options = {{}}) {{
  const seen = new Map();
  let total = {n};
  for (const [index, record] of records.entries()) {{
    if (typeof record.amount !== 'number' || Number.isNaN(record.amount)) {{
      throw new TypeError(`record ${{index}} of step {n} has no amount`);
    }}
    const key = `${{record.kind}}:${{record.owner ?? 'nobody'}}`;
    seen.set(key, (seen.get(key) ?? 0) + record.amount * {kind});
    total = (total * 31 + record.amount) % 1000003;
  }}
  const sorted = [...seen].sort(([, a], [, b]) => b - a).slice(0, options.most ?? 10);
  return {{ step: {n}, total, top: sorted.map(([key, amount]) => ({{ key, amount }})) }};
}}

class Ledger{n} {{
  #rows = [];
  constructor(name) {{
    this.name = name;
  }}
  add(row) {{
    this.#rows.push({{ ...row, at: this.#rows.length }});
    return this;
  }}
  get size() {{
    return this.#rows.length;
  }}
  find(predicate) {{
    return this.#rows.filter(predicate).map((row) => row.at);
  }}
}}
"""

MAIN = """
const steps = [{steps}];

export default async function (input) {{
  const records = Array.from({{ length: 5 }}, (_, i) => ({{ kind: i % 3, amount: i, owner: `o${{i}}` }}));
  let total = 0;
  for (let i = 0; i < steps.length; i += 5) total += steps[i](records).total;
  return {{ hello: input.name, n: input.n + 1, total }};
}}
"""


def source(size: int) -> str:
    """About ``size`` bytes, at least `SMALL`."""
    if size <= len(SMALL):
        return SMALL
    text, n = "", 0
    while len(text) + len(MAIN) + 8 * n < size:
        text += STEP.format(n=n, kind=1 + n % 17)
        n += 1
    return text + MAIN.format(steps=", ".join(f"step{i}" for i in range(n)))
