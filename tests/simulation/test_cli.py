"""`p2psim` on the command line."""

import json
import subprocess
import sys

from click.testing import CliRunner

from simulation.cli import main
from simulation.scenario import shipped

SMALL = [
    "run",
    "smoke-20",
    "--seed",
    "3",
    "--nodes",
    "6",
    "--set",
    "duration_s=6.0",
    "--set",
    "faults.churn=0",
]
SMALL += ["--set", "faults.crash=0", "--set", "faults.partitions=[]", "--set", "task.args.model=logistic"]


def test_list_names_every_scenario() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == shipped()
    as_json = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    assert [entry["name"] for entry in as_json] == shipped()


def test_a_mistake_is_one_sentence_and_status_2() -> None:
    for arguments, part in [
        (["run", "smoke-2"], "did you mean smoke-20"),
        (["run", "smoke-20", "--set", "network.los=1"], "did you mean loss"),
        (["run", "smoke-20", "--set", "task.name=nothing"], "nothing"),
        (["run", "smoke-20", "--nodes", "5000"], "fewer parts"),
    ]:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, arguments
        assert part in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_json_is_one_object_with_the_promised_fields() -> None:
    result = CliRunner().invoke(main, [*SMALL, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    promised = "scenario seed nodes digest virtual_s wall_s events exchanges node_updates accuracy consensus bytes_sent"
    assert set(promised.split()) <= set(found)
    assert set(found["accuracy"]) == {"mean", "worst", "central"}
    assert isinstance(found["faults"], dict)
    assert isinstance(found["refused"], dict)
    assert (found["scenario"], found["seed"], found["nodes"]) == ("smoke-20", 3, 6)
    assert result.stderr.startswith("seed 3; repeat with: p2psim run smoke-20 --seed 3")


def test_people_get_seed_and_options_first_and_the_digest_last() -> None:
    result = CliRunner().invoke(main, SMALL)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("seed 3; repeat with: p2psim run smoke-20 --seed 3")
    assert json.loads(lines[1].removeprefix("options "))["nodes"] == 6
    assert lines[-1].startswith("digest")
    assert "all data in one place" in result.stdout


def test_listing_imports_no_jax() -> None:
    code = (
        "import sys; sys.argv = ['p2psim', 'list']\n"
        "from simulation.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'trio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
