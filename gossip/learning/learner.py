"""The only owner of a node's weights: carries out the node core's jobs, answers with bytes, norms and losses.

The node core decides and never sees an array; the learner computes and never sees a peer. A job on a payload
either succeeds or is refused with a reason and changes nothing. Training is split in three, so that one
compiled function can run many learners at once: `train_input` captures, `trainer.Trainer.run` computes (JAX,
elsewhere), `trained` adds the *change* to the weights as they are by then, so exchanges in between are kept.
numpy only.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import LocalError, Reason, RemoteError
from gossip.events import (
    Adopt,
    Adopted,
    Finish,
    Finished,
    Job,
    JobRefused,
    JobResult,
    Offer,
    Offered,
    Rescued,
    Respond,
    Responded,
    Train,
    Trained,
)
from gossip.learning import pair
from gossip.learning.codec import Coded, FloatArray, all_finite, pack, unpack, value
from gossip.learning.gate import Gate
from gossip.learning.shards import shard_slices
from gossip.learning.task import Batch, RunInfo, vector_hash

# Leaves of the optimiser's state; the trainer knows the tree they make.
OptimiserState: TypeAlias = tuple[npt.NDArray[Any], ...]

_INFINITY = float("inf")
_SNAPSHOT_MAGIC = b"p2pnode/weights/v1\0"
_LENGTH_BYTES = 8
_HASH_BYTES = 32


class SnapshotError(Exception):
    """Bytes given to `Learner.load` are damaged, or belong to another model. The message is for people."""


class TrainInput(Struct, frozen=True):
    """Everything that one training job depends on; captured when the job is submitted."""

    params: FloatArray  # (values,), a copy
    optimiser: OptimiserState | None  # None: not yet begun
    batches: dict[str, npt.NDArray[Any]]  # each (steps, rows, ...)
    node: int  # 32 bits; with `step` it makes the JAX key, so that call order does not matter
    step: int  # steps taken before this job
    steps: int


class TrainOutput(Struct, frozen=True):
    """The result of one training job."""

    change: FloatArray  # (values,): weights after minus weights before
    optimiser: OptimiserState
    loss: float  # mean over the steps; may be not finite
    steps: int


class Learner:
    """Weights, read-out, optimiser state and gates of one node.

    Args:
        run: The manifest; names the genesis by hash.
        genesis: Shared initial vector, float32, shape (values,); kept by reference (A of every exchange).
        exchange: Factors of the gate.
        learning: Decay of the read-out.
        node: Number of this node, 32 bits, for its JAX keys.
        batches: `seed -> endless iterator of training batches` (`task.batches("train", seed)`); opened at
            the first training job, and anew after `load`. None: this learner does not train.
        seed: Of the order of the training rows; the step at which they are opened is added.
        optimiser: Whose state it is that training leaves behind (`Trainer.optimiser`).

    Raises:
        LocalError: the genesis is not that of the run.
    """

    def __init__(
        self,
        run: RunInfo,
        genesis: FloatArray,
        *,
        exchange: ExchangeConfig,
        learning: LearningConfig,
        node: int = 0,
        batches: Callable[[int], Iterator[Batch]] | None = None,
        seed: int = 0,
        optimiser: bytes = b"",
    ) -> None:
        values = sum(run.shard_sizes)
        if genesis.dtype != np.float32 or genesis.shape != (values,):
            raise LocalError(
                f"expected a genesis of {values} float32, got {genesis.dtype} of shape {genesis.shape}"
            )
        if vector_hash(genesis) != run.reference:
            raise LocalError("the genesis does not hash to the reference of the run")
        self.run_info = run
        self.steps = 0  # optimiser steps taken, over all lives of this node
        self._genesis = genesis
        self._x: FloatArray = genesis.copy()
        self._readout: FloatArray = genesis.copy()
        self._decay = learning.readout_decay
        self._optimiser: OptimiserState | None = None
        self._optimiser_id = optimiser
        self._node = node
        self._open_batches = batches
        self._batches: Iterator[Batch] | None = None
        self._seed = seed
        slices = shard_slices(run.shard_sizes)
        # Views: writing to one writes to the whole.
        self._shards = [self._x[part] for part in slices]
        self._readout_shards = [self._readout[part] for part in slices]
        # Rounds so far, and those that each shard's read-out has taken in.
        self._rounds = 0
        self._taken_in = [0] * len(slices)
        self._references = [genesis[part] for part in slices]
        self._gates = [Gate(exchange, size) for size in run.shard_sizes]
        # Where numpy keeps silent on overflow: huge finite values may have infinite norms, which the gate refuses.
        # A context that is there costs a tenth of np.errstate, which makes one for every job.
        self._quiet = Context()
        self._quiet.run(np.seterr, over="ignore")

    # --- exchanges -----------------------------------------------------------------------------------

    def run(self, job: Job) -> JobResult:
        """Carry out a job other than training and saving.

        `Train(steps=0)` is a round without training: the read-out takes in the weights as they are.

        Returns:
            The job's result, or JobRefused, and then nothing was changed.

        Raises:
            LocalError: a job that is not ours to do, a shard that is not in the plan, an unknown codec in an
                Offer.
        """
        if isinstance(job, Train):
            if job.steps != 0:
                raise LocalError("training jobs go through train_input, Trainer.run and trained")
            self._rounds += 1
            return Trained(steps=0, loss=float("nan"))
        if not isinstance(job, Offer | Respond | Finish | Adopt):
            raise LocalError(f"a learner does not do {type(job).__name__}")
        if not 0 <= job.shard < len(self._shards):
            raise LocalError(f"expected a shard below {len(self._shards)}, got {job.shard}")
        return self._quiet.run(self._exchange, job)

    def _exchange(self, job: Offer | Respond | Finish | Adopt) -> JobResult:
        if isinstance(job, Offer):
            return self._offer(job)
        try:
            coded = unpack(job.codec, job.payload, self._shards[job.shard].size)
        except RemoteError as error:
            return JobRefused(error.reason, error.detail)
        if isinstance(job, Respond):
            return self._respond(job, coded)
        if isinstance(job, Finish):
            return self._finish(job, coded)
        return self._adopt(job, coded)

    def _offer(self, job: Offer) -> Offered:
        x, reference = self._shards[job.shard], self._references[job.shard]
        coded = pair.offer(np, x, reference, codec=job.codec)
        # Of the decoded delta: within rounding of our own distance, and already at hand.
        clip = self._gates[job.shard].clip_limit(pair.norm(np, value(coded)))
        return Offered(payload=pack(coded), clip=clip)

    def _respond(self, job: Respond, offered: Coded) -> Responded | Rescued | JobRefused:
        if not job.clip >= 0:  # NaN too
            return JobRefused(Reason.MALFORMED, "the declared clip limit is not a number from zero up")
        x, gate = self._shards[job.shard], self._gates[job.shard]
        seen = pair.compare(np, x, self._references[job.shard], offered)
        refusal = gate.state(seen.own, seen.offered)
        if refusal is not None:
            return refusal
        too_far = gate.distance(seen.own, seen.distance)
        # In a rescue not our own limit: who agrees closely with others allows so little that this one would stay away.
        limit = min(job.clip, gate.clip_limit(seen.own)) if too_far is None else job.clip
        c = pair.change(np, seen.difference, codec=job.codec, limit=limit)
        if too_far is not None:
            return Rescued(payload=pack(c.coded), distance=seen.distance, norm=c.norm, detail=too_far.detail)
        self._take_in(job.shard)
        x[:] = pair.towards(x, c.vector)
        gate.accepted(c.norm)
        return Responded(payload=pack(c.coded), distance=seen.distance, norm=c.norm)

    def _finish(self, job: Finish, coded: Coded) -> Finished | JobRefused:
        x, gate = self._shards[job.shard], self._gates[job.shard]
        c = value(coded)
        size = pair.norm(np, c)
        # Our own distance costs a pass, and only matters while there is no limit.
        own = pair.norm(np, x - self._references[job.shard]) if job.clip == _INFINITY else 0.0
        refusal = gate.change(own, size, job.clip)
        if refusal is not None:
            return refusal
        self._take_in(job.shard)
        x[:] = pair.away(x, c)
        gate.accepted(size)
        return Finished(norm=size)

    def _adopt(self, job: Adopt, coded: Coded) -> Adopted | JobRefused:
        x, reference = self._shards[job.shard], self._references[job.shard]
        seen = pair.compare(np, x, reference, coded)
        refusal = self._gates[job.shard].state(seen.own, seen.offered)
        if refusal is not None:
            return refusal
        x[:] = pair.adopt(reference, coded)
        # What we read out until now belongs to a model that we have left.
        self._readout_shards[job.shard][:] = x
        self._taken_in[job.shard] = self._rounds
        return Adopted(distance=seen.distance)

    # --- training ------------------------------------------------------------------------------------

    def train_input(self, steps: int) -> TrainInput:
        """Capture what a training job of `steps` >= 1 steps needs; takes that many batches.

        Raises:
            LocalError: this learner has no batches, or they ended.
        """
        if steps < 1:
            raise LocalError(f"expected at least one training step, got {steps}")
        if self._batches is None:
            if self._open_batches is None:
                raise LocalError("this learner was made without training batches")
            self._batches = iter(self._open_batches(self._seed + self.steps))
        taken = [next(self._batches, None) for _ in range(steps)]
        first = taken[0]
        if first is None or taken[-1] is None:
            raise LocalError('the task\'s batches("train", seed) ended; they must go on for ever')
        return TrainInput(
            params=self._x.copy(),
            optimiser=self._optimiser,
            # np.array copies, as np.stack does, at a third of its cost for one small batch; of one array still faster.
            batches={name: np.array(rows)[None] for name, rows in first.items()}
            if steps == 1
            else {name: np.array([batch[name] for batch in taken if batch is not None]) for name in first},
            node=self._node,
            step=self.steps,
            steps=steps,
        )

    def trained(self, output: TrainOutput) -> Trained:
        """Add the change of a training job to the weights as they are now; the read-out takes them in before.

        A change that is not finite is dropped, with the optimiser's state, and the result says so: the loss may be
        finite all the same. The next job starts from sound weights.
        """
        # Before the change: x as the last exchanges left it is nearer to the swarm's mean than what our own
        # data makes of it now. Digits, 5 nodes, Dirichlet 0.3: worst read-out 96.9 %; 93.6 % when taken
        # after.
        self._rounds += 1
        self._take_in_all()
        sound = all_finite(output.change)
        if sound:
            self._x += output.change
        self._optimiser = output.optimiser if sound else None
        self.steps += output.steps
        return Trained(steps=output.steps, loss=output.loss, dropped=not sound)

    def _take_in(self, shard: int) -> None:
        """Bring the read-out of a shard up to this round; has to come before its weights change.

        A round without training costs nothing by this until somebody looks: the model may be large, and one
        exchange touches one shard of it.
        """
        rounds = self._rounds - self._taken_in[shard]
        if rounds:
            self._taken_in[shard] = self._rounds
            x, readout = self._shards[shard], self._readout_shards[shard]
            # y <- decay y + (1 - decay) x, as often as there were rounds, in one: x has been the same in all of
            # them. Written as y <- x + decay (y - x), which is exact where y = x.
            readout -= x
            readout *= np.float32(self._decay**rounds)
            readout += x

    def _take_in_all(self) -> None:
        for shard in range(len(self._shards)):
            self._take_in(shard)

    # --- views and snapshots -------------------------------------------------------------------------

    def weights(self) -> FloatArray:
        """Return x, shape (values,), float32: a read-only view that changes with the next job."""
        view = self._x.view()
        view.flags.writeable = False
        return view

    def readout(self) -> FloatArray:
        """Return y, the running mean of x for evaluation and serving: a view, up to date until the next job."""
        self._take_in_all()
        view = self._readout.view()
        view.flags.writeable = False
        return view

    def dump(self) -> bytes:
        """Return everything that a restart needs, for `load`: versioned, with a SHA-256 at the end."""
        self._take_in_all()
        arrays = [self._x, self._readout, *(self._optimiser or ())]
        header = _Header(
            schema=self.run_info.schema,
            run=self.run_info.id,
            steps=self.steps,
            begun=self._optimiser is not None,
            gates=[(gate.count, gate.usual) for gate in self._gates],
            arrays=[(array.dtype.newbyteorder("<").str, array.shape) for array in arrays],
            optimiser=self._optimiser_id,
        )
        head = msgspec.msgpack.encode(header)
        parts = [_SNAPSHOT_MAGIC, len(head).to_bytes(_LENGTH_BYTES, "little"), head]
        parts += [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return b"".join([*parts, digest.digest()])

    def load(self, data: bytes) -> bool:
        """Take over what `dump` returned, perhaps in another process.

        Training batches are opened anew, in another order than the first time.

        Returns:
            False where the optimiser's state was left behind, because it is of another optimiser or of a version that
            did not say of which; training begins with a fresh one. Weights are taken over all the same.

        Raises:
            SnapshotError: damaged or cut bytes, or another model or run; nothing was changed.
        """
        header, arrays = _read_snapshot(data)
        if header.schema != self.run_info.schema:
            raise SnapshotError(
                f"the snapshot holds a model of schema {header.schema.hex()[:12]}, expected"
                f" {self.run_info.schema.hex()[:12]}; was it made by another task?"
            )
        if header.run != self.run_info.id:
            raise SnapshotError(
                f"the snapshot belongs to run {header.run.hex()[:12]}, expected {self.run_info.id.hex()[:12]}:"
                " network, task version, genesis seed or shard size differ"
            )
        if len(arrays) < 2 or any(a.shape != self._x.shape or a.dtype != np.float32 for a in arrays[:2]):
            raise SnapshotError("the snapshot's weights do not have the shape of this model")
        if len(header.gates) != len(self._gates):
            raise SnapshotError(f"the snapshot has {len(header.gates)} shards, expected {len(self._gates)}")
        self._x[:] = arrays[0]
        self._readout[:] = arrays[1]
        ours = header.optimiser == self._optimiser_id
        self._optimiser = tuple(arrays[2:]) if header.begun and ours else None
        self.steps = header.steps
        for gate, (count, usual) in zip(self._gates, header.gates, strict=True):
            gate.count, gate.usual = count, usual
        self._taken_in = [self._rounds] * len(self._gates)
        self._batches = None
        return ours or len(arrays) == 2  # a state without arrays is no loss


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    schema: bytes
    run: bytes
    steps: int
    begun: bool  # the optimiser has a state
    gates: list[tuple[int, float]]  # accepted changes and their usual norm, per shard
    arrays: list[
        tuple[str, tuple[int, ...]]
    ]  # dtype and shape: weights, read-out, leaves of the optimiser's state
    optimiser: bytes = b""  # whose state it is; 0.1 did not say


def _read_snapshot(data: bytes) -> tuple[_Header, list[npt.NDArray[Any]]]:
    """Return header and arrays, which are copies."""
    start = len(_SNAPSHOT_MAGIC) + _LENGTH_BYTES
    if data[: len(_SNAPSHOT_MAGIC)] != _SNAPSHOT_MAGIC:
        raise SnapshotError("this is not a snapshot of weights, or one of another version")
    # Everything below is our own writing once the hash is right.
    if hashlib.sha256(memoryview(data)[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        raise SnapshotError(f"the snapshot ({len(data)} bytes) is damaged or cut: its SHA-256 does not match")
    length = int.from_bytes(data[len(_SNAPSHOT_MAGIC) : start], "little")
    try:
        header = msgspec.msgpack.decode(data[start : start + length], type=_Header)
        arrays = []
        offset = start + length
        for kind, shape in header.arrays:
            dtype = np.dtype(kind)
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(
                np.frombuffer(data, dtype, count, offset).reshape(shape).astype(dtype.newbyteorder("="))
            )
            offset += count * dtype.itemsize
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise SnapshotError(f"the snapshot cannot be read: {error}") from error
    if offset != len(data) - _HASH_BYTES:
        raise SnapshotError("the snapshot is longer or shorter than its header says")
    return header, arrays
