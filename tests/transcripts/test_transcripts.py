"""What nodes say and do, as stories to be read: one file for each, compared line by line.

Real nodes, signatures and weights over the perfect wire of tests/gossip/conftest.py. A line with a date is an event
that a node was given; below it are the effects it answered with, in their order. After a change of the protocol:

    pytest tests/transcripts --rewrite

Commit the new files only if you understand why each line changed. The model is etcd-io/raft, `testdata/`.

Left out, because they say nothing about the order of things: nonces, signatures, and wake-ups without effects.
Headers go by the first four digits of their hash, by which a reply names its offer.
"""

import hashlib
import importlib.util
import math
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gossip import wire
from gossip.config import Config
from gossip.dht.ids import NodeId
from gossip.errors import RemoteError
from gossip.events import (
    Adopt,
    Adopted,
    Compute,
    Connected,
    Dial,
    DialFailed,
    Disconnected,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Exchanged,
    Faulted,
    Finish,
    Finished,
    Job,
    JobRefused,
    JobResult,
    Join,
    Learned,
    Leave,
    Looked,
    News,
    Offer,
    Offered,
    PeerDown,
    PeerUp,
    Persist,
    Progress,
    Recall,
    Received,
    Refused,
    Rescued,
    Respond,
    Responded,
    Save,
    Saved,
    Send,
    Sent,
    StateChanged,
    Taken,
    Train,
    Trained,
    Unreachable,
    Unsent,
    Woken,
)

HERE = Path(__file__).parent
NAMES = ("", "ana", "bo", "cleo", "dan")


def _net_class() -> Any:
    """`Net` of tests/gossip/conftest.py; tests are no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("gossip_net", HERE.parent / "gossip" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Net


Net: Any = _net_class()


class Told(Net):  # type: ignore[misc]  # loaded at run time
    """A net that writes down what happens in it, from `begin` on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._begun = False
        self._begins = ""  # what `initiate` will have been, in words

    # --- for stories ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """What came before was the stage."""
        self._begun = True

    def say(self, text: str) -> None:
        self.lines += ["", *(f"## {line}" for line in textwrap.wrap(text, 100)), ""]

    def lose(self, kind: type, *, times: int = 1) -> None:
        """The next message of `kind` does not arrive."""
        left = [times]

        def wire_(source: Any, target: Any, frame: bytes) -> list[bytes]:
            message = wire.decode(frame)
            if left[0] and isinstance(message, kind):
                left[0] -= 1
                self._line(1, f"(lost on the way to {self._name(target.id)}: {self._message(message)})")
                return []
            return [frame]

        self.wire = wire_

    def offer(self, source: Any, target: Any, shard: int = 0) -> None:
        """A round of `source` has come, and its sampler chose `target`."""
        self._begins = f"begins an exchange with {self._name(target.id)}"
        self.initiate(source, target, shard)

    def _carry_out(self, peer: Any, effects: list[Effect]) -> None:
        if self._begins:
            event, self._begins = self._begins, ""
            self._write(peer, event, effects)
        super()._carry_out(peer, effects)

    def weights(self) -> None:
        """What everybody holds now."""
        held = ", ".join(f"{NAMES[p.number]} {p.learner.weights()[0]:.3g}" for p in self.peers.values())
        self.lines += ["", f"   weights: {held}"]

    # --- writing -------------------------------------------------------------------------------------

    def tell(self, peer: Any, event: Event) -> None:
        effects = peer.node.handle(event, self.now)
        # On this wire everything leaves at once: that it did is worth a line only where something follows.
        if effects or not isinstance(event, Woken | Sent):
            self._write(peer, self._event(event), effects)
        self._carry_out(peer, effects)

    def _write(self, peer: Any, event: str, effects: list[Effect]) -> None:
        self._line(0, f"{self.now:7.3f} {NAMES[peer.number]:5}{event}")
        for effect in effects:
            self._line(1, self._effect(effect))

    def _line(self, depth: int, text: str) -> None:
        if self._begun:
            self.lines.append(depth * 15 * " " + text)

    def _name(self, node: NodeId | None) -> str:
        if node is None:
            return "somebody"
        return NAMES[self.peers[node].number] if node in self.peers else node.hex()[:4]

    def _event(self, event: Event) -> str:
        match event:
            case Join(addresses):
                return f"is told to join through {', '.join(addresses)}"
            case Leave():
                return "is told to leave"
            case Woken():
                return "wakes up"
            case PeerUp(peer, _, _, inbound):
                return f"is connected {'by' if inbound else 'to'} {self._name(peer)}"
            case PeerDown(peer, reason):
                return f"has lost {self._name(peer)}: {reason}"
            case DialFailed(address, peer, reason):
                return f"cannot reach {self._name(peer)} at {address}: {reason}"
            case Received(peer, frame):
                return f"hears from {self._name(peer)}: {self._frame(frame)}"
            case Sent(peer, ticket):
                return f"hears that frame {ticket} has left for {self._name(peer)}"
            case Unsent(peer, ticket):
                return f"hears that frame {ticket} will not reach {self._name(peer)}"
            case Progress(peer):
                return f"hears that something moves, to or from {self._name(peer)}"
            case Done(ticket, result):
                return f"has done job {ticket}: {self._result(result)}"

    def _effect(self, effect: Effect) -> str:
        match effect:
            case Send(peer, frame):
                return f"send {self._name(peer)}: {self._frame(frame)}"
            case Recall(peer, ticket):
                return f"recall frame {ticket} to {self._name(peer)}"
            case Dial(address, peer):
                return f"dial {address}, {'whoever is there' if peer is None else 'expecting ' + self._name(peer)}"
            case Drop(peer, reason):
                return f"drop {self._name(peer)}: {reason}"
            case Compute(ticket, job, _):
                return f"compute job {ticket}: {self._job(job)}"
            case Persist(entries, power):
                kept = ", ".join(self._entry(*entry) for entry in entries)
                return f"persist {kept}{' (through power loss)' if power else ''}"
            case Emit(news):
                return f"news: {self._news(news)}"

    def _entry(self, key: str, value: bytes) -> str:
        start, slash, of = key.partition("/")
        if start == "mark":
            of = next(NAMES[p.number] for p in self.peers.values() if p.identity.public_key.hex() == of)
        shown = msgspec.msgpack.decode(value) if start in ("ages", "peers") else int.from_bytes(value, "big")
        return f"{start}{slash}{of[:4]}={shown}"

    def _frame(self, frame: bytes) -> str:
        try:
            return self._message(wire.decode(frame))
        except RemoteError as error:
            return f"{len(frame)} bytes that are no message ({error.detail})"

    def _message(self, message: wire.AnyMessage) -> str:
        match message:
            case wire.Hello(agent, _, protocols, _):
                spoken = ", ".join(f"{name} {versions}" for name, versions in protocols.items())
                return f"hello, {agent}, speaks {spoken}"
            case wire.Unsupported(tag):
                return f"unsupported {tag!r}"
            case wire.Holds(runs):
                held = ", ".join(f"shards {share.shards} of run {share.run.hex()[:4]}" for share in runs)
                return f"holds {held or 'nothing'}"
            case wire.GetManifest(n, run):
                return f"get_manifest {n}, run {run.hex()[:4]}"
            case wire.ManifestMessage(data, n):
                return f"manifest {n}, {len(data)} bytes"
            case wire.Bye(reason):
                return f"bye, {reason!r}"
            case wire.Ping(n):
                return f"ping {n}"
            case wire.Pong(n):
                return f"pong {n}"
            case wire.FindNode(n, target):
                return f"find_node {n}, target {self._target(target)}"
            case wire.Nodes(n, records):
                return f"nodes {n}, {len(records)} records"
            case wire.GetRecords(key, n):
                return f"get_records {n}, key {key.hex()[:4]}"
            case wire.Records(n, nodes, records):
                return f"records {n}, {len(records)} records and {len(nodes)} nodes"
            case wire.PutRecord(n, _):
                return f"put_record {n}"
            case wire.Stored(n, reason):
                return f"stored {n}{': ' + reason if reason else ''}"
            case wire.OfferMessage():
                header = wire.decode_offer_header(message.header)
                return (
                    f"offer {_hash(message.header)}, seq {header.seq}, shard {header.shard}, age {header.age}, "
                    f"{header.codec} of {len(message.payload)} bytes"
                )
            case wire.ReplyMessage():
                return self._reply(message)

    def _reply(self, message: wire.ReplyMessage) -> str:
        header = wire.decode_reply_header(message.header)
        text = (
            f"reply {_hash(message.header)} to {header.offer.hex()[:4]}, seq {header.seq}: {header.verdict}"
        )
        if header.verdict == "refused":
            text += f", {header.reason} ({header.detail})"
        if message.payload:
            text += f", {header.codec} of {len(message.payload)} bytes"
        return text

    def _target(self, target: bytes) -> str:
        return self._name(NodeId(target)) if NodeId(target) in self.peers else target.hex()[:4]

    def _job(self, job: Job) -> str:
        match job:
            case Train(steps):
                return f"train {steps} steps"
            case Offer(shard, codec):
                return f"encode shard {shard} as {codec}"
            case Respond(shard, codec, payload, _):
                return f"answer {len(payload)} bytes of {codec} for shard {shard}"
            case Finish(shard, codec, payload, _):
                return f"apply {len(payload)} bytes of {codec} to shard {shard}"
            case Adopt(shard, codec, payload):
                return f"adopt {len(payload)} bytes of {codec} as shard {shard}"
            case Save():
                return "save a snapshot"

    def _result(self, result: JobResult) -> str:
        match result:
            case Trained(steps, loss):
                return f"trained {steps} steps, loss {loss:.3g}"
            case Offered(payload, clip):
                return f"encoded, {len(payload)} bytes, change limit {clip:.3g}"
            case Responded(payload, distance, norm):
                return f"answer of {len(payload)} bytes, distance {distance:.3g}, change {norm:.3g}"
            case Rescued(payload, distance, norm, detail):
                return f"not followed ({detail}); answer of {len(payload)} bytes, change {norm:.3g}"
            case Taken(distance, norm):
                return f"taken, distance {distance:.3g}, counts as {norm:.3g}"
            case Finished(norm):
                return f"applied, change {norm:.3g}"
            case Adopted(distance):
                return f"adopted, moved by {distance:.3g}"
            case JobRefused(reason, detail):
                return f"refused, {reason} ({detail})"
            case Saved():
                return "saved"

    def _news(self, news: News) -> str:
        match news:
            case Exchanged(peer, shard, role, distance, norm):
                known = [f"distance {distance:.3g}"] * (not math.isnan(distance))
                known += [f"change {norm:.3g}"] * (not math.isnan(norm))
                return ", ".join([f"exchanged shard {shard} with {self._name(peer)} as {role}", *known])
            case Learned(number, steps, _):
                return f"learned, round {number}, {steps} steps"
            case Refused(peer, reason, by_us, detail):
                who = self._name(peer)
                return f"{'refused ' + who if by_us else 'refused by ' + who}, {reason} ({detail})"
            case Connected(peer, _, inbound):
                return f"connected {'by' if inbound else 'to'} {self._name(peer)}"
            case Disconnected(peer, reason):
                return f"disconnected from {self._name(peer)}: {reason}"
            case Unreachable(address, reason):
                return f"unreachable {address}: {reason}"
            case Looked(purpose, hops, queried, found):
                return f"looked for {purpose}: {queried} asked, {hops} hops, {found} found"
            case Faulted(peer, event, _, _):
                return f"a fault of ours, met by {event} of {self._name(peer)}"
            case StateChanged(state):
                return f"state {state}"


def _hash(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:4]


# --- stories: the docstring is the head of the file ------------------------------------------------------


def join(net: Told, quiet: Config) -> None:
    """A newcomer knows one address. It finds the swarm, is found, and adopts a model instead of averaging.

    Ana and Bo have been learning for a while: each of Ana's weights is 1, of Bo's 2. Cleo has nothing, knows Ana's
    address only; Ana's answers lead her to Bo.
    """
    net.add(config=quiet, weight=1.0)
    net.add(config=quiet, weight=2.0)
    net.run(2.0)
    net.begin()
    # One round, at once; its first is at a random moment of the interval.
    brisk = replace(quiet, learning=replace(quiet.learning, round_interval_s=1.0, rounds_max=1))
    cleo = net.add(config=brisk)
    net.run(0.5)
    net.say("Cleo is connected with both, and known to hold shard 0. Then her first round comes.")
    net.run(1.0)
    net.weights()
    assert min(cleo.node.snapshot(net.now).learning.ages) > 0


def exchange(net: Told, quiet: Config) -> None:
    """An exchange: two messages, two jobs at each end, and both stand in the middle.

    Ana's weights are 1, Bo's are 2. Ana sends hers; Bo answers with the change c = 1 - 2, adds half of it to his own
    weights, and Ana takes away half of it from hers.
    """
    ana, bo = _pair(net, quiet)
    net.offer(ana, bo)
    net.run(1.0)
    net.weights()
    assert ana.learner.weights()[0] == pytest.approx(1.5, rel=0.01)


def lost_reply(net: Told, quiet: Config) -> None:
    """The reply is lost. The offer is sent again, and answered from the cache: no change is applied twice.

    The responder has moved by then, so without the repetition half of an exchange would be missing for ever.
    """
    ana, bo = _pair(net, quiet)
    net.lose(wire.ReplyMessage)
    net.offer(ana, bo)
    net.run(1.0)
    net.weights()
    net.say("Ana hears nothing. After a third of exchange.timeout_s she repeats the same bytes.")
    net.run(5.0)
    net.weights()
    assert ana.learner.weights()[0] == pytest.approx(1.5, rel=0.01)


def lost_for_good(net: Told, quiet: Config) -> None:
    """Both replies are lost. The initiator gives up, and half an exchange is left: a small drift, nobody's fault.

    A node that does not answer is not counted as hostile, and the next exchange with it is as good as any.
    """
    ana, bo = _pair(net, quiet)
    net.lose(wire.ReplyMessage, times=2)
    net.offer(ana, bo)
    net.run(15.0)
    net.weights()
    assert ana.refused(by_us=False) == {"timeout": 1}


def crossed(net: Told, quiet: Config) -> None:
    """Two offers cross: both chose each other in the same moment. That of the larger id stands.

    If both were served, the two would merely swap their weights. Both know which one stands without a further word.
    """
    ana, bo = _pair(net, quiet)
    larger = "Ana" if ana.id > bo.id else "Bo"
    net.say(f"The larger id is {larger}'s.")
    net.offer(ana, bo)
    net.offer(bo, ana)
    net.run(1.0)
    net.weights()
    assert ana.learner.weights()[0] == pytest.approx(bo.learner.weights()[0], rel=0.01)


def refusal(net: Told, quiet: Config) -> None:
    """A refusal is signed, says why, and changes nothing.

    First the payload is swapped on the desk of a node that has not signed it so: the check of the hash finds it before
    any work is ordered. Then Bo's weights explode, as a broken optimiser makes them: only the job finds it.
    """
    ana, bo = _pair(net, quiet)

    def swap(source: Any, target: Any, frame: bytes) -> list[bytes]:
        message = wire.decode(frame)
        if isinstance(message, wire.OfferMessage):
            return [wire.encode(msgspec.structs.replace(message, payload=bytes(len(message.payload))))]
        return [frame]

    net.wire = swap
    net.offer(bo, ana)
    net.run(1.0)
    net.weights()
    net.say("Now an honest wire, and Bo's weights are 1e30.")
    net.wire = lambda source, target, frame: [frame]
    bo.learner._x[:] = 1e30
    net.offer(bo, ana)
    net.run(1.0)
    net.weights()
    assert ana.refused() == {"wrong_hash": 1, "too_large_norm": 1}
    assert ana.learner.weights()[0] == 1.0


def malformed(net: Told, quiet: Config) -> None:
    """Bytes that are no message end the connection at once, with a word; whoever sent them may not come back soon."""
    ana, bo = _pair(net, quiet)
    net.wire = lambda source, target, frame: [frame[:-1]] if source is bo else [frame]
    net.say("The last byte of whatever Bo sends is cut off.")
    net.offer(bo, ana)
    net.run(1.0)
    net.say("Bo's next round comes while he is not welcome.")
    net.offer(bo, ana)
    net.run(1.0)
    assert (ana.id, bo.id) not in net.links


def leave(net: Told, quiet: Config) -> None:
    """A node leaves: it says goodbye, remembers whom it knew, saves its model, and starts nothing new.

    An offer that comes after that is refused: what it would change would not be saved.
    """
    ana, bo = _pair(net, quiet)
    net.tell(ana, Leave())
    net.say("Bo has not heard of it yet: his offer is on its way.")
    net.offer(bo, ana)
    net.run(0.5)
    assert ana.node.state == "stopping"
    assert not net.links


def _pair(net: Told, quiet: Config) -> tuple[Any, Any]:
    """Ana with weights of 1 and Bo with weights of 2, connected; then the transcript begins."""
    ana = net.add(config=quiet, weight=1.0)
    bo = net.add(config=quiet, weight=2.0)
    net.run(2.0)
    net.begin()
    return ana, bo


STORIES: tuple[Callable[[Told, Config], None], ...] = (
    join,
    exchange,
    lost_reply,
    lost_for_good,
    crossed,
    refusal,
    malformed,
    leave,
)


@pytest.fixture
def quiet() -> Config:
    """Rounds and walks so seldom that a story causes each exchange itself, and nobody talks of other things."""
    config = Config()
    return replace(
        config,
        learning=replace(config.learning, round_interval_s=1e9, save_interval_s=0.0),
        membership=replace(config.membership, walk_interval_s=1e9),
    )


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_story_goes_as_written(
    story: Callable[[Told, Config], None], quiet: Config, request: pytest.FixtureRequest
) -> None:
    net = Told()
    story(net, quiet)
    head = [f"# {line}".rstrip() for line in textwrap.dedent(f"    {story.__doc__}").strip().splitlines()]
    text = "\n".join([*head, *([""] * bool(net.lines[0])), *net.lines]) + "\n"
    file = HERE / f"{story.__name__}.txt"
    if request.config.getoption("--rewrite"):
        file.write_text(text)
    # Lines, so that pytest shows the first that differs. After a change you can explain: --rewrite.
    assert text.splitlines() == file.read_text().splitlines()


def test_every_transcript_has_a_story() -> None:
    assert sorted(file.stem for file in HERE.glob("*.txt")) == sorted(story.__name__ for story in STORIES)
