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

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

_STATE_STYLES = {
    "confirmed": "green",
    "succeeded": "green",
    "sent": "cyan",
    "signed": "cyan",
    "queued": "yellow",
    "faulted": "red",
    "failed": "red",
    "rejected": "red",
    "expired": "red",
}


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> None:
    """``columns``: member of a row → heading. ``empty`` says what to do when there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns.values():
        # What people copy must stay in one piece.
        table.add_column(heading, overflow="fold", no_wrap=heading in ("ID", "ADDRESS", "CREATED"))
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    if table.row_count:
        console.print(table)
    else:
        notes.print(empty)


def print_fields(pairs: Mapping[str, Any]) -> None:
    """One thing, a line a member; members that are null are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            table.add_row(name, _cell(value))
    console.print(table)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, list):
        return Text(", ".join(map(str, value)) or "-")
    if isinstance(value, dict):
        return Text(json.dumps(value, ensure_ascii=False))
    text = str(value)
    if len(text) >= 20 and text[10:11] == "T":
        with contextlib.suppress(ValueError):
            text = datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return Text(text, style=_STATE_STYLES.get(text, ""))
