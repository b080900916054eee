"""What commands print: tables and lines for people, JSON for programs."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Nothing is folded on its way into a pipe.
_WIDTH = None if sys.stdout.isatty() else 10_000
console = Console(highlight=False, width=_WIDTH)
notes = Console(stderr=True, highlight=False)

_STATE_STYLES = {
    "confirmed": "green",
    "succeeded": "green",
    "sent": "cyan",
    "signed": "cyan",
    "queued": "yellow",
    "running": "cyan",
    "dead": "red",
    "cancelled": "dim",
    "faulted": "red",
    "failed": "red",
    "rejected": "red",
    "expired": "red",
    # Of nodes.
    "ok": "green",
    "lagging": "yellow",
    "limited": "yellow",
    "half_open": "yellow",
    "open": "red",
    "excluded": "red",
    "wrong_network": "red",
}


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> None:
    """``columns``: member of a row → heading. ``empty`` says what to do when there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns.values():
        # What people copy must stay in one piece.
        table.add_column(heading, overflow="fold", no_wrap=heading in ("ID", "NAME", "ADDRESS"))
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    if table.row_count:
        console.print(table)
    else:
        notes.print(empty)


def print_fields(pairs: Mapping[str, Any]) -> None:
    """One thing, a line a member; members that are null are left out. Nothing is folded, so it can be copied."""
    shown = {name: value for name, value in pairs.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        line = Text(f"{name:<{width}}  ", style="bold") + _cell(value, full=True)
        console.print(line, soft_wrap=True)


def _cell(value: Any, *, full: bool = False) -> Text:
    """``full``: dates with the time of day whatever the day."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)):
        return Text(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        return Text(", ".join(map(str, value)) or "-")
    text = str(value)
    if len(text) >= 20 and text[10:11] == "T":
        with contextlib.suppress(ValueError):
            text = _local(datetime.fromisoformat(text), full=full)
    return Text(text, style=_STATE_STYLES.get(text, ""))


def _local(time: datetime, *, full: bool) -> str:
    """In local time; of today only the time of day, unless ``full``."""
    local = time.astimezone()
    if full:
        return local.strftime("%Y-%m-%d %H:%M:%S")
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%Y-%m-%d")
