"""The page of a run, without a browser: what is in it, what is escaped, what is refused."""

import re
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.curves import Contacts, Curve, Incident, Point
from simulation.experiments.drawings import drawings
from simulation.experiments.page import page
from simulation.experiments.results import Result, ResultsError, appending, result


def curve(rows: int = 4, points: int = 5, **changes: Any) -> Curve:
    made = [
        Point(
            at_s=2.0 * number,
            up=rows,
            measured=rows,
            mean=0.1 * number,
            quartiles=(0.09 * number, 0.1 * number, 0.11 * number),
            worst=0.05 * number,
            consensus=1.0 / number,
            predicted=0.9 / number if number > 1 else None,
            events=100 * number,
            exchanges=10 * number,
            node_updates=10 * number,
            messages=30 * number,
            bytes_sent=1000 * number,
            faults={"loss": number},
        )
        for number in range(1, points + 1)
    ]
    incidents = [
        Incident("crash", 3.0, 5.0, 2),
        Incident("churn", 4.0, None, 1),
        Incident("partition", 4.0, 6.0, None),
    ]
    contacts = Contacts(rows, [(one, (one + 1) % rows, 3) for one in range(rows)])
    return msgspec.structs.replace(Curve(2.0, made, contacts, incidents, 0), **changes)


def saved(seen: Curve | None, **report: Any) -> Result:
    tree = {
        "scenario": "x",
        "accuracy": {"mean": 0.5, "worst": 0.25, "central": 0.75},
        "consensus": 0.2,
        "nodes": 4,
        "refused": {"replayed": 3},
        "curve": seen,
        **report,
    }
    return result({"name": "x & y", "network": {"loss": 0.1}}, 3, "p2psim run x --seed 3", report=tree)


def test_the_page_says_what_was_found_and_how_to_repeat_it() -> None:
    text = page(saved(curve()))
    for part in (
        "x &amp; y, seed 3",
        "p2psim run x --seed 3",
        "50.0 %",
        "replayed",
        "network.loss",
        "75.0 %",
    ):
        assert part in text, part
    assert text.count("<svg") == 5
    assert "x & y" not in text


def test_a_partial_run_says_so_first() -> None:
    text = page(saved(curve(), partial=True, accuracy={"mean": 0.5, "worst": None, "central": None}))
    assert text.index("Partial: the run was interrupted") < text.index("<svg")


def test_nothing_in_it_leads_elsewhere() -> None:
    text = page(saved(curve()))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    allowed = b64encode(sha256(style.group(1).encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{allowed}'; img-src data:;" in text
    assert "<script" not in text
    assert " style=" not in text
    outside = set(re.findall(r"(?:https?:)?//[^\s\"'<)]+", text)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert {url for url in outside if url.startswith("http")} == set()
    assert all(url.startswith(("#", "data:image/png;base64,")) for url in re.findall(r'href="([^"]*)"', text))


def test_ids_are_there_once_and_references_lead_to_them() -> None:
    text = page(saved(curve()))
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    targets += " ".join(re.findall(r'aria-labelledby="([^"]*)"', text)).split()
    assert targets
    assert set(targets) <= set(ids)


def test_every_drawing_has_a_title_and_says_its_figures() -> None:
    made = drawings(curve(), central=0.75)
    assert [drawing.name for drawing in made] == ["accuracy", "consensus", "bytes", "faults", "contacts"]
    for drawing in made:
        root = ElementTree.fromstring(drawing.svg)
        assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
        assert root[1].text == drawing.description
        assert root.attrib["role"] == "img"
        assert "#010203" not in drawing.svg
    assert "mean of 4 nodes is 50.0 %" in made[0].description
    assert "measured over predicted: 1.11" in made[1].description
    assert "1 crash, 1 churn, a cut from 4 to 6 s" in made[3].description


def test_the_same_run_gives_the_same_page() -> None:
    assert page(saved(curve())) == page(saved(curve()))


@pytest.mark.parametrize(
    "thin",
    [
        curve(points=1),
        curve(incidents=[]),
        curve(contacts=Contacts(4, [])),
        curve(points=0),
        curve(rows=200),
        msgspec.structs.replace(
            curve(),
            points=[
                msgspec.structs.replace(
                    curve().points[0], mean=None, quartiles=None, worst=None, consensus=None
                )
            ],
        ),
        None,
    ],
)
def test_a_run_of_which_little_is_known_has_a_page_as_well(thin: Curve | None) -> None:
    text = page(saved(thin, accuracy={"mean": None, "worst": None, "central": None}))
    assert "</html>" in text
    assert "nan" not in re.sub(r'base64,[^"]*', "", text)


def test_what_is_no_run_of_ours_is_refused_in_one_sentence() -> None:
    failed = msgspec.structs.replace(saved(None), failed="it broke\x1b[2J")
    huge = msgspec.structs.replace(curve(), contacts=Contacts(10**9, []))
    beyond = msgspec.structs.replace(curve(), contacts=Contacts(4, [(0, 4, 1)]))
    negative = msgspec.structs.replace(curve(), contacts=Contacts(4, [(0, -1, 1)]))
    for bad, why in [
        (failed, "the run failed"),
        (saved(huge), "at most 200 rows"),
        (saved(beyond), "at most 200 rows"),
        (saved(negative), "at most 200 rows"),
        (saved(None, curve={"points": 3}), "none of p2psim"),
        (saved(None, curve=[]), "none of p2psim"),
    ]:
        with pytest.raises(ResultsError, match=why) as caught:
            page(bad)
        assert str(caught.value).isprintable()


def test_the_command_writes_the_page_of_one_run(tmp_path: Path) -> None:
    file, out = tmp_path / "r.jsonl", tmp_path / "out.html"
    with appending(file) as results:
        for seed in (1, 2):
            results.append(msgspec.structs.replace(saved(curve()), seed=seed, key=str(seed)))
    several = CliRunner().invoke(main, ["report", str(file), "--report", str(out)])
    assert several.exit_code == 2
    assert "expected one run, found 2 (seeds 1, 2); choose with --seed" in several.stderr
    done = CliRunner().invoke(
        main, ["report", f"{file}?network.loss=0.1", "--seed", "2", "--report", str(out)]
    )
    assert done.exit_code == 0, done.stderr
    assert "x &amp; y, seed 2" in out.read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.html", "r.jsonl"]
    nowhere = CliRunner().invoke(
        main, ["report", str(file), "--seed", "1", "--report", str(tmp_path / "no" / "x")]
    )
    assert nowhere.exit_code == 2
    assert "cannot be written" in nowhere.stderr.splitlines()[-1]


def test_without_the_library_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["run", "smoke-20", "--report", str(tmp_path / "out.html")])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "p2psim: a report needs matplotlib, which is not installed: pip install 'p2pnode[report]'"
    )
