"""Plain text for people from what the daemon says. No rich, which takes long to import; all words are made
printable."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from p2pnode.printable import printable

_BARS = "▁▂▃▄▅▆▇█"


def status_text(status: Mapping[str, Any]) -> str:
    """What `p2pnode status` prints."""
    rows: list[tuple[str, Any]] = [
        ("id", status.get("id", "–")),
        ("state", status.get("state", "–")),
        ("up", duration(status.get("uptime_s"))),
        ("address", status.get("address", "–")),
        ("network", status.get("network", "–")),
        ("task", status.get("task", "–")),
        ("run", str(status.get("run", "–"))[:12]),
        ("peers", whole(status.get("peers"))),
        ("round", whole(status.get("round"))),
        ("loss", decimal(status.get("loss"))),
        ("dropped", whole(status.get("changes_dropped"))),
        ("exchanges", whole(status.get("exchanges"))),
        ("refused", reasons(status.get("refused"))),
        ("by peers", reasons(status.get("refused_by_peers"))),
    ]
    rows += [("under way", transfer_text(transfer)) for transfer in status.get("transfers") or ()]
    if status.get("log_lines_dropped"):
        rows.append(("log", f"{whole(status['log_lines_dropped'])} lines could not be written"))
    return pairs(rows)


def task_text(facts: Mapping[str, Any]) -> str:
    """What `p2pnode check-task` prints; the keys of the manifest stand below the run that they make."""
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if name == "manifest" and isinstance(value, Mapping):
            rows += [(f"  {key}", part) for key, part in value.items()]
        else:
            rows.append((name, value))
    return pairs(rows)


def transfer_text(transfer: Mapping[str, Any]) -> str:
    """`offer to 1f00b2c4d5e6, 0.4 of 1.1 MB, 118 kB/s, 6s left`."""
    figures = [transfer.get(key) for key in ("bytes", "of", "bytes_per_s")]
    if not all(map(_is_number, figures)):
        return "–"
    done, size, rate = map(float, figures)  # type: ignore[arg-type]  # they are numbers
    way = "to" if transfer.get("direction") == "out" else "from"
    left = f", {duration((size - done) / rate)} left" if rate > 0 else ""
    return (
        f"{transfer.get('kind', '')} {way} {str(transfer.get('peer', ''))[:12]}, "
        f"{done / 1e6:.1f} of {size / 1e6:.1f} MB, {rate / 1e3:.0f} kB/s{left}"
    )


def peers_text(peers: Sequence[Mapping[str, Any]]) -> str:
    """What `p2pnode peers` prints."""
    header = ["peer", "address", "way", "run", "since", "exchanges", "faults"]
    rows = [
        [
            str(peer.get("id", ""))[:12],
            str(peer.get("address", "")),
            "in" if peer.get("inbound") else "out",
            "same" if peer.get("same_run") else "other",
            duration(peer.get("since_s")),
            whole(peer.get("exchanges")),
            whole(peer.get("faults")),
        ]
        for peer in peers
    ]
    return grid([header, *rows], right=("since", "exchanges", "faults")) if rows else "no peers"


def settings_text(rows: Iterable[tuple[str, Any, str]], *, origin: bool) -> str:
    """TOML of (name, value, origin), with the origin in a comment if wanted."""
    from p2pnode.settings import to_toml, toml_key

    lines: list[str] = []
    section = ""
    for name, value, who in rows:
        place, _, key = name.rpartition(".")
        if place != section:
            lines += ([""] if lines else []) + [f"[{place}]"]
            section = place
        line = f"{toml_key(key)} = {to_toml(value)}"
        lines.append(f"{line:<40} # {printable(who)}" if origin else line)
    return "\n".join(lines)


def pairs(rows: Iterable[tuple[str, Any]]) -> str:
    """One `name  value` per line, aligned."""
    shown = [(printable(str(name)), _shown(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def grid(rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Aligned columns; the first row is the header, columns named in `right` are flush right."""
    cells = [[printable(cell, 64) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    flush = [name in right for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, flush, strict=True)
        ).rstrip()
        for row in cells
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars of eight heights; the lowest shown is the shortest. NaN is a blank."""
    shown = list(values[-width:]) if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BARS) - 1
    return "".join(
        (_BARS[round((value - low) / span * top)] if span > 0 else _BARS[0]) if math.isfinite(value) else " "
        for value in shown
    )


def duration(seconds: Any) -> str:
    """`7s`, `3m05s`, `2h10m`, `4d03h`; a dash for what is not a number."""
    if not _is_number(seconds) or seconds < 0:
        return "–"
    whole_s = int(seconds)
    if whole_s < 60:
        return f"{whole_s}s"
    if whole_s < 3600:
        return f"{whole_s // 60}m{whole_s % 60:02d}s"
    if whole_s < 86400:
        return f"{whole_s // 3600}h{whole_s % 3600 // 60:02d}m"
    return f"{whole_s // 86400}d{whole_s % 86400 // 3600:02d}h"


def whole(value: Any) -> str:
    return str(int(value)) if _is_number(value) else "–"


def decimal(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"


def reasons(counts: Any) -> str:
    """`busy 3, timeout 1`, the most frequent first."""
    if not isinstance(counts, Mapping) or not counts:
        return "none"
    ranked = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
    return ", ".join(f"{printable(str(reason), 32)} {int(count)}" for reason, count in ranked)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(key))} {_shown(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(part) for part in value) or "none"
    return printable(str(value))
