"""What people install: the locks, the wheel, the container image.

The import names `crypto` and `gossip` are generic: distributions of other people install the same ones, and
pip overwrites or shadows ours without a word. So the locks refuse those, and the wheel is installed into a
clean environment and asked, *from another folder* (the project's root would hide the problem), whose packages
it imports.
"""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crypto", "gossip", "p2pnode", "simulation")
LOCKS = ("requirements.lock", "deploy/requirements.lock", "deploy/build.lock")

# Distributions that install a package named like one of ours. On disks that fold case, `Crypto` is `crypto`.
INTRUDERS = {"crypto", "gossip", "simulation", "pycrypto", "pycryptodome", "python-gossip"}

# Either line of JAX: one lock serves the oldest Python that we support and the one of the image.
PYTHONS = ("3.11", "3.13")


@dataclass(frozen=True, slots=True)
class Pin:
    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        return str(self.requirement.specifier).removeprefix("==")

    def holds_on(self, python: str) -> bool:
        where = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
        return self.requirement.marker is None or self.requirement.marker.evaluate(where)


def pins(lock: str) -> list[Pin]:
    """Every requirement of a lock, with its hashes."""
    lines = re.sub(r"\\\n", " ", (ROOT / lock).read_text()).splitlines()
    found = []
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            text, *hashes = re.split(r"\s--hash=", line)
            found.append(Pin(Requirement(text.strip()), tuple(h.strip() for h in hashes)))
    return found


def project() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# --- locks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_file_and_names_no_place(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()
    for pin in pins(lock):
        assert re.fullmatch(r"==[^,*]+", str(pin.requirement.specifier)), pin.requirement
        assert pin.hashes, f"{pin.name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in pin.hashes), pin.name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_lets_nobody_in_who_takes_our_import_names(lock: str) -> None:
    assert sorted({pin.name for pin in pins(lock)} & INTRUDERS) == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/requirements.lock"])
def test_the_pins_lie_in_the_ranges_of_the_project(lock: str, python: str) -> None:
    wanted = list(project()["project"]["dependencies"])
    if lock == "requirements.lock":
        wanted += project()["dependency-groups"]["dev"]
    pinned = {pin.name: pin.version for pin in pins(lock) if pin.holds_on(python)}
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{lock} lacks {name} for Python {python}: make lock"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name} {pinned[name]} is not {requirement}: make lock"
        )


def test_the_locks_of_the_image_are_parts_of_the_lock() -> None:
    """The image runs what was tested, without the tools."""
    tested = {(pin.name, pin.version): set(pin.hashes) for pin in pins("requirements.lock")}
    for lock in LOCKS[1:]:
        for pin in pins(lock):
            assert set(pin.hashes) == tested[(pin.name, pin.version)], f"{lock}: {pin.name}: make lock"
    run_time = {pin.name for pin in pins("deploy/requirements.lock")}
    tools = {canonicalize_name(Requirement(r).name) for r in project()["dependency-groups"]["dev"]}
    assert run_time & tools == set()


def test_what_is_installed_is_what_is_locked() -> None:
    """A virtual environment that somebody changed by hand makes every other result worthless."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for pin in pins("requirements.lock"):
        if pin.holds_on(here):
            assert metadata.version(pin.name) == pin.version, f"{pin.name}: make clean setup"


# --- the wheel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network by the build back end of the lock."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel in it, and the libraries of this one behind it; its bin/."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*command, str(wheel)], check=True, timeout=120, capture_output=True)
    (site,) = home.glob("lib/python*/site-packages")
    # A path from a .pth file comes after the environment's own packages, and .pth files in it are not read:
    # our editable installation stays out.
    libraries = Path(pytest.__file__).parents[1]
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return home / "bin"


def test_the_wheel_holds_the_packages_and_their_files_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    in_tree = [
        p.relative_to(ROOT).as_posix() for top in PACKAGES for p in (ROOT / top).rglob("*") if p.is_file()
    ]
    expected = sorted(
        p for p in in_tree if p.endswith((".py", ".toml", "py.typed")) and "__pycache__" not in p
    )
    assert [p for p in expected if p not in names] == []
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert any(fnmatch(name, "simulation/scenarios/*.toml") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


ORIGINS = """
import importlib, json
from importlib import metadata
from pathlib import Path
ours = {str(Path(f.locate()).resolve()) for f in metadata.files("p2pnode")}
where = {p: str(Path(importlib.import_module(p).__file__).resolve()) for p in PACKAGES}
print(json.dumps({p: [file, file in ours] for p, file in where.items()}))
"""


def test_the_installed_wheel_imports_its_own_packages_from_another_folder(
    installed: Path, tmp_path: Path
) -> None:
    program = f"PACKAGES = {PACKAGES!r}\n{ORIGINS}"
    answer = subprocess.run(
        [installed / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    for package, (file, ours) in json.loads(answer.stdout).items():
        assert ours, f"{package} is somebody else's: {file}"
        assert Path(file).is_relative_to(installed.parent.resolve()), f"{package} comes from {file}"


def test_the_installed_commands_answer_from_another_folder(installed: Path, tmp_path: Path) -> None:
    for command in (["p2pnode", "version"], ["p2psim", "--help"]):
        answer = subprocess.run(
            [installed / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip()
    version = subprocess.run([installed / "p2pnode", "version"], cwd=tmp_path, capture_output=True, text=True)
    assert project()["project"]["version"] in version.stdout


# --- the image -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instruction:
    stage: int
    word: str  # FROM, RUN, COPY, ...
    rest: str


def dockerfile() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    instructions: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        instructions.append(Instruction(stage, word, rest.strip()))
    return instructions


def of(word: str, stage: int) -> list[str]:
    return [i.rest for i in dockerfile() if i.word == word and i.stage == stage]


def copied() -> list[tuple[list[str], str]]:
    """(sources, destination) of what the first stage takes from the project."""
    return [(shlex.split(rest)[:-1], shlex.split(rest)[-1]) for rest in of("COPY", 0)]


def test_both_stages_stand_on_the_same_slim_python() -> None:
    bases = [rest.split()[0] for i in dockerfile() if i.word == "FROM" for rest in [i.rest]]
    assert len(bases) == 2
    assert bases[0] == bases[1], "the environment refers to its Python by path"
    assert re.fullmatch(r"python:3\.\d+-slim", bases[0])


def test_what_the_image_copies_is_there_and_is_sent_to_the_engine() -> None:
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for source in [source for sources, _ in copied() for source in sources]:
        assert (ROOT / source).exists(), f"{source} is not there"
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is ignored"


def test_the_last_stage_installs_nothing_and_takes_one_folder() -> None:
    assert of("COPY", 1) == ["--from=build /opt/p2pnode /opt/p2pnode"]
    assert not re.search(r"pip|apt|curl|wget", " ".join(of("RUN", 1)))


def test_the_daemon_in_the_image_is_nobody_special_and_writes_to_one_place() -> None:
    assert of("USER", 1) == ["1000:1000"]
    assert of("VOLUME", 1) == ["/data"]
    assert "P2PNODE_HOME=/data" in of("ENV", 1)[0].split()
    assert of("STOPSIGNAL", 1) == ["SIGTERM"]
    assert json.loads(of("ENTRYPOINT", 1)[0]) == ["p2pnode"]


def test_the_commands_of_the_image_are_commands_of_ours() -> None:
    from p2pnode import cli

    (health,) = of("HEALTHCHECK", 1)
    program, *arguments = json.loads(health.partition("CMD ")[2])
    assert program == "p2pnode"
    for command in (arguments, json.loads(of("CMD", 1)[0])):
        group = next(value for value in vars(cli).values() if hasattr(value, "list_commands"))
        assert command[0] in group.list_commands(None)
        options = {o for parameter in group.get_command(None, command[0]).params for o in parameter.opts}
        assert {word for word in command if word.startswith("--")} <= options


def test_the_image_listens_where_it_says() -> None:
    from p2pnode.settings import load

    assert of("EXPOSE", 1) == [load().node.listen.rpartition(":")[2]]
    assert load().node.listen.startswith("0.0.0.0:")


def test_the_swarm_of_five_is_configured_with_settings_that_exist() -> None:
    from p2pnode.settings import load
    from p2pnode.tasks import digits

    text = (ROOT / "deploy" / "compose.yaml").read_text().partition("\nservices:\n")[2]
    services = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n|\n)+)", text, re.MULTILINE))
    assert list(services) == ["seed", "node-1", "node-2", "node-3", "node-4"]
    parts = []
    for name, body in services.items():
        environ = {k: v.strip('"') for k, v in re.findall(r"^ +(P2PNODE_\w+): (.+)$", body, re.MULTILINE)}
        settings = load(environ=environ)
        inspect.signature(digits.make).bind(**settings.task_args)
        parts.append((settings.task_args["part"], settings.task_args["parts"]))
        assert settings.node.advertise == (f"{name}:7400",)
        assert settings.node.join == (() if name == "seed" else ("seed:7400",))
        assert f'["{name}:/data"]' in body
    assert parts == [(part, 5) for part in range(5)], "each node holds its own fifth"
    for line in ("read_only: true", "cap_drop: [ALL]", "init: true"):
        assert line in (ROOT / "deploy" / "compose.yaml").read_text()


@pytest.mark.slow
def test_the_steps_of_the_image_work_in_a_clean_folder(tmp_path: Path) -> None:
    """COPY and RUN of the first stage, with $PREFIX elsewhere: needs an index, takes about a minute."""
    source, prefix = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    base = Path(sys.base_prefix) / "bin"
    environ = {**os.environ, "PREFIX": str(prefix), "PATH": f"{base}:{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)
    for instruction in (i for i in dockerfile() if i.stage == 0):
        if instruction.word == "COPY":
            *names, destination = shlex.split(instruction.rest)
            for name in names:
                target = source / destination
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
                else:
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, target)
        elif instruction.word == "RUN":
            step = subprocess.run(
                ["sh", "-ec", instruction.rest],
                cwd=source,
                env=environ,
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert step.returncode == 0, f"RUN {instruction.rest}\n{step.stdout}{step.stderr}"
    answer = subprocess.run(
        [prefix / "p2pnode/bin/p2pnode", "version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    names = {
        canonicalize_name(d.metadata["Name"])
        for site in prefix.glob("p2pnode/lib/python*/site-packages")
        for d in metadata.distributions(path=[str(site)])
    }
    assert "p2pnode" in names
    assert names & {"pip", "hatchling", "pytest", "mypy", "ruff", "setuptools"} == set()


@pytest.mark.slow
def test_the_image_builds_and_answers(root: Path) -> None:
    """With a container engine: the image itself, its user and its command."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode != 0:
        pytest.skip(
            "NOT TESTED: the image was not built, because no container engine answers on this machine."
        )
    build = [docker, "build", "-q", "-t", "p2pnode-test", "."]
    subprocess.run(build, cwd=root, check=True, timeout=290)
    answer = subprocess.run(
        [docker, "run", "--rm", "p2pnode-test", "version"], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
