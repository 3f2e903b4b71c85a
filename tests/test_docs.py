"""The documents say what is true: their links lead somewhere, and the commands they name are there.

Plain Markdown with relative links, no site generator. What is checked: every link to a file, and to a heading in it;
every command in a code span or block that begins with p2pnode, p2psim or make, with its long options.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("README.md", "CHANGELOG.md", "docs/architecture.md", "docs/protocol.md")

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
