"""The command as people and scripts meet it: real processes, exit codes, one sentence for every mistake."""

import json
import os
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from p2pnode import __version__, cli, settings
from p2pnode.errors import EXIT_CODE_TEXT, ExitCode
from p2pnode.launch import join_command
from p2pnode.settings import TABLE

ROOT = Path(__file__).resolve().parents[2]
READING = (
    "status",
    "peers",
    "id",
    "eval",
    "version",
    "config show",
    "doctor",
    "check-task",
    "demo",
    "export",
    "stop",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def p2pnode(*words: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("P2PNODE_")} | (
        env or {}
    )
    return subprocess.run(
        [sys.executable, "-m", "p2pnode", *words],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **more,
    )


def refused(code: ExitCode, *words: str, env: dict[str, str] | None = None) -> str:
    """The sentence with which a command was refused."""
    answer = p2pnode(*words, env=env)
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("p2pnode: ")
    assert "Traceback" not in line
    return line


def modules_after(*words: str, env: dict[str, str]) -> tuple[int, set[str]]:
    """Run a command in a fresh interpreter and look at what it imported."""
    program = (
        "import sys\n"
        "from p2pnode.cli import main\n"
        f"code = main({list(words)!r})\n"
        "print('modules:', code, *sorted(sys.modules), file=sys.stderr)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("modules:")]
    code, *names = line.split()[1:]
    return int(code), set(names)


def test_the_version_is_that_of_the_distribution() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert __version__ == document["project"]["version"]
    answer = json.loads(p2pnode("version", "--json").stdout)
    assert answer["version"] == __version__


def test_help_lists_every_command_and_every_exit_code() -> None:
    text = p2pnode("--help").stdout
    for name in cli.cli.commands:
        assert f"  {name}" in text
    for code, meaning in EXIT_CODE_TEXT.items():
        assert f"{code:>3}  {meaning}" in text
    assert set(EXIT_CODE_TEXT) == set(ExitCode)


@pytest.mark.parametrize("name", READING)
def test_every_reading_command_speaks_json(name: str) -> None:
    command: Any = cli.cli
    for word in name.split():
        command = command.commands[word]
    assert "--json" in [option for parameter in command.params for option in parameter.opts]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("version", "--json"), 0),
        (("id",), 0),
        (("config", "show"), 0),
        (("status",), 3),
        (("peers", "--json"), 3),
        (("stop",), 3),
        (("doctor",), 0),
        (("top", "--once"), 3),
        (("--help",), 0),
    ],
)
def test_commands_that_only_ask_import_nothing_heavy(home: Path, words: tuple[str, ...], code: int) -> None:
    assert p2pnode("init", "--home", str(home)).returncode == 0
    found, modules = modules_after(*words, env={"P2PNODE_HOME": str(home)})
    assert found == code
    assert modules & {"jax", "jaxlib", "optax", "trio", "numpy", "structlog", "asyncio"} == set()
    if words[0] in ("status", "peers", "version"):
        assert modules & {"rich", "msgspec", "nacl"} <= ({"msgspec"} if words[0] == "version" else set())


# --- init, id, config -------------------------------------------------------------------------------


def test_init_makes_a_home_that_only_its_owner_can_read(home: Path) -> None:
    made = json.loads(p2pnode("init", "--home", str(home), "--json").stdout)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600
    assert json.loads(p2pnode("id", "--home", str(home), "--json").stdout)["id"] == made["id"]
    assert p2pnode("id", "--home", str(home)).stdout.strip() == made["id"]


def test_init_twice_keeps_the_first_key(home: Path) -> None:
    first = json.loads(p2pnode("init", "--home", str(home), "--json").stdout)
    assert "never overwritten" in refused(ExitCode.HOME, "init", "--home", str(home))
    assert json.loads(p2pnode("id", "--home", str(home), "--json").stdout)["id"] == first["id"]


@pytest.mark.parametrize(
    "words",
    [
        ("--set", b"network.name=caf\xe9"),
        ("--data", b"/tmp/\xff.csv"),
        ("--task", b"m\xffd:f"),
    ],
)
def test_init_with_bytes_that_are_no_text_makes_nothing(home: Path, words: tuple[str | bytes, ...]) -> None:
    """It left a key and an empty config.toml, with which the next `run` was in the network of everybody."""
    given = [os.fsdecode(word) for word in words]
    assert "expected words in UTF-8, found " in refused(ExitCode.USAGE, "init", "--home", str(home), *given)
    assert not home.exists()


def test_variables_that_are_no_text_are_refused(home: Path) -> None:
    env = {"P2PNODE_NETWORK__NAME": os.fsdecode(b"caf\xe9")}
    said = refused(ExitCode.USAGE, "config", "show", "--home", str(home), env=env)
    assert "P2PNODE_NETWORK__NAME: network.name: expected text in UTF-8" in said
    env = {"P2PNODE_HOME": os.fsdecode(bytes(home) + b"\xe9")}
    assert "expected a home whose name is UTF-8" in refused(ExitCode.HOME, "init", env=env)


def test_init_that_cannot_write_the_settings_makes_no_key(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "config.toml").symlink_to(home / "nowhere" / "config.toml")
    said = refused(ExitCode.HOME, "init", "--home", str(home), "--set", "network.name=lab")
    assert f"{home / 'config.toml'}: cannot be written" in said
    assert not (home / "identity.key").exists()


def test_init_that_cannot_make_a_key_leaves_no_settings(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "state").write_text("in the way")
    refused(ExitCode.HOME, "init", "--home", str(home), "--set", "network.name=lab")
    assert [entry.name for entry in home.iterdir()] == ["state"]


def test_settings_beyond_ascii_are_written_whatever_the_locale_says(home: Path) -> None:
    """In a Latin-1 or ASCII locale the file was not UTF-8, as TOML is, or was empty."""
    program = (
        f"from p2pnode import home; home.write_config(home.Home(home.Path({str(home)!r})), '# caf\\xe9')"
    )
    home.mkdir()
    env = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | env, check=True, timeout=60)
    assert (home / "config.toml").read_bytes() == b"# caf\xc3\xa9"


def test_flags_of_init_become_settings(home: Path) -> None:
    p2pnode("init", "--home", str(home), "--join", "a:1", "--join", "b:2", "--set", "task.args.lr=0.5")
    shown = json.loads(p2pnode("config", "show", "--home", str(home), "--json", "--origin").stdout)
    assert shown["node.join"] == {"value": ["a:1", "b:2"], "origin": str(home / "config.toml")}
    assert shown["task.args.lr"]["value"] == 0.5
    assert shown["dht.k"]["origin"] == "default"


def test_a_flag_beats_the_environment_beats_the_file(home: Path) -> None:
    p2pnode(
        "init", "--home", str(home), "--set", "dht.k=3", "--set", "dht.alpha=2", "--set", "network.name=x"
    )
    env = {"P2PNODE_DHT__K": "4", "P2PNODE_DHT__ALPHA": "1"}
    words = ("config", "show", "--home", str(home), "--set", "dht.k=5", "--origin")
    shown = json.loads(p2pnode(*words, "--json", env=env).stdout)
    assert (shown["dht.k"], shown["dht.alpha"]["origin"]) == (
        {"value": 5, "origin": "--set"},
        "P2PNODE_DHT__ALPHA",
    )
    document = tomllib.loads(p2pnode(*words, env=env).stdout)
    assert (document["dht"]["k"], document["dht"]["alpha"], document["network"]["name"]) == (5, 1, "x")


def test_config_show_names_every_setting() -> None:
    shown = json.loads(p2pnode("config", "show", "--json", "--home", "nowhere").stdout)
    assert set(shown) == set(TABLE)


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640])
@pytest.mark.parametrize("command", ["id", "run"])
def test_a_key_that_others_can_read_is_refused(home: Path, mode: int, command: str) -> None:
    p2pnode("init", "--home", str(home))
    (home / "identity.key").chmod(mode)
    said = refused(ExitCode.HOME, command, "--home", str(home))
    assert f"found {mode:04o}" in said
    assert "chmod 600" in said


def test_a_damaged_key_is_refused_with_its_reason(home: Path) -> None:
    p2pnode("init", "--home", str(home))
    data = bytearray((home / "identity.key").read_bytes())
    data[30] ^= 1
    (home / "identity.key").write_bytes(data)
    assert "checksum" in refused(ExitCode.HOME, "id", "--home", str(home))


def test_an_encrypted_key_needs_its_passphrase_to_run_but_not_to_be_named(home: Path) -> None:
    env = {"P2PNODE_PASSPHRASE": "correct horse"}
    made = json.loads(p2pnode("init", "--home", str(home), "--encrypt", "--json", env=env).stdout)
    assert json.loads(p2pnode("id", "--home", str(home), "--json").stdout)["id"] == made["id"]
    assert "P2PNODE_PASSPHRASE" in refused(ExitCode.HOME, "run", "--home", str(home))
    wrong = {"P2PNODE_PASSPHRASE": "wrong"}
    assert "does not open" in refused(ExitCode.HOME, "run", "--home", str(home), env=wrong)


@pytest.mark.parametrize(
    ("env", "came"), [({}, "no passphrase"), ({"P2PNODE_PASSPHRASE": ""}, "an empty one")]
)
def test_a_passphrase_that_nobody_can_be_asked_for_is_one_sentence(
    home: Path, env: dict[str, str], came: str
) -> None:
    said = refused(ExitCode.HOME, "init", "--encrypt", "--home", str(home), env=env)
    assert f"expected a passphrase in P2PNODE_PASSPHRASE or a terminal to ask on, got {came}" in said
    assert not (home / "identity.key").exists()


@pytest.mark.parametrize("command", ["id", "run", "init"])
def test_a_directory_in_place_of_the_key_is_one_sentence(home: Path, command: str) -> None:
    (home / "identity.key").mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    assert "found a directory" in refused(ExitCode.HOME, command, "--home", str(home))


def test_a_wrong_setting_is_refused_wherever_it_stands(home: Path) -> None:
    p2pnode("init", "--home", str(home))
    said = refused(ExitCode.USAGE, "run", "--home", str(home), "--set", "learning.local_step=3")
    assert "did you mean learning.local_steps?" in said
    assert "section.key=value" in refused(ExitCode.USAGE, "run", "--home", str(home), "--set", "x")
    env = {"P2PNODE_DHT__K": "many"}
    assert "P2PNODE_DHT__K" in refused(ExitCode.USAGE, "config", "show", "--home", str(home), env=env)
    (home / "config.toml").write_text("[dht]\nk = 'many'\n")
    said = refused(ExitCode.USAGE, "run", "--home", str(home))
    assert str(home / "config.toml") in said
    assert "dht.k: expected a whole number between 1 and 64, got text ('many')" in said


def test_what_is_no_address_is_refused_before_anybody_is_asked(home: Path) -> None:
    assert "expected host:port, got 'foo'" in refused(ExitCode.USAGE, "join", "--home", str(home), "foo")
    assert "node.listen: expected host:port" in refused(
        ExitCode.USAGE, "init", "--home", str(home), "--listen", "foo"
    )
    assert not home.exists()


def test_a_wrong_word_is_refused_with_the_nearest_right_one() -> None:
    assert "did you mean status; `p2pnode --help` tells more" in refused(ExitCode.USAGE, "stauts")


def test_a_wrong_command_line_is_one_sentence() -> None:
    for words, part in [
        (["demo", "--nodes", "1"], "--nodes: expected a whole number between 2 and 16, found 1; "),
        (["join"], "expected HOST:PORT..., found nothing; `p2pnode join --help` tells more"),
        (["run", "--recrd", "x"], "expected an option that exists, found --recrd; did you mean --record"),
    ]:
        assert part in refused(ExitCode.USAGE, *words)


def test_without_a_daemon_reading_commands_say_how_to_start_one(home: Path) -> None:
    for name in ("status", "peers", "eval", "stop"):
        assert "p2pnode run" in refused(ExitCode.NO_DAEMON, name, "--home", str(home))


def test_export_wants_the_right_ending_and_replaces_nothing(home: Path, tmp_path: Path) -> None:
    assert ".safetensors" in refused(ExitCode.USAGE, "export", "--home", str(home), "model.pt")
    there = tmp_path / "m.safetensors"
    there.write_text("mine")
    assert "--force" in refused(ExitCode.USAGE, "export", "--home", str(home), str(there))
    assert there.read_text() == "mine"


def test_a_reader_that_has_enough_is_no_traceback(home: Path) -> None:
    words = [sys.executable, "-m", "p2pnode", "config", "show"]
    read, write = os.pipe()
    os.close(read)
    answer = subprocess.run(words, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert "Traceback" not in answer.stderr
    assert answer.returncode == ExitCode.FAILED


# --- doctor -------------------------------------------------------------------------------------------


def test_doctor_is_content_with_a_new_home(home: Path) -> None:
    p2pnode("init", "--home", str(home))
    answer = p2pnode("doctor", "--home", str(home), "--json")
    findings = {finding["check"]: finding["verdict"] for finding in json.loads(answer.stdout)}
    assert answer.returncode == 0
    assert findings["crypto"] == findings["gossip"] == findings["key"] == "good"
    assert findings["daemon"] == "note"


def test_doctor_reads_the_settings(home: Path) -> None:
    p2pnode("init", "--home", str(home))
    (home / "config.toml").write_text("[node]\nlisten = 'here'\n")
    answer = p2pnode("doctor", "--home", str(home), "--json")
    findings = {finding["check"]: finding for finding in json.loads(answer.stdout)}
    assert answer.returncode == 1
    assert findings["settings"]["verdict"] == "wrong"
    assert "node.listen: expected host:port" in findings["settings"]["detail"]


def test_doctor_names_a_package_that_took_the_place_of_ours(home: Path, tmp_path: Path) -> None:
    """Other distributions install packages called crypto and gossip; an editable install loses against them."""
    p2pnode("init", "--home", str(home))
    intruder = tmp_path / "gossip"
    intruder.mkdir()
    (intruder / "__init__.py").write_text("")
    program = (
        "import sys, importlib.util\n"
        "from p2pnode import doctor\n"
        f"for name in [n for n in sys.modules if n.split('.')[0] == 'gossip']: del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "print([f.detail for f in doctor.intruders() if f.verdict == 'wrong'])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert str(intruder / "__init__.py") in answer.stdout, answer.stderr


def test_the_command_for_the_next_machine_has_what_both_must_share() -> None:
    given = settings.load(
        flags=[
            ("--task", "task.factory", "table"),
            ("--data", "task.args.path", "/secret/patients.csv"),
            ("--set", "task.args.label", "outcome"),
            ("--set", "task.args.classes", '["ill", "well"]'),
            ("--set", "task.args.part", "3"),
        ]
    )
    words = shlex.split(join_command(given, "10.1.2.3:7400"))
    assert words[:4] == ["p2pnode", "run", "--join", "10.1.2.3:7400"]
    assert "task.factory=table" in words
    assert 'task.args.label="outcome"' in words
    assert 'task.args.classes=["ill", "well"]' in words
    assert "task.args.part=PART" in words
    assert words[words.index("--data") + 1] == "DATA"
    assert "patients" not in " ".join(words)
    again = settings.load(flags=[("--set", *settings.parse_assignment(words[-3]))])
    assert again.task_args == {"classes": ["ill", "well"]}
