"""What every test of this suite may rely on.

JAX raises on implicit promotion of rank (as equinox lets it in its tests): a silent broadcast is a bug here.
It is set through the environment, so that a test which needs no JAX does not import it, and so that processes
which a test starts are as strict. Promotion of dtypes is refused where a test asks for it by `strict_dtypes`:
not everywhere, because Adam in optax 0.2.8 raises a float to the power of an int32 and would fail.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Tests of small models, often several processes at once: an accelerator would only be in the way.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# No deadline: a slow machine is not a failure. In CI the same examples every time: a red run can be repeated.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("house"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "house")

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write tests/transcripts/*.txt anew; commit only what you can explain",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root: the folder of pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published vectors and data sets beside the project; without it the test is skipped."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: there is no folder shared/ with the published vectors beside {ROOT.name}/.")
    return folder


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Arithmetic of ours between different dtypes raises, instead of becoming what JAX thinks best."""
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
