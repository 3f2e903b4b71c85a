"""The built-in tasks, and the door through which every task comes."""

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET

from gossip.config import LearningConfig
from gossip.learning.task import run_info
from gossip.run import manifest
from p2pnode.errors import ExitCode, UserError
from p2pnode.tasks import load_task
from p2pnode.tasks.check import check_task
from p2pnode.tasks.classifier import Classifier


def classifier(spec: str, **args: Any) -> Classifier:
    task = load_task(spec, args)
    assert isinstance(task, Classifier)
    return task


def write(folder: Path, text: str, name: str = "rows.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# --- the door ----------------------------------------------------------------------------------------

MODULE = """
class Empty: pass
def nothing(): return Empty()
def picky(size): raise ValueError(f"size must be even, got {size}")
def hopeless(): raise ArithmeticError("no hope\\n  at all")
constant = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write(tmp_path, MODULE, "tasks_of_a_user.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "tasks_of_a_user"


@pytest.mark.parametrize(
    ("spec", "args", "said"),
    [
        ("digit", {}, "no task is named 'digit'; expected one of digits, table, or module:factory"),
        ("no_such_module:make", {}, "cannot be imported"),
        ("{module}:absent", {}, "has no factory 'absent'"),
        ("{module}:constant", {}, "has no factory 'constant'"),
        ("{module}:nothing", {}, "returned a Empty without init, loss, batches"),
        ("{module}:nothing", {"size": 1}, "unexpected keyword argument 'size'"),
        ("{module}:picky", {"size": 3}, "cannot be made with size=3: size must be even, got 3"),
        ("{module}:hopeless", {}, "cannot be made with no arguments: no hope at all"),
        ("digits", {"part": 5, "parts": 5}, "expected part to be from 0 to parts - 1, got part=5 of parts=5"),
        ("digits", {"parts": 2000}, "1437 rows cannot be divided into 2000 parts"),
        ("digits", {"model": "cnn"}, "expected model to be mlp or logistic"),
        ("digits", {"batch": 0}, "expected batch to be at least 1, got 0"),
        ("digits", {"hidden": -1}, "expected hidden to be at least 0, got -1"),
        ("digits", {"lr": float("inf")}, "expected lr to be a finite number above 0, got inf"),
        (
            "digits",
            {"batch": 1438},
            "expected batch to be at most 1437, there are 1437 training rows; got 1438",
        ),
        ("table", {"path": "absent.csv"}, "No such file"),
        ("table", {}, "path"),
    ],
)
def test_what_cannot_be_a_task_is_said_in_one_sentence(
    module: str, spec: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_task(spec.format(module=module), args)
    assert caught.value.code is ExitCode.TASK
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_naming_a_task_does_not_import_jax(root: Path) -> None:
    program = (
        "import sys; from p2pnode.tasks import load_task; load_task('digits', {'parts': 5, 'alpha': 0.3});"
        "print(sorted({'jax', 'optax', 'sklearn'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (answer.stdout.strip(), answer.returncode) == ("[]", 0), answer.stderr


# --- digits ------------------------------------------------------------------------------------------


def test_digits_are_the_data_set_of_scikit_learn() -> None:
    task = classifier("digits")
    assert (task.train.x.shape, task.test.x.shape) == ((1437, 64), (360, 64))
    x, y = np.concatenate([task.train.x, task.test.x]), np.concatenate([task.train.y, task.test.y])
    assert (x.dtype, y.dtype, x.min(), x.max()) == (np.float32, np.int32, 0, 1)
    # As published with the data: rows of each digit.
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_parts_of_digits_make_the_whole_and_share_the_test_rows() -> None:
    parts = [classifier("digits", part=part, parts=200, alpha=0.5) for part in range(200)]
    assert sum(len(task.train) for task in parts) == 1437
    assert min(len(task.train) for task in parts) >= 1
    rows = np.concatenate([task.train.x for task in parts])
    whole = classifier("digits").train.x
    assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in whole)
    assert all(np.array_equal(task.test.x, parts[0].test.x) for task in parts)


@pytest.mark.parametrize(("parts", "batch"), [(1, 8), (1, 500), (200, 8), (1437, 4)])
def test_training_batches_go_through_all_rows_evenly_and_never_end(parts: int, batch: int) -> None:
    task = classifier("digits", parts=parts, batch=batch)
    seen: dict[bytes, int] = {}
    epochs = 3
    count = -(-epochs * len(task.train) // batch)
    for one in islice(task.batches("train", 0), count):
        assert (one["x"].shape, one["y"].shape) == ((batch, 64), (batch,))
        for row in one["x"]:
            seen[row.tobytes()] = seen.get(row.tobytes(), 0) + 1
    rows: dict[bytes, int] = {}
    for row in task.train.x:
        rows[row.tobytes()] = rows.get(row.tobytes(), 0) + 1
    spare = count * batch - epochs * len(task.train)
    for row, times in rows.items():
        assert (
            epochs * times <= seen[row] <= epochs * times + min(spare, times * (1 + spare // len(task.train)))
        )


def test_the_order_of_training_rows_is_the_seeds() -> None:
    task = classifier("digits")

    def first(seed: int) -> bytes:
        return next(task.batches("train", seed))["x"].tobytes()

    assert first(1) == first(1) != first(2)
    assert [b["x"].shape for b in task.batches("test", 0)] == [(360, 64)]


# --- table -------------------------------------------------------------------------------------------

CSV = "age;weight;kind\n" + "".join(
    f"{20 + i};{50 + i % 7};{'ill' if i % 3 else 'well'}\n" for i in range(40)
)


def test_a_csv_with_header_and_words_for_labels(tmp_path: Path) -> None:
    task = classifier("table", path=write(tmp_path, CSV), label="kind", batch=4)
    assert task.classes == 2
    assert (task.train.x.shape, task.test.x.shape) == ((32, 2), (8, 2))
    # Standardised by the training rows alone.
    assert np.allclose(task.train.x.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(task.train.x.std(axis=0), 1, atol=1e-5)
    # "ill" sorts before "well": two rows in three.
    assert 0.5 < 1 - task.train.y.mean() < 0.85
    unnamed = classifier("table", path=write(tmp_path, CSV), batch=4)
    assert np.array_equal(unnamed.train.x, task.train.x)


def test_the_label_may_stand_in_any_column(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},{i},{i * i}\n" for i in range(20))
    task = classifier("table", path=write(tmp_path, rows), label=0, scale="none")
    assert sorted(np.concatenate([task.train.x, task.test.x])[:, 0].tolist()) == list(range(20))


def test_an_npz_file_holds_x_and_y(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "rows.npz"
    np.savez(path, x=rng.standard_normal((50, 2, 3)), y=rng.integers(0, 3, 50))
    task = classifier("table", path=str(path), parts=4, part=1)
    assert task.train.x.shape == (10, 6)
    assert task.classes == 3


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([[1, 2], [3, np.inf]], [0.0, 1.0], "x, row 1, feature 1 (both from 0): expected a finite number"),
        ([[1, 2], [3, 4]], [0.0, np.nan], "y, row 1 (from 0): expected a label, got nan"),
        ([[1, 2], [3, 4]], [-np.inf, 1.0], "y, row 0 (from 0): expected a label, got -inf"),
        ([[1, 2], [3, 4]], ["", "ill"], "y, row 0 (from 0): expected a label, got ''"),
    ],
)
def test_what_is_missing_in_an_npz_file_is_refused_with_its_place(
    tmp_path: Path, x: Any, y: Any, said: str
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array(x), y=np.array(y))
    with pytest.raises(UserError, match=re.escape(said)):
        load_task("table", {"path": str(path)})


def test_a_word_for_a_label_may_look_like_a_number(tmp_path: Path) -> None:
    # "inf" is short for more than infinity; only an empty cell and NaN stand for nothing.
    task = classifier("table", path=write(tmp_path, "1,inf\n2,sup\n3,inf\n4,sup\n5,NA\n6,NA\n"))
    assert task.classes == 3


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "1,0\n2,1\n3,0\n4,1\n5,0\n")
    assert len(classifier("table", path=path).train) == 4
    write(tmp_path, "1,0\n2,1\n3,0\n4,1\n5,0\n6,1\n7,0\n8,1\n9,0\n10,1\n")
    assert len(classifier("table", path=path).train) == 8


def agreed(task: Classifier) -> tuple[str, Any, Any, Any]:
    """What of a table enters the manifest of its run."""
    return task.version, task.scaling, task.columns, task.label


def test_what_peers_must_agree_on_is_in_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, CSV)

    def version(**args: Any) -> tuple[str, Any, Any, Any]:
        return agreed(classifier("table", path=path, **args))

    versions = [
        version(),
        version(scale="none"),
        version(mean=50, deviation=10),
        version(mean=[50, 51], deviation=10),
        version(classes=["well", "ill"]),
        version(classes=["ill", "well", "unknown"]),
    ]
    assert len(set(versions)) == 6
    assert version(classes=["ill", "well"]) == versions[0]
    assert version(mean=[50, 50], deviation=[10, 10]) == versions[2]
    assert all(len(f"table/{one[0]}") <= 200 for one in versions)  # the wire's limit for a task's name


@pytest.mark.parametrize(
    "header",
    ["weight;age;kind", "age;mass;kind", "age;weight;verdict", "Age;weight;kind"],
    ids=["another order", "another feature", "another label", "another spelling"],
)
def test_other_columns_are_another_run(tmp_path: Path, header: str) -> None:
    ours = classifier("table", path=write(tmp_path, CSV))
    same = classifier("table", path=write(tmp_path, CSV.replace("age;", " age ;", 1), "same.csv"))
    other = classifier("table", path=write(tmp_path, CSV.replace("age;weight;kind", header), "other.csv"))
    unnamed = classifier("table", path=write(tmp_path, CSV.split("\n", 1)[1], "unnamed.csv"))
    assert agreed(same) == agreed(ours)
    assert agreed(ours) != agreed(other)
    assert agreed(unnamed)[2:] == ((), "")


def test_where_the_label_stands_among_the_same_features_is_no_difference(tmp_path: Path) -> None:
    rows = [line.split(";") for line in CSV.splitlines()]
    moved = "".join(f"{kind};{age};{weight}\n" for age, weight, kind in rows)
    ours = classifier("table", path=write(tmp_path, CSV), label="kind")
    other = classifier("table", path=write(tmp_path, moved, "moved.csv"), label="kind")
    assert agreed(ours) == agreed(other)


def test_two_sites_with_their_columns_in_another_order_are_two_runs_and_read_why(shared: Path) -> None:
    from gossip.learning.trainer import Trainer

    runs = []
    for site in (0, 1):
        task = load_task(
            "table", {"path": str(shared / "inputs" / f"site{site}_order.csv"), "classes": [0, 1]}
        )
        trainer = Trainer(task)
        runs.append(
            run_info(
                network="",
                task=task,
                schema=trainer.schema,
                genesis=trainer.genesis,
                learning=LearningConfig(),
            )
        )
    first, second = runs
    assert first.id != second.id
    ours, other = (manifest.decode(run.manifest) for run in runs)
    [said] = manifest.difference(ours, other)
    assert said.startswith("the table has the same in another order here than there: number 1 is ")


@pytest.mark.parametrize(
    ("text", "args", "said"),
    [
        ("", {}, "is empty"),
        ("1,2,a\n3,4,b\n5,6\n", {}, "line 3 has 2 cells, the first has 3"),
        ("1,2,a\n3,x,b\n", {}, "line 2, column 2: expected a number, got 'x'; fill it or drop the row"),
        ("u,v,w\n1,2,a\n\n3,,b\n", {}, "line 4, column 'v': expected a number, got ''"),
        (
            "1,2,a\n3,nan,b\n",
            {},
            "line 2, column 2: expected a finite number of at most 3.4e+38 in size, got nan",
        ),
        ("u,v,w\n1,a,2\n3,b,-inf\n", {"label": "v"}, "line 3, column 'w': expected a finite number"),
        ("1,2,a\n3,1e39,b\n", {"scale": "none"}, "line 2, column 2: expected a finite number"),
        (
            "1,2,a\n\n3,4, \n5,6,b\n",
            {},
            "line 3, column 3: expected a label, got ' '; fill it or drop the row",
        ),
        ("u,v,w\n1,a,2\n3,NaN,4\n", {"label": "v"}, "line 3, column 'v': expected a label, got 'NaN'"),
        ("a,b,c\n1,2,3\n", {"label": "d"}, "has no column 'd'; its columns are a, b, c"),
        ("1,2,3\n4,5,6\n", {"label": 3}, "has 3 columns, so there is none with index 3"),
        ("1,1\n2,1\n3,1\n", {}, "at least two classes"),
        ("".join(f"{i},{i}\n" for i in range(300)), {}, "is it the right column?"),
        ("1,a\n2,b\n3,a\n", {"classes": ["a", "c"]}, "the label 'b' is not among the classes a, c"),
        ("1,a\n2,b\n3,a\n", {"classes": ["a", "a"]}, "differ from each other"),
        ("1,a\n2,b\n3,a\n", {"mean": 1}, "mean and deviation together"),
        ("1,a\n2,b\n3,a\n", {"mean": [1, 2], "deviation": 1}, "one finite number or 1"),
        ("1,a\n2,b\n3,a\n", {"mean": 1, "deviation": 0}, "above zero"),
        ("1,a\n2,b\n3,a\n", {"scale": "minmax"}, "standard or none"),
        ("1,a\n2,b\n3,a\n", {"test_share": 1.0}, "between 0 and 1"),
        ("1,a\n2,b\n3,a\n", {"batch": 1025}, "batch to be at most 1024, there are 2 training rows; got 1025"),
    ],
)
def test_a_file_that_cannot_be_understood_is_said_in_one_sentence(
    tmp_path: Path, text: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_task("table", {"path": write(tmp_path, text), **args})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spambase_is_learned_by_one_node(shared: Path) -> None:
    from gossip.learning.trainer import train_alone

    task = load_task("table", {"path": str(shared / "data" / "spambase.data")})
    # Logistic regression on all rows in one place reaches 0.928-0.936.
    assert train_alone(task, rounds=200, learning=LearningConfig())["accuracy"] >= 0.90


# --- check-task --------------------------------------------------------------------------------------


def test_a_checked_task_comes_with_its_facts() -> None:
    learning = LearningConfig(shard_values_max=1000)
    facts = check_task(load_task("digits", {"parts": 5}), learning, network="main")
    assert facts.manifest["network"] == "'main'"
    assert facts.manifest["shard_values"] == "1000"
    assert facts.task == "digits/1"
    assert facts.values == 4810
    assert facts.shards == 5
    assert facts.payload_bytes == {"f32": 19240, "int8": 4810 + 5 * 16 * 4, "int4": 2405 + 5 * 16 * 4}
    assert "hidden/w float32[64,64]" in facts.leaves
    assert facts.test["rows"] == 360
    assert facts.step_s > 0
    assert facts.columns == UNSET


def test_check_task_shows_the_columns_in_the_order_that_counts(tmp_path: Path) -> None:
    text = "b,a,kind\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(40))
    facts = check_task(load_task("table", {"path": write(tmp_path, text)}), LearningConfig())
    assert facts.columns == ["b", "a"]
    assert facts.manifest["columns"] == "2 columns: 'b', 'a', to predict 'kind'"


def broken(**changes: Any) -> Classifier:
    task = classifier("digits", parts=100, model="logistic")
    for name, change in changes.items():
        setattr(task, name, change)
    return task


BREACHES: list[tuple[str, Any, str]] = [
    ("init", lambda key: {"n": 3}, "nothing to share"),
    ("loss", lambda params, batch, key: 1.0, "breaks its contract"),
    ("loss", lambda params, batch, key: (batch["z"], {}), "KeyError: 'z'"),
    ("loss", lambda params, batch, key: (batch["x"].mean(), {}), "changed no weight"),
    ("loss", lambda params, batch, key: (params["output"]["w"].sum() * np.nan, {}), "the loss is nan"),
    ("_rate", 1e30, "would refuse this model"),
    ("batches", lambda split, seed: iter([]), "go on for ever"),
]


@pytest.mark.parametrize(("name", "change", "said"), BREACHES)
def test_a_task_that_breaks_its_contract_is_told_where(name: str, change: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_task(broken(**{name: change}), LearningConfig())
    assert caught.value.code is ExitCode.TASK
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
