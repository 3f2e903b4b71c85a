"""Children of a seed are repeatable, and apart from each other."""

import subprocess
import sys

from simulation.seeds import Seeds


def test_a_child_depends_on_its_name_and_not_on_the_order_of_asking() -> None:
    early = Seeds(7).random("network").random()
    seeds = Seeds(7)
    for index in range(10):
        seeds.random("node", index).random()
    assert seeds.random("network").random() == early


def test_names_do_not_run_together() -> None:
    seeds = Seeds(7)
    children = [
        seeds.integer("node", 1),
        seeds.integer("node", "1"),
        seeds.integer("node1"),
        seeds.integer("no", "de", 1),
        Seeds(8).integer("node", 1),
    ]
    assert len(set(children)) == len(children)


def test_entropy_is_a_stream_of_its_own_and_repeats() -> None:
    first, again = Seeds(7).entropy("node", 3), Seeds(7).entropy("node", 3)
    drawn = [first(32), first(32)]
    assert drawn[0] != drawn[1]
    assert drawn == [again(32), again(32)]
    assert first(0) == b""


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from simulation.seeds import Seeds; print(Seeds(7).integer('node', 3))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert printed == {f"{Seeds(7).integer('node', 3)}\n"}
