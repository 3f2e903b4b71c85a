"""Nothing a peer says can become anything but text on one line."""

import io
import json
import sys

import structlog
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import log

# Attacks as people have written them: clipboard, title, cursor up, 8-bit CSI, bidi, a forged line.
HOSTILE = [
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b]0;title\x1b\\",
    "\x1b[1A\x1b[2Kall is well",
    "\x9b31mred",
    "\u202egnp.exe",
    "ok\n12:00:00 info     trusted  peer=me",
    "a\rb",
    "\u2028next",
    "\U000e0041tag",
    "\ud800",
]


def test_every_code_point_is_visible_text_or_escaped_to_visible_text() -> None:
    """Exhaustive: all of Unicode, so no control, bidi, separator or format character can be forgotten."""
    for code in range(sys.maxunicode + 1):
        safe = log.printable(chr(code))
        assert safe.isprintable(), hex(code)
        if code < 0x20 or 0x7F <= code < 0xA0:
            assert safe.isascii(), hex(code)
            assert safe.startswith("\\"), hex(code)


def test_hostile_texts_lose_their_teeth() -> None:
    for text in HOSTILE:
        safe = log.printable(text)
        assert safe.isprintable()
        assert "\\" in safe


@given(st.text(), st.integers(2, 40))
def test_any_text_is_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    safe = log.printable(text, limit)
    assert safe.isprintable()
    assert len(safe) <= limit


def test_plain_text_in_any_language_stays_as_it_is() -> None:
    for text in ("node 7", "Zürich", "東京", "Ελλάδα", "é"):
        assert log.printable(text) == text


def test_escaping_is_unambiguous() -> None:
    assert log.printable("\\n") != log.printable("\n")


def test_stacked_marks_are_cut_down() -> None:
    safe = log.printable("Z" + "\u0335" * 20)
    assert safe.count("\u0335") <= 2


def logged(*, json_lines: bool, color: bool = False) -> io.StringIO:
    stream = io.StringIO()
    log.configure(level="info", json_lines=json_lines, stream=stream, color=color)
    return stream


def test_one_event_is_one_line_whatever_it_carries() -> None:
    for json_lines in (True, False):
        stream = logged(json_lines=json_lines)
        for text in HOSTILE:
            structlog.get_logger().info(
                "refused", detail=text, nested={"k": [text]}, raw=text.encode("utf-8", "replace")
            )
        lines = stream.getvalue().splitlines()
        assert len(lines) == len(HOSTILE)
        assert all(line.isprintable() for line in lines)
        structlog.reset_defaults()


def test_only_our_own_colors_reach_a_terminal() -> None:
    stream = logged(json_lines=False, color=True)
    for text in HOSTILE:
        structlog.get_logger().warning(text, peer=text)
    rest = stream.getvalue()
    for own in ("\x1b[2m", "\x1b[33m", "\x1b[0m"):
        rest = rest.replace(own, "")
    assert all(line.isprintable() for line in rest.splitlines())
    structlog.reset_defaults()


def test_json_lines_are_json_even_for_what_json_has_no_word_for() -> None:
    stream = logged(json_lines=True)
    structlog.get_logger().info(
        "learned", loss=float("nan"), clip=float("inf"), key=b"\x00\xff", ok=True, n=3
    )
    event = json.loads(stream.getvalue())
    assert (event["loss"], event["clip"], event["key"], event["ok"], event["n"]) == (
        "nan",
        "inf",
        "00ff",
        True,
        3,
    )
    assert event["event"] == "learned"
    assert event["level"] == "info"
    structlog.reset_defaults()


def test_a_value_cannot_pretend_to_be_another_field() -> None:
    stream = logged(json_lines=False)
    structlog.get_logger().info("seen", agent="x  level=error")
    assert '"x  level=error"' in stream.getvalue()
    structlog.reset_defaults()


def test_a_traceback_stays_on_its_line() -> None:
    stream = logged(json_lines=False)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("crashed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError" in stream.getvalue()
    structlog.reset_defaults()
