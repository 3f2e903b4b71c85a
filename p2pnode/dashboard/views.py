"""What `p2pnode top` shows: pure functions from what is known, what was pressed and the size to something
rich prints.

No clock, no terminal, no socket: the same arguments give the same characters, so a picture can be a test.
Rows are cut to the visible window *before* a table is built (300 rows cost 195 ms, 40 cost 37), and every
word that came from outside passes `printable`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pnode.dashboard.keys import KEY_TABLE, Key
from p2pnode.printable import printable
from p2pnode.tables import decimal, duration, reasons, sparkline, whole

INTERVALS_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_STATE_STYLE = {
    "training": "green",
    "exchanging": "green",
    "joining": "yellow",
    "starting": "yellow",
    "isolated": "red",
    "diverged": "red",
    "stopping": "red",
}
# Wider, and the eye loses the row.
TABLE_COLUMNS_MAX = 100
# Lines that are not peers: header 4, head of the table, refusals, footer, and one where the cursor rests.
_OTHER_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the daemon said last."""

    status: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    peers: Sequence[Mapping[str, Any]] = ()
    losses: tuple[float, ...] = ()  # of the last rounds, oldest first
    trouble: str = ""  # why there is nothing newer; empty: all is well


@dataclass(frozen=True, slots=True, kw_only=True)
class Ui:
    """What the person did."""

    selected: int = 0
    paused: bool = False
    help: bool = False
    interval: int = 1  # index into INTERVALS_S
    quit: bool = False

    @property
    def interval_s(self) -> float:
        return INTERVALS_S[self.interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    columns: int
    rows: int


def pressed(ui: Ui, key: Key, *, peers: int, page: int = 10) -> Ui:
    """The state after a key; keys that mean nothing change nothing.

    Args:
        peers: Rows there are to select from.
        page: Rows that PgUp and PgDn move by.
    """
    last = max(peers - 1, 0)
    moves = {"j": 1, "down": 1, "k": -1, "up": -1, "pagedown": page, "pageup": -page}
    moves |= {"home": -peers, "end": peers}
    if key in moves:
        return dataclasses.replace(ui, selected=min(max(ui.selected + moves[key], 0), last))
    if key in ("q", "ctrl-c"):
        return dataclasses.replace(ui, quit=True)
    if key in ("?", "h"):
        return dataclasses.replace(ui, help=not ui.help)
    if key == "escape":
        return dataclasses.replace(ui, help=False)
    if key in ("p", "space"):
        return dataclasses.replace(ui, paused=not ui.paused)
    if key in ("+", "="):
        return dataclasses.replace(ui, interval=max(ui.interval - 1, 0))
    if key == "-":
        return dataclasses.replace(ui, interval=min(ui.interval + 1, len(INTERVALS_S) - 1))
    return ui


def screen(known: Known, ui: Ui, size: Size) -> RenderableType:
    """The whole screen, at most `size.rows` lines."""
    if ui.help:
        return _help()
    room = max(size.rows - _OTHER_LINES, 1)
    selected = min(ui.selected, max(len(known.peers) - 1, 0))
    # The window follows the selection: keep it inside, move no more than needed from the top.
    first = max(0, min(selected - room // 2, len(known.peers) - room))
    window = known.peers[first : first + room]
    return Group(
        *_header(known, size),
        peer_table(window, selected=selected - first, columns=size.columns),
        _refusals(known.status, size),
        _footer(known, ui, size),
    )


def once(known: Known, size: Size) -> RenderableType:
    """All peers in one plain table: for pipes and for `--once`."""
    return Group(*_header(known, size), peer_table(known.peers, selected=-1, columns=size.columns))


def peer_table(peers: Sequence[Mapping[str, Any]], *, selected: int, columns: int) -> Table:
    """One row per peer; `selected` is the row to mark, -1 for none."""
    # A fixed width with one elastic column: the others never shrink below what makes them readable.
    table = Table(box=None, pad_edge=False, header_style="bold", width=min(columns, TABLE_COLUMNS_MAX))
    table.add_column("", width=1)
    table.add_column("peer", width=12)
    table.add_column("address", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("way", width=3)
    table.add_column("run", width=5)
    for name in ("since", "exchanges", "faults"):
        table.add_column(name, justify="right", no_wrap=True, width=max(len(name), 6))
    for number, peer in enumerate(peers):
        same = peer.get("same_run")
        table.add_row(
            Text("›" if number == selected else " "),
            Text(printable(str(peer.get("id", "")), 64)[:12]),
            Text(printable(str(peer.get("address", "")), 64)),
            Text("in" if peer.get("inbound") else "out"),
            Text("same" if same else "other", style="" if same else "yellow"),
            Text(duration(peer.get("since_s"))),
            Text(whole(peer.get("exchanges"))),
            Text(whole(peer.get("faults")), style="red" if peer.get("faults") else ""),
            style="reverse" if number == selected else None,
        )
    return table


def _header(known: Known, size: Size) -> list[Text]:
    status = known.status
    state = printable(str(status.get("state", "unknown")), 16)
    first = Text(no_wrap=True, overflow="ellipsis")
    first.append("p2pnode ", style="bold")
    first.append(printable(str(status.get("id", "")), 64)[:12])
    first.append("  ")
    first.append(state, style=_STATE_STYLE.get(state, ""))
    first.append(f"  up {duration(status.get('uptime_s'))}  {printable(str(status.get('version', '')), 32)}")
    place = printable(str(status.get("address", "")), 64)
    network = printable(str(status.get("network", "")), 32)
    task = printable(str(status.get("task", "")), 48)
    schema = printable(str(status.get("schema", "")), 64)[:12]
    second = Text(
        f"at {place}  network {network}  task {task}  schema {schema}", no_wrap=True, overflow="ellipsis"
    )
    third = Text(
        f"round {whole(status.get('round'))}  exchanges {whole(status.get('exchanges'))}"
        f"  peers {len(known.peers)}  loss {decimal(status.get('loss'))} ",
        no_wrap=True,
        overflow="ellipsis",
    )
    if dropped := status.get("changes_dropped"):
        third.append(f" dropped {whole(dropped)} ", style="red")
    third.append(sparkline(known.losses, max(size.columns - len(third) - 1, 0)), style="cyan")
    return [first, second, third, Text("")]


def _refusals(status: Mapping[str, Any], size: Size) -> Text:
    text = f"refused: {reasons(status.get('refused'))}; by peers: {reasons(status.get('refused_by_peers'))}"
    return Text(text, no_wrap=True, overflow="ellipsis", style="dim")


def _footer(known: Known, ui: Ui, size: Size) -> Text:
    if known.trouble:
        return Text(printable(known.trouble), style="red", no_wrap=True, overflow="ellipsis")
    pace = "paused" if ui.paused else f"every {ui.interval_s:g} s"
    return Text(f"{pace}   q quit  ? help  j k select  p pause  + - pace", style="dim", no_wrap=True)


def _help() -> Table:
    table = Table(title="keys", box=None, title_justify="left")
    table.add_column("key", style="bold")
    table.add_column("does")
    for keys, does in KEY_TABLE:
        table.add_row(keys, does)
    return table
