"""`p2pnode doctor`: is this installation ours and whole, is the home sound, does the daemon answer?

The import names `crypto` and `gossip` also belong to other distributions, which overwrite or hide ours
without a word from the installer; the symptom is an ImportError far from its cause. JAX is looked for, not
imported.
"""

import importlib.util
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gossip.run import manifest
from gossip.run.manifest import Genesis, Manifest
from p2pnode import control, keyfile, settings
from p2pnode import home as homes
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home
from p2pnode.printable import printable
from p2pnode.settings import Settings

PACKAGES = ("crypto", "gossip", "p2pnode", "simulation")
LIBRARIES = ("jax", "jaxlib", "optax", "msgpack", "nacl", "numpy", "safetensors", "structlog", "trio")
# 96 connections, their sockets twice during a dial, and what JAX opens.
DESCRIPTORS_MIN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    check: str
    verdict: str  # good, note or wrong
    detail: str  # what was found and, where wrong, what to do


def examine(home: Home) -> list[Finding]:
    """All checks, cheap ones only: answers within a second."""
    return [*intruders(), _libraries(), _descriptors(), *_home(home), _daemon(home)]


def intruders() -> list[Finding]:
    """Packages of ours that Python would import from somewhere else."""
    root = Path(__file__).resolve().parents[1]
    findings = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found == root / name / "__init__.py":
            findings.append(Finding(check=name, verdict="good", detail=str(found.parent)))
        else:
            findings.append(
                Finding(
                    check=name,
                    verdict="wrong",
                    detail=f"expected {root / name}, Python finds {found or 'nothing'}; another package of this name "
                    "is installed: use a virtual environment of its own for p2pnode",
                )
            )
    return findings


def _libraries() -> Finding:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            check="libraries", verdict="wrong", detail=f"missing: {', '.join(missing)}; install p2pnode again"
        )
    return Finding(check="libraries", verdict="good", detail=f"all there for Python {sys.version.split()[0]}")


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = "good" if soft >= DESCRIPTORS_MIN or soft == resource.RLIM_INFINITY else "note"
    return Finding(
        check="files", verdict=verdict, detail=f"{soft} open files allowed, {DESCRIPTORS_MIN} wanted"
    )


def _home(home: Home) -> list[Finding]:
    try:
        homes.check(home)
    except UserError as error:
        absent = not home.path.exists()
        return [Finding(check="home", verdict="note" if absent else "wrong", detail=str(error))]
    findings = [Finding(check="home", verdict="good", detail=str(home.path))]
    found: Settings | None = None
    try:
        found = settings.load(file=home.config, environ=os.environ, remembered=home.run)
    except UserError as error:
        findings.append(Finding(check="settings", verdict="wrong", detail=str(error)))
    else:
        there = home.config if home.config.exists() else "defaults; there is no config.toml"
        findings.append(Finding(check="settings", verdict="good", detail=str(there)))
    try:
        _, node = keyfile.claimed_identity(home)
    except UserError as error:
        findings.append(Finding(check="key", verdict="wrong", detail=str(error)))
    else:
        findings.append(Finding(check="key", verdict="good", detail=f"of node {node.hex()}"))
    return [*findings, *_runs(home, found)]


def _runs(home: Home, found: Settings | None) -> list[Finding]:
    """The runs whose models lie in the home, and in what the settings of now would make another run of them."""
    if not home.runs.is_dir():
        return []
    # Imported here: models are arrays, and a home without one need not wait for numpy.
    from p2pnode.models import DiskFiles, Models, read_manifest

    findings = []
    for run, document in Models(DiskFiles(home.runs)).manifests().items():
        made = read_manifest(run, document)
        said = ["its manifest cannot be read"] if made is None else []
        if made is not None and found is not None:
            said = _other_settings(made, found)  # a note: flags of `run` may say otherwise
        keys = ", ".join(f"{name} {value}" for name, value in manifest.shown(made).items()) if made else ""
        detail = f"{run.hex()[:12]}: {'; '.join(said) or keys}"
        findings.append(Finding(check="run", verdict="note" if said else "good", detail=detail))
    return findings


def _other_settings(made: Manifest, found: Settings) -> list[str]:
    """In what the settings differ from a run, as far as can be seen without building the task."""
    keys, core = made.keys, found.core
    genesis = keys.genesis and Genesis(keys.genesis.hash, core.learning.genesis_seed)
    now = msgspec.structs.replace(
        keys,
        network=core.network,
        shard_values=core.learning.shard_values_max,
        genesis=genesis,
        purpose=core.run.purpose or None,
        licence=core.run.licence or None,
    )
    return manifest.difference(manifest.make(now), made, places=("in the settings", "in the saved run"))


def _daemon(home: Home) -> Finding:
    try:
        status = control.ask(home, "status")
    except UserError as error:
        verdict = "note" if error.code is ExitCode.NO_DAEMON else "wrong"
        return Finding(check="daemon", verdict=verdict, detail=str(error))
    state = printable(str(status.get("state")))
    return Finding(check="daemon", verdict="good", detail=f"answers; {state}, {status.get('peers')} peers")
