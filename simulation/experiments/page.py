"""`--report`: one run as one page that needs nothing else: no script, no font, no request.

The page is HTML with its style sheet inside, allowed by its hash; everything else is forbidden by its own content
security policy. All values are escaped: a scenario's author chooses names, and a results file may come from anywhere.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from html import escape
from math import isfinite
from typing import Any

import msgspec

from p2pnode.printable import printable
from simulation.experiments.curves import ROWS_MAX, Curve
from simulation.experiments.drawings import Drawing, drawings
from simulation.experiments.results import Result, ResultsError, figure, flat

# Values longer than this are cut: a page is for reading.
_TEXT_MAX = 2000
# A run of days at a point a second; more is not one of ours.
_POINTS_MAX = 100_000
# Below the plot of consensus distances.
_PREDICTED = (
    " Predicted is the level at which exchanges take away what training adds, from the measured spread of changes "
    "among nodes and the measured jobs for each exchange. Far above: a cut, partners that are not uniform, an attack."
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #5b6570; --line: #d5dae0; --warn: #a3420a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --soft: #a2abb5; --line: #343b44; --warn: #f0a25e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 48rem; }
.about, figcaption { color: var(--soft); }
figcaption { font-size: .9rem; max-width: 48rem; }
.warn { color: var(--warn); font-weight: 600; }
figure { margin: 0; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; font-family: system-ui, sans-serif; }
pre { background: transparent; border: 1px solid var(--line); border-radius: .3rem; padding: .6rem .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace; margin: .4rem 0; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; width: 16rem; }
td { font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: 0; list-style: none; }
.tiles li { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .75rem; }
.tiles b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) { th { width: 40%; } }
@media print {
  :root { --ink: #000000; --paper: #ffffff; --soft: #444444; --line: #bbbbbb; --warn: #000000; }
  main { max-width: none; padding: 0; }
  figure, tr, .tiles li { break-inside: avoid; }
  svg { min-width: 0; }
  h2 { break-after: avoid; }
}
"""


def page(result: Result) -> str:
    """The whole page.

    Raises:
        ResultsError: the result is none of a run that ended well, or its curve is no curve.
        DrawingsMissingError: matplotlib is not installed.
    """
    if result.failed:
        raise ResultsError(f"the run failed and has no figures: {printable(result.failed)}")
    report = result.report
    curve = _curve_of(report)
    central = figure(report, "accuracy.central")
    drawn = drawings(curve, central=central if isfinite(central) else None) if curve and curve.points else []
    name = _text(result.scenario.get("name") or report.get("scenario") or "a scenario")
    title = f"{name}, seed {result.seed}"
    style = b64encode(sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(_sections(result, title, drawn))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)} – p2psim</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _curve_of(report: Mapping[str, Any]) -> Curve | None:
    """The curve of a report, checked."""
    try:
        curve = msgspec.convert(report.get("curve"), Curve | None)
    except msgspec.ValidationError as error:
        raise ResultsError(f"the curve of the run is none of p2psim: {error}") from error
    if curve is not None:
        rows = curve.contacts.rows
        if not 0 < rows <= ROWS_MAX or any(
            not (0 <= one < rows and 0 <= other < rows) for one, other, _ in curve.contacts.counts
        ):
            raise ResultsError(
                f"the contacts of the run are none of p2psim: expected at most {ROWS_MAX} rows"
            )
        if len(curve.points) > _POINTS_MAX:
            raise ResultsError(f"the curve of the run has more than {_POINTS_MAX} points")
    return curve


def _sections(result: Result, title: str, drawn: Sequence[Drawing]) -> Iterator[str]:
    report = result.report
    about = result.scenario.get("about")
    yield f"<header>\n<h1>{escape(title)}</h1>"
    if about:
        yield f'<p class="about">{escape(_text(about))}</p>'
    if report.get("partial"):
        yield '<p class="warn">Partial: the run was interrupted. All figures are those of the moment.</p>'
    if report.get("signatures", "real") != "real":
        yield '<p class="warn">Signatures were modelled, not real.</p>'
    yield f"<pre>{escape(_text(result.command))}</pre>"
    yield '<p class="about">repeats this run, event for event.</p>\n</header>'
    yield _tiles(report)
    for drawing in drawn:
        note = _PREDICTED if drawing.name == "consensus" else ""
        yield (
            f'<section>\n<h2 id="{drawing.name}">{escape(drawing.title)}</h2>\n<figure class="{drawing.name}">\n'
            f"{drawing.svg}\n<figcaption>{escape(drawing.description + note)}</figcaption>\n</figure>\n</section>"
        )
    if not drawn:
        yield '<p class="about">No curve was measured on the way, so there is nothing to draw.</p>'
    figures = {key: value for key, value in report.items() if key not in ("curve", "faults", "refused")}
    yield _table("figures", "Figures", "What the run came to.", flat(figures))
    yield _table(
        "struck", "Faults that struck", "By kind, counted when they really did.", _counts(report, "faults")
    )
    yield _table("refused", "Refusals", "Of all nodes, by reason.", _counts(report, "refused"))
    yield _table("settings", "Settings", "The scenario with all defaults.", flat(result.scenario))
    machine = {"p2pnode": result.version, **result.machine}
    yield _table(
        "machine", "Made with", "Other versions and processors may round differently.", flat(machine)
    )


def _tiles(report: Mapping[str, Any]) -> str:
    """The figures that people look for first."""

    def share(key: str) -> str:
        value = figure(report, key)
        return f"{100 * value:.1f} %" if isfinite(value) else "–"

    def number(key: str, form: str, scale: float = 1.0) -> str:
        value = figure(report, key)
        return format(value / scale, form) if isfinite(value) else "–"

    tiles = [
        (share("accuracy.mean"), "accuracy, mean"),
        (share("accuracy.worst"), "worst node"),
        (share("accuracy.central"), "all data in one place"),
        (number("consensus", ".4g"), "consensus distance"),
        (number("nodes", ".0f"), "nodes"),
        (number("exchanges", ",.0f"), "exchanges"),
        (number("bytes_sent", ",.1f", 1e6) + " MB", "sent"),
        (number("virtual_s", ",.6g") + " s", "virtual time"),
    ]
    if isfinite(figure(report, "loss.mean")) and not isfinite(figure(report, "accuracy.mean")):
        # A task that measures no accuracy.
        tiles[:3] = [
            (number("loss.mean", ".4g"), "test loss, mean"),
            (number("loss.worst", ".4g"), "worst node"),
            (number("loss.central", ".4g"), "all data in one place"),
        ]
    if figure(report, "hostile") > 0:
        tiles.insert(5, (number("hostile", ".0f"), "of them hostile"))
    items = "\n".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in tiles)
    return f'<ul class="tiles">\n{items}\n</ul>'


def _counts(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = report.get(key)
    return flat(found) if isinstance(found, Mapping) else {}


def _table(name: str, title: str, caption: str, rows: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f'<tr><th scope="row">{escape(_text(key))}</th><td>{escape(_text(value))}</td></tr>'
        for key, value in rows.items()
    )
    if not rows:
        lines = '<tr><td colspan="2">none</td></tr>'
    return (
        f'<section>\n<h2 id="{name}">{escape(title)}</h2>\n<table>\n<caption>{escape(caption)}</caption>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table>\n</section>"
    )


def _text(value: Any) -> str:
    """A value for people, with everything invisible made visible."""
    if value is None:
        return "–"
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif not isinstance(value, str):
        value = msgspec.json.encode(value).decode() if isinstance(value, bool | list | dict) else str(value)
    return printable(value, _TEXT_MAX)
