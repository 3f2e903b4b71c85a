"""The dashboard without a terminal: keys from bytes, state from keys, characters from state."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from p2pnode.dashboard import views
from p2pnode.dashboard.keys import KEY_TABLE, Key, KeyDecoder
from p2pnode.dashboard.views import Known, Size, Ui

GOLDEN = Path(__file__).parents[1] / "golden" / "top"

STATUS: dict[str, Any] = {
    "id": "815bfdf336153b8ea87933bdef6d8964b0ed6edce30831394401e0110f529482",
    "state": "training",
    "uptime_s": 3725.2,
    "version": "0.1.0",
    "address": "192.0.2.7:7400",
    "network": "main",
    "task": "digits/1",
    "schema": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "round": 412,
    "loss": 0.08731,
    "exchanges": 803,
    "refused": {"busy": 12, "timeout": 3, "too_distant": 12},
    "refused_by_peers": {},
}


def peer(number: int, **more: Any) -> dict[str, Any]:
    plain = {
        "id": f"{number:064x}"[::-1],
        "address": f"198.51.100.{number}:7400",
        "inbound": number % 2 == 1,
        "same_run": True,
        "since_s": 60.0 * number,
        "exchanges": 7 * number,
        "faults": 0,
    }
    return {**plain, **more}


def printed(renderable: RenderableType, columns: int = 100, rows: int = 24, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=columns, height=rows, force_terminal=terminal, color_system=None, _environ={}
    )
    console.print(renderable)
    return out.getvalue()


# --- keys ------------------------------------------------------------------------------------------

SEQUENCES = [
    (b"q", ["q"]),
    (b"\x03", ["ctrl-c"]),
    (b"\x1b[A", ["up"]),
    (b"\x1bOA", ["up"]),
    (b"\x1b[B\x1bOB", ["down", "down"]),
    (b"\x1b[5~\x1b[6~", ["pageup", "pagedown"]),
    (b"\x1b[1;5A", ["up"]),  # with ctrl held
    (b"\x1b[1~\x1b[4~\x1bOH\x1b[F", ["home", "end", "home", "end"]),
    (b"\x1b[200~q\x1b[201~", ["q"]),  # pasting
    (b"\x1b[<0;10;20M", []),  # a mouse
    (b"\x1b[15~", []),  # F5
    (b"\x1bq", []),  # Alt-q is not q
    (b"\x1b\x1b[A", ["escape", "up"]),
    ("é+東".encode(), ["é", "+", "東"]),
    (b" \r\t\x7f", ["space", "enter", "tab", "backspace"]),
    (b"\x00\x01", []),
]


@pytest.mark.parametrize(("data", "keys"), SEQUENCES)
def test_keys_are_the_same_whole_and_byte_by_byte(data: bytes, keys: list[str]) -> None:
    whole, single = KeyDecoder(), KeyDecoder()
    assert whole.feed(data) == keys
    assert [key for byte in data for key in single.feed(bytes([byte]))] == keys


def test_escape_alone_is_a_key_after_silence() -> None:
    decoder = KeyDecoder()
    assert decoder.feed(b"\x1b") == []
    assert decoder.waiting
    assert decoder.flush() == ["escape"]
    assert not decoder.waiting
    assert decoder.feed(b"q") == ["q"]


def test_half_a_sequence_is_forgotten_after_silence() -> None:
    decoder = KeyDecoder()
    decoder.feed(b"\x1b[1;")
    assert decoder.flush() == []
    assert decoder.feed(b"5") == ["5"]


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_nothing(data: bytes) -> None:
    decoder = KeyDecoder()
    for key in decoder.feed(data) + decoder.flush():
        assert key == "\ufffd" or len(key) > 1 or ord(key) >= 0x20


# --- what keys do --------------------------------------------------------------------------------------


def after(*keys: str, peers: int = 5) -> Ui:
    ui = Ui()
    for key in keys:
        ui = views.pressed(ui, Key(key), peers=peers)
    return ui


def test_selection_stays_among_the_peers() -> None:
    assert after("j", "down").selected == 2
    assert after("j", "k", "k", "up").selected == 0
    assert after("end").selected == 4
    assert after("pagedown").selected == 4
    assert after("end", "home").selected == 0
    assert after("j", peers=0).selected == 0


def test_quit_help_pause_and_pace() -> None:
    assert after("q").quit
    assert after("ctrl-c").quit
    assert after("?").help
    assert not after("?", "escape").help
    assert not after("h", "h").help
    assert after("p").paused
    assert not after("p", "space").paused
    assert after("-").interval_s > after().interval_s > after("+").interval_s
    assert after(*"+" * 20).interval_s == views.INTERVALS_S[0]
    assert after(*"-" * 20).interval_s == views.INTERVALS_S[-1]
    assert after("x", "F5") == Ui()


# --- what is shown -------------------------------------------------------------------------------------

LOSSES = tuple(2.3 * 0.93**n for n in range(80))
PICTURES: dict[str, tuple[Known, Ui, Size]] = {
    "training": (
        Known(
            status=STATUS,
            peers=[peer(n, same_run=n != 3, faults=2 if n == 2 else 0) for n in range(1, 6)],
            losses=LOSSES,
        ),
        Ui(selected=1),
        Size(columns=100, rows=20),
    ),
    "scrolled": (
        Known(status=STATUS, peers=[peer(n) for n in range(1, 41)], losses=LOSSES),
        Ui(selected=30),
        Size(columns=80, rows=16),
    ),
    "diverged": (
        Known(
            status={**STATUS, "state": "diverged", "changes_dropped": 37}, peers=[peer(1)], losses=LOSSES[:20]
        ),
        Ui(),
        Size(columns=80, rows=12),
    ),
    "gone": (
        Known(status=STATUS, trouble="no daemon runs in ~/.p2pnode."),
        Ui(),
        Size(columns=80, rows=16),
    ),
    "empty": (Known(), Ui(), Size(columns=60, rows=12)),
    "help": (Known(status=STATUS), Ui(help=True), Size(columns=80, rows=20)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_screen_looks_as_it_did(name: str) -> None:
    """A changed picture is a changed file: look at it, then write the new text into golden/."""
    known, ui, size = PICTURES[name]
    text = printed(views.screen(known, ui, size), size.columns, size.rows)
    lines = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert lines == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("rows", [9, 12, 24, 50])
@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("peers", [0, 1, 5, 1000])
def test_the_screen_never_exceeds_the_window(rows: int, columns: int, peers: int) -> None:
    known = Known(status=STATUS, peers=[peer(n) for n in range(peers)], losses=LOSSES)
    lines = printed(
        views.screen(known, Ui(selected=peers // 2), Size(columns=columns, rows=rows)), columns, rows
    )
    assert len(lines.splitlines()) <= rows
    assert all(len(line) <= columns for line in lines.splitlines())


def test_the_selected_peer_is_always_visible() -> None:
    known = Known(status=STATUS, peers=[peer(n) for n in range(50)])
    for selected in range(50):
        text = printed(views.screen(known, Ui(selected=selected), Size(columns=80, rows=14)), 80, 14)
        marked = [line for line in text.splitlines() if line.startswith("›")]
        assert len(marked) == 1
        assert f"198.51.100.{selected}:7400" in marked[0]


HOSTILE = ["\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\u202etxt", "a\nb", "[red]x[/red]", "\x00", "\u200b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_peer_chose_reaches_the_terminal_raw(text: str) -> None:
    status = {name: text if isinstance(value, str) else value for name, value in STATUS.items()}
    status["refused"] = {text: 3}
    known = Known(status=status, peers=[peer(1, id=text, address=text)], trouble=text)
    for view in (
        views.screen(known, Ui(), Size(columns=100, rows=24)),
        views.once(known, Size(columns=100, rows=24)),
    ):
        for line in printed(view).splitlines():
            assert line.isprintable()
    if text.startswith("[red]"):  # markup of rich is text too
        assert "[red]" in printed(views.once(known, Size(columns=100, rows=24)))


@pytest.mark.parametrize("wrong", [None, "x", [], {}, float("nan"), -1, True, 10**30])
def test_a_daemon_of_another_version_cannot_break_the_view(wrong: Any) -> None:
    known = Known(status=dict.fromkeys(STATUS, wrong), peers=[dict.fromkeys(peer(1), wrong)])
    assert "p2pnode" in printed(views.screen(known, Ui(), Size(columns=80, rows=24)))


def test_every_key_in_the_help_is_named_once() -> None:
    text = printed(views.screen(Known(), Ui(help=True), Size(columns=80, rows=24)))
    for keys, does in KEY_TABLE:
        assert keys in text
        assert does in text
