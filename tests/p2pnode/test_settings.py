"""Settings: four sources, one table, and a sentence for every mistake."""

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from crypto.identity import Identity
from gossip.config import Config
from gossip.dht.kinds import ADDRESS_CHARACTERS_MAX, ADDRESSES_MAX, PeerRecord, ProviderRecord
from gossip.dht.records import sign_record
from gossip.wire import RECORD_BYTES_MAX
from p2pnode import settings
from p2pnode.errors import ExitCode, UserError
from p2pnode.values import rule


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def sentence(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        settings.load(file=written(folder, text))
    assert caught.value.code is ExitCode.USAGE
    return str(caught.value)


def test_without_any_source_the_core_gets_its_own_defaults() -> None:
    assert settings.load().core == Config()


def test_every_field_of_the_core_can_be_set() -> None:
    """One source of truth: whoever adds a field to gossip.config has added a setting."""
    sections = {
        f.name: getattr(Config(), f.name)
        for f in dataclasses.fields(Config)
        if dataclasses.is_dataclass(getattr(Config(), f.name))
    }
    wanted = {f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)}
    assert wanted <= set(settings.TABLE)
    assert {"network.name", "network.connections_max"} <= set(settings.TABLE)


def test_a_stronger_source_wins_and_is_named_as_the_origin(tmp_path: Path) -> None:
    file = written(tmp_path, "[learning]\nlocal_steps = 1\nrounds_max = 1\nsave_interval_s = 1\n")
    loaded = settings.load(
        file=file,
        environ={"P2PNODE_LEARNING__ROUNDS_MAX": "2", "P2PNODE_LEARNING__SAVE_INTERVAL_S": "2", "PATH": "x"},
        flags=[("--set", "learning.save_interval_s", "3")],
    )
    learning = loaded.core.learning
    assert (learning.local_steps, learning.rounds_max, learning.save_interval_s) == (1, 2, 3.0)
    origin = {name: who for name, _, who in settings.shown(loaded)}
    assert origin["learning.local_steps"] == str(file)
    assert origin["learning.rounds_max"] == "P2PNODE_LEARNING__ROUNDS_MAX"
    assert origin["learning.save_interval_s"] == "--set"
    assert origin["dht.k"] == "default"


def test_a_whole_number_serves_where_a_fraction_is_wanted(tmp_path: Path) -> None:
    loaded = settings.load(file=written(tmp_path, "[exchange]\ntimeout_s = 4\n"))
    assert type(loaded.core.exchange.timeout_s) is float


def test_the_name_of_the_network_reaches_the_core_even_if_it_looks_like_a_number() -> None:
    assert settings.load(flags=[("--set", "network.name", "7")]).core.network == "7"


def test_lists_are_written_with_commas_on_the_command_line() -> None:
    loaded = settings.load(flags=[("--join", "node.join", "a:1, b:2")])
    assert loaded.node.join == ("a:1", "b:2")
    with pytest.raises(UserError, match="expected a port"):  # a flag is text, never TOML by its look
        settings.load(flags=[("--set", "node.join", '["c:3"]')])


def test_arguments_of_the_task_are_free_and_typed_by_their_look(tmp_path: Path) -> None:
    file = written(tmp_path, '[task]\nfactory = "m:f"\n[task.args]\nlr = 0.5\nname = "x"\n')
    loaded = settings.load(
        file=file,
        environ={"P2PNODE_TASK__ARGS__DEPTH": "3"},
        flags=[("--set", "task.args.lr", "0.1"), ("--data", "task.args.path", "a/b.csv")],
    )
    assert loaded.task.factory == "m:f"
    assert dict(loaded.task_args) == {"lr": 0.1, "name": "x", "depth": 3, "path": "a/b.csv"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[learning]\nlocal_step = 8", ["learning.local_step", "did you mean learning.local_steps?"]),
        ("[lerning]\nlocal_steps = 8", ["section 'lerning'", "did you mean learning?"]),
        (
            "[learning]\nlocal_steps = 'x'",
            ["learning.local_steps", "expected a whole number", "got text ('x')"],
        ),
        ("[learning]\nlocal_steps = true", ["expected a whole number", "got a truth value"]),
        ("[learning]\nlocal_steps = 1.5", ["expected a whole number", "got a number (1.5)"]),
        ("[learning]\nround_interval_s = nan", ["expected a number", "nan"]),
        ("[learning]\nround_interval_s = -1", ["at least 0", "-1"]),
        ("[learning]\nshard_values_max = 2_000_000", ["between 1 and", "2000000"]),
        ("[exchange]\ncodec = 'zip'", ["one of f32, int8, int4", "got text ('zip')"]),
        ("[node]\njoin = 'a:1'", ["node.join", "a list of texts"]),
        ("[node]\njoin = ['a']", ["node.join", "expected host:port"]),
        ("[node]\nlisten = 'everywhere'", ["node.listen", "expected host:port"]),
        ("[node]\njoin = [1]", ["node.join", "a list of texts"]),
        ("[task]\nargs = 3", ["[task.args]", "a whole number"]),
        ("learning = 3", ["[learning]", "a whole number"]),
        ("[learning", ["expected a TOML file"]),
    ],
)
def test_a_mistake_in_the_file_is_a_sentence_with_file_key_expected_and_got(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    said = sentence(tmp_path, text)
    assert str(tmp_path / "config.toml") in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("environ", "flags", "part"),
    [
        ({"P2PNODE_LEARNING__LOCAL_STEP": "8"}, [], "P2PNODE_LEARNING__LOCAL_STEP: there is no setting"),
        (
            {"P2PNODE_DHT__K": "many"},
            [],
            "P2PNODE_DHT__K: dht.k: expected a whole number between 1 and 64, got text ('many')",
        ),
        ({}, [("--set", "dht.kk", "8")], "--set: there is no setting 'dht.kk'; did you mean dht.k?"),
        ({}, [("--set", "dht.k", "8\nalpha = 3")], "dht.k: expected a whole number"),
    ],
)
def test_a_mistake_elsewhere_names_the_variable_or_flag(
    environ: dict[str, str], flags: list[tuple[str, str, str]], part: str
) -> None:
    with pytest.raises(UserError, match=r"expected|there is no") as caught:
        settings.load(environ=environ, flags=flags)
    assert part in str(caught.value)


def test_home_and_passphrase_are_not_settings() -> None:
    assert settings.load(environ={"P2PNODE_HOME": "x", "P2PNODE_PASSPHRASE": "y"}).origins == {}


def test_the_file_that_init_writes_explains_every_setting_and_changes_nothing(tmp_path: Path) -> None:
    text = settings.default_toml()
    loaded = settings.load(file=written(tmp_path, text))
    assert loaded == settings.load()
    lines = text.splitlines()
    for name, row in settings.TABLE.items():
        place = lines.index(f"# {name.partition('.')[2]} = {settings.to_toml(row.default)}")
        assert lines[place - 1].startswith("# "), f"{name} has no explanation"


def test_the_file_that_init_writes_is_valid_when_every_default_is_uncommented(tmp_path: Path) -> None:
    names = {f"# {name.partition('.')[2]} = " for name in settings.TABLE}
    lines = [
        line.removeprefix("# ") if any(line.startswith(name) for name in names) else line
        for line in settings.default_toml().splitlines()
    ]
    loaded = settings.load(file=written(tmp_path, "\n".join(lines)))
    assert loaded.core == Config()
    assert len(loaded.origins) == len(settings.TABLE)


@pytest.mark.parametrize("value", ['a"b\\c', "é\x7f\n", "plain"])
def test_values_given_to_init_come_back(tmp_path: Path, value: str) -> None:
    text = settings.default_toml({"network.name": value, "task.args.lr": "0.1", "node.join": "a:1,b:2"})
    loaded = settings.load(file=written(tmp_path, text))
    assert loaded.core.network == value
    assert loaded.node.join == ("a:1", "b:2")
    assert dict(loaded.task_args) == {"lr": 0.1}
    assert tomllib.loads(text)["task"]["args"] == {"lr": 0.1}


def test_assignments_need_a_section_and_a_value() -> None:
    wrong: Any
    for wrong in ("k=3", "dht.k", ""):
        with pytest.raises(UserError, match=r"section\.key=value"):
            settings.parse_assignment(wrong)
    assert settings.parse_assignment("a.b=c=d") == ("a.b", "c=d")
    assert settings.parse_assignment(" a.b = c ") == ("a.b", " c ")


def test_blanks_around_a_number_a_word_or_an_address_do_not_matter_and_those_of_a_name_do() -> None:
    flags = [("--set", name, " x ".replace("x", text)) for name, text in BLANKS.items()]
    loaded = settings.load(flags=flags)
    assert {name: str(loaded.value(name)) for name in BLANKS} == BLANKS | {"network.name": " lab "}


BLANKS = {"dht.k": "3", "exchange.codec": "int4", "node.listen": "[::1]:1", "network.name": "lab"}


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        (("network.name", "a\0b"), "network.name: expected text without NUL"),
        (("task.args.a b", "1"), "expected the name of a keyword argument, got text ('a b')"),
        (("task.args.", "1"), "expected the name of a keyword argument"),
        (("dht.k", "9" * 5000), "dht.k: expected a whole number"),
        (("node.join", "a:" + "0" * 5000), "node.join: expected a port"),
        (("node.advertise", "a b:1"), "node.advertise: expected host:port"),
    ],
)
def test_what_no_line_could_say_again_is_refused(flag: tuple[str, str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.load(flags=[("--set", *flag)])
    assert part in str(caught.value)


@pytest.mark.parametrize("addresses", [("nähe:7",), ("a:0",), ("a" * 130 + ":1",), ("a:1",) * 9])
def test_what_no_record_can_hold_is_not_advertised(addresses: tuple[str, ...]) -> None:
    """It ended the daemon at its first connection."""
    with pytest.raises(UserError, match=r"node\.advertise: expected"):
        settings.load(flags=[("--advertise", "node.advertise", ",".join(addresses))])


def test_a_record_holds_all_that_may_be_advertised() -> None:
    addresses = ("a" * (ADDRESS_CHARACTERS_MAX - 2) + ":1",) * ADDRESSES_MAX
    given = settings.load(flags=[("--advertise", "node.advertise", ",".join(addresses))]).node.advertise
    owner = Identity.from_seed(bytes(32))
    key = owner.public_key
    far = 2**63 - 1
    peer = PeerRecord(addresses=given, key=key, run=bytes(32), seq=far, ttl_s=2**31 - 1)
    place = ProviderRecord(addresses=given, key=key, place=bytes(32), seq=far, ttl_s=2**31 - 1)
    for record in (peer, place):
        assert len(sign_record(owner, bytes(32), record)) <= RECORD_BYTES_MAX


def test_a_number_of_too_many_digits_in_a_file_is_a_sentence(tmp_path: Path) -> None:
    assert "expected a TOML file" in sentence(tmp_path, f"[dht]\nk = {'9' * 5000}")


def test_dates_among_the_arguments_of_a_task_are_shown(tmp_path: Path) -> None:
    loaded = settings.load(file=written(tmp_path, "[task.args]\nsince = 2024-02-29\n"))
    (line,) = [row for row in settings.shown(loaded) if row[0] == "task.args.since"]
    assert settings.to_toml(line[1]) == "2024-02-29"
    assert dict(settings.load(flags=[("--set", "task.args.since", "2024-02-29")]).task_args) == dict(
        loaded.task_args
    )


def test_every_number_of_the_core_has_a_range_and_its_default_lies_in_it() -> None:
    for name, row in settings.TABLE.items():
        limits = rule(row.hint)
        if row.kind in (int, float):
            assert math.isfinite(limits.least), f"{name} may be anything"
            assert limits.least <= row.default <= limits.largest
