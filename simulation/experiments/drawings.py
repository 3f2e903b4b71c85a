"""Plots of a run as SVG that stands in a page by itself: text as text, no style attributes, ink in the page's colour.

Drawn by matplotlib, which is the optional extra `report`. What it writes is then made fit for a strict page: its style
attributes become attributes of SVG (a content security policy can forbid inline styles then), its ids get a prefix, its
black becomes `currentColor`, and each drawing gets a title and a description for those who cannot see it.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from msgspec import Struct

from p2pnode.printable import printable
from simulation.experiments.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stands for "the colour of the page's text", and is replaced by it.
_INK = "#010203"
# Readable on white and on near-black: at least 3 to 1 on both (WCAG 2.2, 1.4.11).
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = (
    "#3f7fd0",
    "#c9701a",
    "#2f9e62",
    "#d64550",
    "#9467bd",
    "#808080",
)
_KINDS = (_RED, _BLUE, _ORANGE, _GREEN, _PURPLE, _GREY)
# Kinds of frame faults with a line of their own; the rest would be lines on lines.
_LINES_MAX = 8
# Letters of a kind of fault, which may come from somebody's file.
_NAME_MAX = 24
_WIDTH, _HEIGHT = 7.2, 3.1  # inches of 72 points: a page is two of them wide
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What SVG knows as an attribute; the rest of a style is dropped.
_ATTRIBUTES = frozenset(
    (
        *(
            "fill",
            "fill-opacity",
            "fill-rule",
            "stroke",
            "stroke-width",
            "stroke-opacity",
            "stroke-dasharray",
        ),
        *(
            "stroke-dashoffset",
            "stroke-linejoin",
            "stroke-linecap",
            "stroke-miterlimit",
            "opacity",
            "clip-path",
        ),
        *("text-anchor", "font-size", "font-weight", "image-rendering"),
    )
)


class DrawingsMissingError(Exception):
    """The library that draws is not installed; one sentence."""


class Drawing(Struct, frozen=True):
    """One plot."""

    name: str  # of the section, and of its ids
    title: str
    description: str  # what it shows, in words and figures
    svg: str


def check_library() -> None:
    """Raises DrawingsMissingError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DrawingsMissingError(
            "a report needs matplotlib, which is not installed: pip install 'p2pnode[report]'"
        ) from error


def drawings(curve: Curve, *, central: float | None) -> list[Drawing]:
    """All plots of a curve that has points, in the order of the page.

    Args:
        central: Accuracy of one learner with all rows, in [0, 1].
    """
    check_library()
    learned = _accuracy(curve, central) or _loss(curve)
    found = [learned, _consensus(curve), _bytes(curve), _timeline(curve), _contacts(curve)]
    return [drawing for drawing in found if drawing is not None]


# --- plots ----------------------------------------------------------------------------------------------


def _accuracy(curve: Curve, central: float | None) -> Drawing | None:
    seen = [
        point
        for point in curve.points
        if point.mean is not None and point.quartiles and point.worst is not None
    ]
    if not seen:
        return None
    dates = [point.at_s for point in seen]
    low = [100 * point.quartiles[0] for point in seen if point.quartiles]
    high = [100 * point.quartiles[2] for point in seen if point.quartiles]
    mean = [100 * (point.mean or 0.0) for point in seen]
    worst = [100 * (point.worst or 0.0) for point in seen]

    def draw(axes: "Axes") -> None:
        _shade_cuts(axes, curve)
        axes.fill_between(
            dates, low, high, color=_BLUE, alpha=0.3, linewidth=0, label="half of the nodes (quartiles)"
        )
        axes.plot(dates, mean, color=_BLUE, linewidth=1.8, label="mean")
        axes.plot(dates, worst, color=_RED, linewidth=1.2, linestyle="--", label="worst node")
        if central is not None:
            axes.axhline(100 * central, color=_INK, linewidth=1, linestyle=":", label="all data in one place")
        axes.set_ylabel("accuracy on the test rows (%)")
        axes.set_ylim(0, 102)
        _legend(axes)

    last = seen[-1]
    who = f"{last.measured} nodes" if last.measured == last.up else f"a sample of {last.measured} nodes"
    text = (
        f"After {last.at_s:g} virtual seconds the mean of {who} is {mean[-1]:.1f} %, half of them are "
        f"between {low[-1]:.1f} and {high[-1]:.1f} %, the worst has {worst[-1]:.1f} %."
    )
    if central is not None:
        text += f" One learner with all data in one place has {100 * central:.1f} %."
    return _drawing("accuracy", "Accuracy", text, draw)


def _loss(curve: Curve) -> Drawing | None:
    """In place of accuracy, for tasks that measure none."""
    seen = [point for point in curve.points if point.loss is not None]
    if not seen:
        return None
    worst = [point for point in seen if point.loss_worst is not None]

    def draw(axes: "Axes") -> None:
        _shade_cuts(axes, curve)
        axes.plot(
            [p.at_s for p in seen], [p.loss or 0.0 for p in seen], color=_BLUE, linewidth=1.8, label="mean"
        )
        axes.plot(
            [p.at_s for p in worst],
            [p.loss_worst or 0.0 for p in worst],
            color=_RED,
            linewidth=1.2,
            linestyle="--",
            label="worst node",
        )
        axes.set_ylabel("loss on the test rows")
        _legend(axes)

    last = seen[-1]
    who = f"{last.measured} nodes" if last.measured == last.up else f"a sample of {last.measured} nodes"
    text = f"After {last.at_s:g} virtual seconds the mean of {who} is {last.loss:.4g}"
    text += f", the worst has {last.loss_worst:.4g}." if last.loss_worst is not None else "."
    return _drawing("loss", "Test loss", text, draw)


def _consensus(curve: Curve) -> Drawing | None:
    seen = [point for point in curve.points if point.consensus is not None]
    if not seen:
        return None
    expected = [point for point in curve.points if point.predicted is not None]

    def draw(axes: "Axes") -> None:
        _shade_cuts(axes, curve)
        axes.plot(
            [p.at_s for p in seen],
            [p.consensus or 0.0 for p in seen],
            color=_BLUE,
            linewidth=1.8,
            label="measured",
        )
        if expected:
            axes.plot(
                [p.at_s for p in expected],
                [p.predicted or 0.0 for p in expected],
                color=_ORANGE,
                linewidth=1.4,
                linestyle="--",
                label="predicted",
            )
        axes.set_ylabel("consensus distance")
        axes.set_ylim(bottom=0)
        _legend(axes)

    last = seen[-1]
    text = f"Root of the mean squared distance from the mean model: {last.consensus:.4g} at the end."
    if last.consensus and last.predicted:
        text += (
            f" Predicted for changes that do not depend on the ones before, and partners drawn uniformly: "
            f"{last.predicted:.4g}; "
            f"measured over predicted: {last.consensus / last.predicted:.2f}."
        )
    return _drawing("consensus", "Consensus distance", text, draw)


def _bytes(curve: Curve) -> Drawing:
    points = curve.points
    dates = [0.0, *(point.at_s for point in points)]
    sent = [0.0, *(point.bytes_sent / 1e6 for point in points)]

    def draw(axes: "Axes") -> None:
        axes.plot(dates, sent, color=_GREEN, linewidth=1.8)
        axes.set_ylabel("sent so far (MB)")
        axes.set_ylim(bottom=0)

    last = points[-1]
    each = f", {last.bytes_sent / last.exchanges / 1e3:.1f} KB for each exchange" if last.exchanges else ""
    text = f"All nodes together sent {sent[-1]:.1f} MB in {last.messages} frames{each}."
    return _drawing("bytes", "Bytes sent", text, draw)


def _timeline(curve: Curve) -> Drawing:
    points, incidents = curve.points, curve.incidents
    end = points[-1].at_s
    kinds = list(dict.fromkeys(incident.kind for incident in incidents if incident.node is not None))
    totals = points[-1].faults
    # Those of machines are drawn one by one above.
    frames = sorted((kind for kind in totals if kind not in kinds), key=lambda kind: -totals[kind])[
        :_LINES_MAX
    ]

    def draw_machines(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        _shade_cuts(axes, curve, label="network cut")
        for number, kind in enumerate(kinds):
            those = [entry for entry in incidents if entry.kind == kind and entry.node is not None]
            nodes = [entry.node for entry in those if entry.node is not None]
            begins = [entry.at_s for entry in those]
            ends = [end if entry.until_s is None else entry.until_s for entry in those]
            color = _KINDS[number % len(_KINDS)]
            axes.hlines(nodes, begins, ends, color=color, linewidth=2)
            axes.scatter(begins, nodes, color=color, marker="ox^sDv"[number % 6], s=18, label=_name(kind))
        axes.set_ylabel("node that was away")
        axes.margins(y=0.08)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if not kinds:
            axes.set_yticks([])
        _legend(axes)

    def draw(figure: "Figure") -> None:
        if incidents:
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            draw_machines(above)
        else:
            below = figure.subplots()
        below.set_xlim(0, end)
        dates = [0.0, *(point.at_s for point in points)]
        for number, kind in enumerate(frames):
            counts = [0, *(point.faults.get(kind, 0) for point in points)]
            rates = [
                max(after - before, 0) / max(until - since, 1e-9)
                for before, after, since, until in zip(counts, counts[1:], dates, dates[1:], strict=False)
            ]
            below.step(
                dates,
                [rates[0], *rates],
                color=_KINDS[number % len(_KINDS)],
                linestyle=("-", "--", ":")[number // len(_KINDS) % 3],
                linewidth=1.2,
                label=_name(kind),
            )
        below.set_ylabel("faults per second")
        below.set_xlabel("virtual seconds")
        below.set_ylim(bottom=0)
        if frames:
            _legend(below)

    cuts = [incident for incident in incidents if incident.node is None]
    counts = {kind: sum(incident.kind == kind for incident in incidents) for kind in kinds}
    said = [f"{count} {_name(kind)}" for kind, count in counts.items()]
    said += [
        f"a cut from {cut.at_s:g} to {end if cut.until_s is None else cut.until_s:g} s" for cut in cuts[:3]
    ]
    rest = ", ".join(f"{totals[kind]} {_name(kind)}" for kind in frames) or "none"
    left_out = f" {curve.incidents_left_out} more are not drawn." if curve.incidents_left_out else ""
    text = f"Machines and network: {', '.join(said) or 'nothing struck'}.{left_out} Single frames and links: {rest}."
    height = _HEIGHT * (1.5 if incidents else 1)
    return _drawing("faults", "Faults", text, draw, height=height, whole=True)


def _contacts(curve: Curve) -> Drawing | None:
    contacts = curve.contacts
    if not contacts.counts:
        return None
    import numpy as np

    matrix = np.zeros((contacts.rows, contacts.rows))
    for row, column, count in contacts.counts:
        matrix[row, column] = count

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        # Nobody met: the page shines through.
        shown = axes.imshow(np.ma.masked_equal(matrix, 0), cmap="viridis", interpolation="none", vmin=0)
        axes.set_xlabel("partner")
        axes.set_ylabel("initiator")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=MaxNLocator(integer=True))
        bar.set_label("exchanges")
        bar.outline.set_visible(False)

    shared = max(point.up for point in curve.points) > contacts.rows
    neighbours = "; neighbours by index share a row" if shared else ""
    met = len(contacts.counts)
    pairs = contacts.rows * (contacts.rows - (not shared))  # those who share a row may meet
    most = max(contacts.counts, key=lambda entry: entry[2])
    text = (
        f"Each row is an initiator, each column its partner, {contacts.rows} of each{neighbours}; "
        f"of {pairs} ordered pairs {met} exchanged, the busiest ({most[0]} with {most[1]}) {most[2]} times. "
        "Partners drawn uniformly give an even field; an empty row or column is a node that nobody reached."
    )
    return _drawing("contacts", "Who exchanged with whom", text, draw, height=_WIDTH * 0.85, whole=True)


def _legend(axes: "Axes") -> None:
    """Above the plot, where it covers nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5)


def _shade_cuts(axes: "Axes", curve: Curve, *, label: str | None = None) -> None:
    """Marks when the network was cut."""
    for incident in curve.incidents:
        if incident.node is None:
            end = curve.points[-1].at_s if incident.until_s is None else incident.until_s
            axes.axvspan(incident.at_s, end, color=_GREY, alpha=0.25, linewidth=0, label=label)
            label = None


def _name(kind: str) -> str:
    """A kind of fault, harmless and short; underscores at the start would hide it in a legend."""
    return printable(kind, _NAME_MAX).replace("_", " ").strip()


# --- SVG ------------------------------------------------------------------------------------------------


def _drawing(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Any], None],
    *,
    height: float = _HEIGHT,
    whole: bool = False,
) -> Drawing:
    """Draws on fresh axes, or with `whole` on a fresh figure."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,  # the same ids every time
        "text.parse_math": False,  # what stands between dollars may come from somebody's file
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": not whole or name == "faults",
        "grid.alpha": 0.25,
        "grid.linewidth": 0.5,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"),
            _INK,
        ),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
        if whole:
            draw(figure)
        else:
            axes = figure.subplots()
            draw(axes)
            axes.set_xlabel("virtual seconds")
            axes.set_xmargin(0.01)
        for axes in figure.axes:
            axes.set_facecolor("none")
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(name, title, description, _fit(written.getvalue(), name, title, description))


def _fit(svg: str, name: str, title: str, description: str) -> str:
    """Makes matplotlib's SVG fit for a strict page."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "title"):
                parent.remove(child)
    for element in root.iter():
        _without_style(element)
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                value = value.replace(_INK, "currentColor")
                element.set(key, re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", value))
    for key in ("width", "height"):
        root.attrib.pop(key, None)  # the page decides; the viewBox has the proportions
    root.set("stroke-linejoin", "round")  # what the style element said of everything
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(
            f"{{{_SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"}
        )
        element.text = text
        root.insert(position, element)
    return ElementTree.tostring(root, encoding="unicode")


def _without_style(element: ElementTree.Element) -> None:
    """Turns a style attribute into attributes of SVG."""
    style = element.attrib.pop("style", "")
    for part in style.split(";"):
        name, _, value = part.partition(":")
        name, value = name.strip(), value.strip()
        if name == "font":  # "10px 'DejaVu Sans', sans-serif": the family is the page's
            name, value = "font-size", value.split()[0]
        if name in _ATTRIBUTES:
            element.set(name, value)
