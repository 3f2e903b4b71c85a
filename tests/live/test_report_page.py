"""The page of a run in a real browser: nothing is asked of the network, nothing is complained of, all is laid out."""

from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulation.experiments.page import page
from simulation.experiments.results import result
from simulation.experiments.run import run
from simulation.scenario import describe, parse
from tests.live.browser import Browser

pytestmark = pytest.mark.live

SCENARIO: dict[str, Any] = {
    "name": "<script>alert(1)</script>",
    "about": "quotes \"' & <b>bold</b>",
    "nodes": 8,
    "duration_s": 10.0,
    "start_s": 1.0,
    "task": {"name": "digits", "args": {"model": "logistic"}},
    "compute": {"lanes": 4},
    "network": {"loss": 0.05},
    "faults": {
        "crash": 0.25,
        "away_s_mean": 1.0,
        "start_s": 3.0,
        "stop_s": 8.0,
        "partitions": [{"share": 0.5, "start_s": 4.0, "end_s": 5.0}],
    },
}
BOXES = """
  [...document.querySelectorAll('h1, h2, svg, svg text, svg path[clip-path], svg image, table, pre, figcaption')]
  .map(e => [e.tagName, e.getBoundingClientRect().width, e.getBoundingClientRect().height])"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenario = parse(SCENARIO, "small.toml")
    report = run(scenario, 1, measure_every_s=0.5)
    one = result(describe(scenario), 1, "p2psim run '<i>x</i>.toml' --seed 1", report=report)
    path = tmp_path_factory.mktemp("page") / "out.html"
    path.write_text(page(one), encoding="utf-8")
    return path


def test_the_page_needs_nothing_and_nobody_complains(browser: Browser, written: Path) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(written)
    asked = [url for url in browser.requests if not url.startswith("data:")]
    assert asked == [written.resolve().as_uri()]
    assert browser.complaints == []
    assert (
        browser.evaluate("document.scripts.length + document.querySelectorAll('b, i').length") == 8
    )  # the tiles
    assert browser.evaluate("document.querySelector('h1').textContent").startswith(
        "<script>alert(1)</script>"
    )
    assert (
        browser.evaluate("document.querySelector('pre').textContent") == "p2psim run '<i>x</i>.toml' --seed 1"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_everything_is_laid_out(browser: Browser, written: Path, scheme: str, width: int) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.open(written)
    boxes = browser.evaluate(BOXES)
    kinds = {kind.lower() for kind, _, _ in boxes}
    assert {"h1", "h2", "svg", "text", "path", "image", "table", "pre", "figcaption"} <= kinds
    # A straight line has a box without height or width.
    assert [box for box in boxes if max(box[1], box[2]) <= 0] == []
    drawings = [box for box in boxes if box[0] == "svg"]
    assert len(drawings) == 5
    assert all(wide > width * 0.7 or wide > 700 for _, wide, _ in drawings)
    assert all(high > 80 for _, _, high in drawings)
    assert browser.evaluate(OVERFLOW) == 0
    ink, paper = browser.evaluate(
        "[getComputedStyle(document.querySelector('svg')).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert brightness(paper) > 240 if scheme == "light" else brightness(paper) < 40
    assert abs(brightness(ink) - brightness(paper)) > 150


def brightness(color: str) -> float:
    """Mean of the three channels of `rgb(1, 2, 3)`."""
    channels = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return sum(channels) / 3


def test_it_can_be_printed_and_read_aloud(browser: Browser, written: Path) -> None:
    browser.open(written)
    printed = b64decode(browser.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    named = {node["name"]["value"] for node in images if node.get("name", {}).get("value")}
    for title in ("Accuracy", "Consensus distance", "Bytes sent", "Faults", "Who exchanged with whom"):
        assert any(name.startswith(title) for name in named), (title, named)


def test_the_browser_sees_what_is_wrong(browser: Browser, written: Path, tmp_path: Path) -> None:
    """The same page with three faults planted: a script, a style attribute, a picture from elsewhere."""
    planted = '<main><script>alert(1)</script><p style="color:red">x</p><img src="http://127.0.0.1:9/x.png">'
    bad = tmp_path / "bad.html"
    bad.write_text(written.read_text(encoding="utf-8").replace("<main>", planted), encoding="utf-8")
    browser.complaints.clear()
    browser.open(bad)
    told = " ".join(browser.complaints)
    assert "script" in told
    assert "style" in told
    assert "127.0.0.1:9" in told


def test_every_label_that_a_file_may_bring_is_text(browser: Browser, tmp_path: Path) -> None:
    """A results file from somebody: kinds of faults with markup, escapes and mathematics in them."""
    scenario = parse(SCENARIO, "small.toml")
    tree = msgspec.json.decode(msgspec.json.encode(run(scenario, 1, measure_every_s=1.0, central=False)))
    for incident in tree["curve"]["incidents"]:
        incident["kind"] = "$\\frac{<img src=x onerror=alert(1)>" + "\x1b" + incident["kind"]
    for point in tree["curve"]["points"]:
        point["faults"]["</style><script>alert(1)</script>$$"] = 3
    tree["refused"] = {"<svg onload=alert(1)>": 1}
    path = tmp_path / "hostile.html"
    path.write_text(page(result(describe(scenario), 1, "x", report=tree)), encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(path)
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.evaluate("document.scripts.length + document.querySelectorAll('img').length") == 0
    assert "onload=alert(1)" in browser.evaluate("document.body.textContent")
