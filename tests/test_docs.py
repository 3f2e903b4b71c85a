"""The documents say what is true: their links lead somewhere, and the commands they name are there.

Plain Markdown with relative links, no site generator. What is checked: every link to a file, and to a heading in it;
every command in a code span or block that begins with p2pnode, p2psim or make, with its long options; tables of
settings, exit codes, scenario keys and report fields, against the code; files, tests and threats that are named.
"""

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "README.md",
    "CHANGELOG.md",
    *(
        f"docs/{name}.md"
        for name in ("architecture", "learning", "operations", "protocol", "security", "simulation")
    ),
)

LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
# A command as people type it, after an optional prompt and path: `$ .venv/bin/p2pnode run --home x`.
COMMAND = re.compile(
    r"(?:^|[`$>]\s*|&&\s*)(?:\.venv/bin/)?(p2pnode|p2psim|make)((?:[ \t]+[^\s`|&;#]+)*)", re.MULTILINE
)


def documents() -> list[Path]:
    hidden = ("README.md", "CHANGELOG.md")
    return (
        [ROOT / name for name in hidden]
        + sorted((ROOT / "docs").rglob("*.md"))
        + sorted(ROOT.glob("examples/**/*.md"))
    )


def code(text: str) -> Iterator[str]:
    """Blocks between fences, and spans between single backticks in what remains."""
    fence = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    yield from fence.findall(text)
    yield from (f"`{span}" for span in re.findall(r"`([^`\n]+)`", fence.sub("", text)))


def prose(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The names by which headings can be linked to, made as the hosts of git repositories make them."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(prose(text)):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        where = (path.parent / file) if file else path
        if not where.exists():
            yield f"{path.name}: {target}: there is no such file"
        elif anchor and where.suffix == ".md" and anchor not in anchors(where.read_text()):
            yield f"{path.name}: {target}: there is no such heading"


def group(program: str) -> click.Group:
    from p2pnode import cli as daemon
    from simulation import cli as simulator

    module: Any = {"p2pnode": daemon, "p2psim": simulator}[program]
    return next(value for value in vars(module).values() if isinstance(value, click.Group))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def wrong_command(program: str, words: list[str]) -> str | None:
    """What is not true about a command, or None."""
    if program == "make":
        unknown = [word for word in words if re.fullmatch(r"[a-z]+", word) and word not in make_targets()]
        return f"make {unknown[0]}: there is no such target" if unknown else None
    command: click.Command = group(program)
    while words and isinstance(command, click.Group):
        name = words.pop(0)
        if name.startswith("-"):
            return None  # --help, --version
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            return None  # a placeholder or prose: `p2pnode COMMAND`
        found = command.get_command(click.Context(command), name)
        if found is None:
            return f"{program} {name}: there is no such command"
        command = found
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    options = [
        m for word in words if (m := word.partition("=")[0].strip("[](),.")).startswith("--") and len(m) > 2
    ]
    unknown = [option for option in options if option not in known | {"--help"}]
    return f"{program} {command.name} has no option {unknown[0]}" if unknown else None


def wrong_commands(path: Path, text: str) -> Iterator[str]:
    for piece in code(text):
        for program, rest in COMMAND.findall(re.sub(r"\\\n\s*", " ", piece)):
            if (why := wrong_command(program, rest.split())) is not None:
                yield f"{path.name}: {why}"


@pytest.mark.parametrize("name", NEEDED)
def test_the_document_is_there(name: str) -> None:
    assert (ROOT / name).read_text().startswith("# ")


def test_every_relative_link_leads_somewhere() -> None:
    assert [why for path in documents() for why in broken_links(path, path.read_text())] == []


def test_every_command_that_a_document_names_exists() -> None:
    # The changelog speaks of the past, too.
    current = [path for path in documents() if path.name != "CHANGELOG.md"]
    assert [why for path in current for why in wrong_commands(path, path.read_text())] == []


def test_the_readme_names_the_two_commands_and_its_licence() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make run" in text
    assert "make test" in text
    assert "Apache" in text


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_rules_see_what_is_wrong(tmp_path: Path) -> None:
    links = "# A b\n\n[x](no.md) [y](#a-b) [z](#c) `[q](never.md)`\n\n"
    text = links + "```\n[q](never.md)\n$ make bake\n```\n`make help`\n"
    assert len(list(broken_links(tmp_path / "d.md", text.replace("(#", "(x.md#")))) == 3
    (tmp_path / "x.md").write_text(text)
    assert [w.partition(": ")[2] for w in broken_links(tmp_path / "x.md", text)] == [
        "no.md: there is no such file",
        "#c: there is no such heading",
    ]
    assert list(wrong_commands(tmp_path / "x.md", text)) == ["x.md: make bake: there is no such target"]


def test_unknown_commands_and_options_are_seen(tmp_path: Path) -> None:
    wrong = "p2pnode fly\np2pnode status --json --loud\n"
    right = "$ .venv/bin/p2pnode status --json\np2psim run x --seed 7\n"
    text = f"```sh\n{wrong}{right}```\n"
    assert list(wrong_commands(tmp_path / "x.md", text)) == [
        "x.md: p2pnode fly: there is no such command",
        "x.md: p2pnode status has no option --loud",
    ]


# --- tables that are generated from the code -------------------------------------------------------


def block(page: str, name: str) -> str:
    """What stands between the two markers `name` of a page."""
    text = (ROOT / page).read_text()
    start, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    assert text.count(start) == text.count(end) == 1
    return text.partition(start)[2].partition(end)[0]


def settings_table() -> str:
    from p2pnode.settings import TABLE, documentation, to_toml

    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for row in TABLE.values():
        meaning = " ".join(documentation(row.owner)[row.attribute]).replace("|", "\\|")
        rows.append(f"| `{row.name}` | `{to_toml(row.default)}` | {meaning} |")
    return "\n".join(rows)


def exit_codes_table() -> str:
    from p2pnode.errors import EXIT_CODE_TEXT

    rows = ["| status | meaning |", "|---|---|"]
    return "\n".join(rows + [f"| {code:d} | {text} |" for code, text in EXIT_CODE_TEXT.items()])


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table), ("exit-codes", exit_codes_table)])
def test_the_operations_page_has_the_tables_of_the_code(name: str, table: Any) -> None:
    # If this fails, put what stands on the right between the markers.
    assert block("docs/operations.md", name) == table()


def rows_of(page: str, name: str) -> dict[str, list[str]]:
    """First cell -> the other cells, without the two lines of the head."""
    lines = block(page, name).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def scenario_defaults(kind: type[Struct], path: str = "") -> dict[str, str]:
    """Every key of a scenario file but those of [network] and [config], with its default as TOML."""
    from p2pnode.settings import to_toml
    from simulation.geography import RegionSettings
    from simulation.scenario import PartitionSettings

    found: dict[str, str] = {}
    for entry in msgspec.structs.fields(kind):
        default, name = entry.default, path + entry.name
        if entry.default_factory is not msgspec.NODEFAULT:
            default = entry.default_factory()
        if name == "network":
            continue
        if isinstance(default, Struct):
            found |= scenario_defaults(type(default), f"{name}.")
        elif name == "config":
            found[name] = "–"
        else:
            found[name] = "required" if default is msgspec.NODEFAULT else f"`{to_toml(default)}`"
        if name in (lists := {"faults.partitions": PartitionSettings, "geography.regions": RegionSettings}):
            found |= scenario_defaults(lists[name], f"{name}.")
    return found


def test_the_simulation_page_has_every_key_of_a_scenario() -> None:
    from simulation.scenario import Scenario

    rows = rows_of("docs/simulation.md", "scenario-keys")
    assert {key: cells[0] for key, cells in rows.items()} == scenario_defaults(Scenario)


def test_the_simulation_page_has_every_key_of_the_network() -> None:
    from p2pnode.settings import to_toml
    from simulation.network import PRESETS, LinkSettings

    rows = rows_of("docs/simulation.md", "network-keys")
    assert {key: cells[:-1] for key, cells in rows.items()} == {
        f"network.{name}": [f"`{to_toml(getattr(PRESETS[preset], name))}`" for preset in PRESETS]
        for name in LinkSettings.__struct_fields__
    }
    assert list(PRESETS) == ["ideal", "lan", "wan", "mobile", "trace"]


def test_the_simulation_page_has_every_field_of_a_report() -> None:
    from simulation.experiments.run import Report

    named = [
        name
        for line in block("docs/simulation.md", "report-fields").splitlines()[2:]
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    ]
    assert sorted(named) == sorted(Report.__struct_fields__)


def test_every_shipped_scenario_is_a_scenario_and_the_example_of_the_page_is_one() -> None:
    from simulation.scenario import load, parse, shipped

    assert {load(name).name for name in shipped()} == set(shipped())
    example = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/simulation.md").read_text(), re.DOTALL)
    assert example
    for text in example:
        parse(tomllib.loads(text), "the example")


# Names of papers of the workshop, which users do not have.
OUTSIDE = re.compile(r"\b(threats|algorithms|design|ecosystem|baselines|peers|style)\.md\b")


def test_nobody_is_sent_to_a_document_that_is_not_there() -> None:
    folders = ("crypto", "gossip", "p2pnode", "simulation", "tests", "docs", "deploy", "examples")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    files = [*files, ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "README.md"]
    texts = {".py", ".md", ".toml", ".yaml", ""}
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in files
        if path.suffix in texts and path != Path(__file__).resolve()
        for found in OUTSIDE.finditer(path.read_text(errors="replace"))
    ]
    assert wrong == []
    # And those of docs/ that code names are there.
    named = {
        found
        for path in files
        if path.suffix in texts
        for found in re.findall(r"\bdocs/[a-z]+\.md\b", path.read_text(errors="replace"))
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_threats_that_code_names_are_in_the_security_page() -> None:
    page = (ROOT / "docs/security.md").read_text()
    known = set(re.findall(r"\bT\d+\b", page))
    named: dict[str, str] = {}
    for folder in ("crypto", "gossip", "p2pnode", "simulation", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line in re.findall(r"security\.md[^\n]*", path.read_text()):
                named |= dict.fromkeys(re.findall(r"\bT\d+\b", line), str(path.relative_to(ROOT)))
    assert {threat: where for threat, where in named.items() if threat not in known} == {}


def test_files_and_tests_that_the_pages_name_are_there() -> None:
    tests = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    } | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    wrong = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for span in re.findall(r"`([^`\n]+)`", prose_with_spans(page.read_text())):
            if re.fullmatch(
                r"(crypto|gossip|p2pnode|simulation|tests|deploy)/[\w/.-]+\.(py|md|toml|yaml)", span
            ):
                if not (ROOT / span).exists():
                    wrong.append(f"{page.name}: {span}")
            elif re.fullmatch(r"test_\w+", span) and span not in tests:
                wrong.append(f"{page.name}: {span}")
    assert wrong == []


def prose_with_spans(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_the_limits_of_the_security_page_are_those_of_the_code() -> None:
    for line in block("docs/security.md", "limits").splitlines()[2:]:
        _, limit, where = (cell.strip() for cell in line.strip("|").split("|"))
        module, _, name = where.strip("`").rpartition(".")
        if module == "p2pnode.door.Limits":
            from p2pnode.door import Limits

            value = getattr(Limits(), name)
        else:
            value = getattr(importlib.import_module(module), name)
        assert float(limit.replace(",", "")) == value, line
