"""Every line that is printed for people to paste means, to a shell and to our own parser, what was meant."""

import contextlib
import io
import math
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from p2pnode import cli, doctor, settings
from p2pnode import home as homes
from p2pnode.errors import UserError
from p2pnode.home import Home
from p2pnode.launch import SHARED_SETTINGS, join_command
from p2pnode.settings import Settings, to_toml, toml_key
from simulation.cli import main as p2psim
from simulation.experiments.run_command import replay_command
from simulation.swarm.run import SwarmSettings

ROOT = Path(__file__).resolve().parents[2]
# No file name and no argument has a NUL.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NAMES = TEXT | st.sampled_from(
    ["-x", "--home", "a b", 'a"b', "it's", "[x]", '["x"]', "é", "1.5", "true", " x ", "\x1b[2J"]
)
ADDRESSES = st.sampled_from(
    ["[::1]:7400", "10.1.2.3:7400", "[fe80::1%eth0]:1", "seed:7400", "[2001:db8::2]:65535", "-x:1", "nähe:7"]
)
ADVERTISED = ADDRESSES.filter(str.isascii)
ARGUMENTS = st.from_regex(r"[^\W\d]\w{0,8}", fullmatch=True).filter(
    lambda name: name.isidentifier() and name not in ("path", "part")
)
VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | NAMES
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def shown(words: list[str]) -> dict[str, Any]:
    """What the command line `words` of `p2pnode run` sets, as TOML from `p2pnode config show`."""
    assert words[:2] == ["p2pnode", "run"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["config", "show", *words[2:], "--home", "nowhere"])
    assert status == 0, err.getvalue()
    return tomllib.loads(out.getvalue())


def params(program: click.Group, words: list[str]) -> dict[str, Any]:
    """What the parser of a program makes of a command line, `words[0]` being its name."""
    command = program.commands[words[1]]
    return dict(command.make_context(words[1], words[2:]).params)


def from_file(text: str) -> Settings:
    """Settings as of a config.toml with this text."""
    file = Path(FOLDER) / "config.toml"
    file.write_text(text, encoding="utf-8")
    return settings.load(file=file)


FOLDER = ""


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER  # hypothesis takes no fixtures of a function
    FOLDER = str(tmp_path_factory.mktemp("settings"))


@given(NAMES, NAMES, st.integers(0, 2**31), ADDRESSES, st.dictionaries(ARGUMENTS, VALUES, max_size=3))
@example("x", "digits", 0, "[::1]:7400", {})
@example("x", "digits", 0, "[::1]:7400", {"a": {"\U0001f600": "\x7f\x9b"}})
@hypothesis(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_the_join_line_joins(
    network: str, task: str, seed: int, address: str, arguments: dict[str, Any]
) -> None:
    given_by_file = from_file(
        f"[network]\nname = {to_toml(network)}\n[task]\nfactory = {to_toml(task)}\n"
        f"[learning]\ngenesis_seed = {seed}\n[task.args]\n"
        + "".join(f"{toml_key(name)} = {to_toml(value)}\n" for name, value in arguments.items())
    )
    assert dict(given_by_file.task_args) == arguments
    found = shown(shlex.split(join_command(given_by_file, address)))
    assert found["node"]["join"] == [address]
    for name in SHARED_SETTINGS:
        section, _, key = name.partition(".")
        assert found[section][key] == given_by_file.value(name), name
    assert found["task"].get("args", {}) == arguments


@given(ADVERTISED, NAMES)
@hypothesis(deadline=None, max_examples=50)
def test_an_advertised_address_is_what_others_join(address: str, network: str) -> None:
    given_by_file = from_file(
        f"[node]\nadvertise = [{to_toml(address)}]\n[network]\nname = {to_toml(network)}\n"
    )
    assert shown(shlex.split(join_command(given_by_file, "0.0.0.0:1")))["node"]["join"] == [address]


@pytest.mark.parametrize("address", ["[::1]:7400", "[fe80::1%eth0]:7400"])
def test_an_address_in_brackets_is_a_text_wherever_it_is_given(address: str, tmp_path: Path) -> None:
    """It was read as TOML, as a list of a strange kind, and refused."""
    for flag, name in (
        ("--join", "node.join"),
        ("--advertise", "node.advertise"),
        ("--listen", "node.listen"),
    ):
        wanted = address if flag == "--listen" else (address,)
        for loaded in (
            settings.load(flags=[(flag, name, address)]),
            settings.load(flags=[("--set", name, f" {address} ")]),
            settings.load(environ={"P2PNODE_" + name.upper().replace(".", "__"): address}),
            from_file(settings.default_toml({name: address})),
        ):
            assert loaded.value(name) == wanted
    several = settings.load(flags=[("--join", "node.join", f"{address},a:1")])
    assert several.node.join == (address, "a:1")


@given(NAMES, VALUES)
@example("a", "\x00\x1f\x7f\x85\u2028\u202e\U000e0001")
def test_a_value_in_a_file_of_settings_is_what_it_was_and_every_character_can_be_seen(
    key: str, value: Any
) -> None:
    text = f"{toml_key(key)} = {to_toml(value)}"
    assert tomllib.loads(text) == {key: value}
    assert text.isprintable()
    assert math.isnan(tomllib.loads(f"x = {to_toml(math.nan)}")["x"])


# --- homes ---------------------------------------------------------------------------------------------

FILE_NAMES = NAMES.map(lambda name: name.replace("/", "-")).filter(lambda name: name.strip(".") != "")


@given(FILE_NAMES)
def test_the_line_that_init_prints_starts_that_home(name: str) -> None:
    home = Home(Path("/tmp") / name)
    for word in ("run", "init", "stop"):
        words = shlex.split(home.command(word))
        assert homes.locate(params(cli.cli, words)["home_text"], {}) == home


@pytest.mark.parametrize("name", ["it's mine", 'a "b" [c]', "hé\tme"])
def test_sentences_about_a_home_name_that_home(name: str, tmp_path: Path) -> None:
    """Doctor, and every command that finds no home, no key or no daemon."""
    home = Home(tmp_path / name)
    said = [finding.detail for finding in doctor.examine(home)]
    with pytest.raises(UserError) as caught:
        homes.check(home)
    said.append(str(caught.value))
    homes.create(home)
    said += [finding.detail for finding in doctor.examine(home)]
    home.path.chmod(0o755)
    with pytest.raises(UserError) as caught:
        homes.check(home)
    said.append(str(caught.value))
    lines = [shlex.split(sentence.split("`")[1]) for sentence in said if "`" in sentence]
    assert {line[1] for line in lines} == {"init", "run", "700"}
    for line in lines:
        if line[0] == "p2pnode":
            assert homes.locate(params(cli.cli, line)["home_text"], {}) == home
        else:
            assert line == ["chmod", "700", str(home.path)]


def test_init_prints_the_line_for_its_home(tmp_path: Path) -> None:
    home = Home(tmp_path / 'it\'s [a] "home"')
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["init", "--home", str(home.path)]) == 0
    words = shlex.split(out.getvalue().partition("\nnow ")[2])
    assert homes.locate(params(cli.cli, words)["home_text"], {}) == home


# --- p2psim ----------------------------------------------------------------------------------------------


@given(
    NAMES.filter(bool),
    st.integers(0, 2**63),
    st.lists(NAMES).map(tuple),
    st.none() | st.floats(0, allow_infinity=False),
    st.booleans(),
)
@example("-x.toml", 0, (), None, True)
def test_the_line_that_repeats_a_run_repeats_it(
    scenario: str, seed: int, changes: tuple[str, ...], every_s: float | None, check: bool
) -> None:
    found = params(p2psim, shlex.split(replay_command(scenario, seed, changes, every_s=every_s, check=check)))
    assert (found["scenario"], found["seed"], found["overrides"]) == (scenario, seed, changes)
    assert (found["every"], found["no_checks"], found["no_curve"]) == (every_s, not check, False)


@given(st.integers(0, 2**40), st.floats(0.01, 1), st.sampled_from(["loss", "crash"]))
def test_the_line_that_repeats_a_seed_repeats_it(seed: int, shorten: float, kind: str) -> None:
    one = SwarmSettings(seed=seed, shorten=shorten, without=(kind,))
    found = params(p2psim, shlex.split(one.command()))
    assert (found["seeds"], found["shorten"], list(found["without"])) == (
        range(seed, seed + 1),
        shorten,
        [kind],
    )
    assert params(p2psim, shlex.split(one.shrink_command()))["seed"] == seed


def test_the_line_that_repeats_a_fleet_repeats_it() -> None:
    """The line is printed before the task is looked for, which there is not."""
    words = ["fleet", "--task", '-it\'s ["x"] é\t', "--lr", "1e-07", "--set", "task.args.a='b c'"]
    # A process of its own: it imports JAX, with which no later test could fork.
    answer = subprocess.run(
        [sys.executable, "-m", "simulation", *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert answer.returncode == 2
    line = answer.stderr.partition("repeat with: ")[2].partition("\np2psim:")[0]
    assert params(p2psim, shlex.split(line)) == params(p2psim, ["p2psim", *words])
