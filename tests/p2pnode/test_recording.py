"""Traces: what a daemon's core was given is kept whole, and gives the same orders again; files of strangers do no harm.

tests/live/test_daemon_recorded.py has daemons, TCP and SIGKILL.
"""

import random
import struct
import zlib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from crypto.identity import Identity
from gossip import node as core
from gossip.config import Config
from gossip.errors import LocalError
from gossip.events import Join, Woken
from gossip.learning.task import RunInfo
from gossip.net import entrances
from p2pnode.errors import UserError
from p2pnode.recording import (
    MAGIC,
    RECORD_BYTES_MAX,
    Begin,
    End,
    Recorder,
    Step,
    Torn,
    TraceError,
    event_of,
    read,
)
from simulation.cli import main
from simulation.replay import Replayed, replay

RUN = RunInfo(b"r" * 32, "main", "bowl/1", b"s" * 32, b"g" * 32, (50, 50))
SEED = b"k" * 32
HEAD = len(MAGIC) + 1


def record(path: Path, *, mb_max: int = 1, wakes: int = 40) -> None:
    """A node that is alone, for some of its deadlines."""
    recorder = Recorder(path, mb_max=mb_max)
    rng = random.Random(5)
    node = recorder.node(
        Identity.from_seed(SEED),
        Config(),
        RUN,
        addresses=("10.0.0.1:1",),
        rng=rng,
        entropy=random.Random(6).randbytes,
        store={"sequence": (9).to_bytes(8, "big")},
        has_model=False,
        now=100.0,
    )
    recorder.step(100.0, Join(("10.0.0.2:1",)), node.handle(Join(("10.0.0.2:1",)), 100.0))
    for _ in range(wakes):
        now = node.deadline
        recorder.step(now, Woken(), node.handle(Woken(), now))
    recorder.close()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "node.trace"
    record(path)
    return path


def replayed(path: Path) -> Replayed:
    return replay(path, told=lambda line: None)


def offsets(data: bytes) -> list[int]:
    """Where records begin, and the end."""
    found = [HEAD]
    while found[-1] < len(data):
        found.append(found[-1] + 8 + struct.unpack_from(">I", data, found[-1])[0])
    return found


def entry(body: bytes) -> bytes:
    return struct.pack(">II", len(body), zlib.crc32(body)) + body


def test_a_trace_gives_the_same_orders_again(trace: Path) -> None:
    found = replayed(trace)
    assert found.difference == ""
    assert found.events == 41
    assert "the daemon stopped" in found.end
    assert found.duration_s > 1.0


def test_a_trace_has_neither_key_nor_readers(trace: Path) -> None:
    data = trace.read_bytes()
    assert SEED not in data
    assert bytes(Identity.from_seed(SEED).public_key) in data
    assert trace.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="there is such a file"):
        Recorder(trace)
    link = trace.with_name("link")
    link.symlink_to(trace.with_name("elsewhere"))
    with pytest.raises(UserError):
        Recorder(link)


def test_a_trace_that_was_cut_anywhere_replays_up_to_there(trace: Path) -> None:
    data = trace.read_bytes()
    bounds = offsets(data)
    for length in [*range(bounds[-3], bounds[-2] + 1), bounds[5] + 3, bounds[2] - 1]:
        trace.write_bytes(data[:length])
        found = replayed(trace)
        whole = sum(end <= length for end in bounds[1:]) - 1
        assert (found.difference, found.events) == ("", whole)
        assert ("torn" in found.end) == (length not in bounds)
    trace.write_bytes(data[: bounds[1] - 1])
    with pytest.raises(TraceError, match="before it begins"):
        replayed(trace)


def test_other_code_is_pointed_at(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrances, "PAUSE_S", 3.0)
    found = replayed(trace)
    assert found.difference.startswith(f"event {found.events + 1} DIFFERS, ")
    assert 0 < found.events < 41
    assert found.end == "", "what was not read has no end to tell of"
    result = CliRunner().invoke(main, ["replay", str(trace), "--events"])
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last == f"replayed  {found.events} events alike, then {found.difference}"
    assert "all alike" not in result.output
    assert "as after a kill" not in result.output


def test_orders_that_are_missing_new_or_others_are_told_apart(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = core.Node.handle
    for change, said in (
        (lambda orders: orders[:-1], "is missing: it was a Dial"),
        (lambda orders: [*orders, *orders], "is new: Dial 10.0.0.2:1"),
        (
            lambda orders: [msgspec.structs.replace(orders[0], address="10.0.0.3:1")],
            "was a Dial, and is now Dial",
        ),
    ):

        def changed(self, event, now, change=change):  # type: ignore[no-untyped-def]
            orders = handle(self, event, now)
            return change(orders) if orders and type(orders[-1]).__name__ == "Dial" else orders

        monkeypatch.setattr(core.Node, "handle", changed)
        assert said in replayed(trace).difference


def test_a_core_that_failed_fails_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self, event, now):  # type: ignore[no-untyped-def]
        raise LocalError("a bug")

    path = tmp_path / "node.trace"
    recorder = Recorder(path)
    node = recorder.node(
        Identity.from_seed(SEED),
        Config(),
        RUN,
        addresses=(),
        rng=random.Random(1),
        entropy=random.Random(2).randbytes,
        store={},
        has_model=False,
        now=0.0,
    )
    recorder.step(1.0, Woken(), None)
    assert "then the core failed, and now it does not" in replayed(path).difference
    monkeypatch.setattr(type(node), "handle", broken)
    found = replayed(path)
    assert found.difference == ""
    assert "then as now: LocalError: a bug" in found.end


def test_recording_ends_where_the_file_is_full_and_the_node_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "node.trace"
    record(path, wakes=30000)
    assert path.stat().st_size < 1.1 * 2**20
    found = replayed(path)
    assert found.difference == ""
    assert "as large as it may be" in found.end
    assert 1000 < found.events < 30000


# --- files of strangers --------------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed_or_harmless(trace: Path) -> None:
    data = trace.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(150):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        trace.write_bytes(bad)
        try:
            replayed(trace)
        except TraceError:
            refused += 1
    assert refused > 140


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "got another file"),
        (b"GIF89a", "got another file"),
        (MAGIC + b"\x01", "expected version 2"),
        (MAGIC + b"\x02" + struct.pack(">II", RECORD_BYTES_MAX + 1, 0), "are allowed"),
        (MAGIC + b"\x02", "before it begins"),
        (MAGIC + b"\x02" + entry(msgspec.msgpack.encode(End("x"))), "out of place"),
        (MAGIC + b"\x02" + entry(b"\x93\xa5begin\x01\x02"), "cannot be read"),
        (MAGIC + b"\x02" + entry(b"\xdd\xff\xff\xff\xff"), "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "node.trace"
    path.write_bytes(content)
    result = CliRunner().invoke(main, ["replay", str(path)])
    assert result.exit_code == 2
    assert said in result.output


def test_a_lying_trace_differs_and_breaks_nothing(trace: Path) -> None:
    """Whole records whose content a stranger chose: other store, other random state, events that cannot be."""
    with trace.open("rb") as file:
        begin, *steps, end = list(read(file))
    assert isinstance(begin, Begin)
    assert isinstance(steps[0], Step)
    assert not isinstance(end, Torn)
    for bad in (
        msgspec.structs.replace(begin, store={"peers": b"\xc1"}),
        msgspec.structs.replace(begin, rng=msgspec.structs.replace(begin.rng, numbers=(1, 2))),
        msgspec.structs.replace(begin, entropy=[]),
        msgspec.structs.replace(begin, run=msgspec.structs.replace(begin.run, shard_sizes=())),
    ):
        entries = (bad, *steps, end)
        trace.write_bytes(MAGIC + b"\x02" + b"".join(entry(msgspec.msgpack.encode(one)) for one in entries))
        assert replayed(trace).difference != ""
    wrong = msgspec.structs.replace(
        steps[0], kind="Done", event=msgspec.msgpack.encode((77, "Saved", {"size_bytes": 1}))
    )
    trace.write_bytes(
        MAGIC + b"\x02" + entry(msgspec.msgpack.encode(begin)) + entry(msgspec.msgpack.encode(wrong))
    )
    assert "AssertionError: a result for the unknown ticket 77" in replayed(trace).difference
    with pytest.raises(TraceError, match="expected an event, got 'eval'"):
        event_of(msgspec.structs.replace(steps[0], kind="eval"))
