"""One run as one node takes part in it: train on local data, exchange one shard with a random holder, again.

A newcomer first tries to adopt what others have. A session owns the rounds, the joining, what the node holds of the
run, and the pool of other holders; the exchanges of all sessions are one machine (`exchange`), and arithmetic is the
learner's.
"""

from math import inf, nan

from gossip import persisted
from gossip.dht.ids import Key, NodeId, provider_key
from gossip.dht.routing import Contact
from gossip.errors import Reason
from gossip.events import JobResult, Learned, Save, Saved, Train, Trained
from gossip.learning.task import RunInfo
from gossip.net.sampling import Membership
from gossip.outbox import Outbox, Timer
from gossip.protocol import Context, Provide, Working
from gossip.run.exchange import Exchanges
from gossip.run.holding import Ended, Holding, Lasting
from gossip.snapshot import RunView

# Partners tried in one round while they answer "busy" or are late.
TRIES = 3
# Holders drawn until one is neither resting nor late already: with one in four of these, a round in 256 has no partner.
DRAWS = 4
# Several newcomers who found only newcomers may begin: nobody older is there (see `_newcomer_ended`).
NEWCOMERS_ASKED = 5
# A partner is forgotten after so many failed dials in a row; a later lookup may find it again.
FORGET_FAILURES = 2
# A peer that says falsely that a number of ours was used makes us leave out numbers, but not more often than this.
SKIP_S = 60.0
# Training jobs in a row without a finite change that are called diverged: one may be a bad batch. A guess.
DIVERGED = 3
# The membership key changes so often (docs/security.md, T19); only matters above `pool_max` nodes.
ROTATE_S = 600.0


class RunTimer(Timer, frozen=True):
    """Base of the timers of one session."""

    run: bytes


class RoundDue(RunTimer, frozen=True):
    pass


class PartnerLate(RunTimer, frozen=True):
    pass


class PatienceOver(RunTimer, frozen=True):
    """A newcomer has waited long enough for a model to adopt."""


class SaveDue(RunTimer, frozen=True):
    pass


class RotateDue(RunTimer, frozen=True):
    pass


class Session:
    """Args:
    info: The run.
    exchanges: Of the node.
    has_model: Whether the learner restored a snapshot of the weights; without one the node is a newcomer.
    now: Seconds.
    """

    def __init__(
        self, context: Context, info: RunInfo, exchanges: Exchanges, *, has_model: bool, now: float
    ) -> None:
        self.info = info
        self._context = context
        self._config = context.config
        self._exchanges = exchanges
        ages = persisted.ages(context.store, info, has_model)
        self.holding = Holding(info, ages)
        exchanges.hold(self.holding)
        self.pool = Membership(
            context.own, pool_max=context.config.membership.pool_max, key=context.entropy(16)
        )
        self._places = {provider_key(info.id, shard): shard for shard in range(len(ages))}
        # Shards in the order of their last exchange, the longest ago first.
        self._turn = list(range(len(ages)))
        # Set in every round, so that they are made once.
        self._round_due, self._partner_late = RoundDue(info.id), PartnerLate(info.id)
        self._leaving = False
        self._joined = all(age > 0 for age in ages)
        self._begun = False  # what we do has been said
        self._newcomers: dict[NodeId, None] = {}
        self._round = persisted.rounds(context.store, info) if has_model else 0
        self._round_at = now
        # Number of the exchange that this round waits for. Older ones may still be open: not ours to wait for.
        self._awaited: int | None = None
        self._tries = 0
        self._train_ticket = 0
        self._save_ticket = 0
        self._skipped_at = -inf
        self._loss = nan
        self._dropped = 0  # training jobs in a row whose change was not finite
        self._changes_dropped = 0
        self._initiated = 0

    def start(self, now: float, out: Outbox) -> None:
        rng, learning = self._context.rng, self._config.learning
        for place in self._places:
            out.fact(Provide(place))
        out.fact(Working(self.info.id, self._doing, False))
        out.timer(RotateDue(self.info.id), now + ROTATE_S * rng.uniform(0.8, 1.2))
        if learning.save_interval_s > 0:
            out.timer(SaveDue(self.info.id), now + learning.save_interval_s * rng.uniform(0.8, 1.2))
        out.timer(self._round_due, now + learning.round_interval_s * rng.random())
        if not self._joined:
            out.timer(PatienceOver(self.info.id), now + self._config.exchange.join_patience_s)

    # --- holders ------------------------------------------------------------------------------------

    def found(self, place: Key, contact: Contact) -> None:
        """A lookup says that `contact` is at `place`."""
        shard = self._places.get(place)
        if shard is not None:
            # What is known is better: this record is not verified yet.
            self.pool.observe(self.pool.contact(contact.node) or contact, shard)

    def held(self, contact: Contact, shards: list[int]) -> None:
        """The peer itself says what it holds."""
        for shard in shards:
            if shard < len(self.holding.ages):
                self.pool.observe(contact, shard)

    # --- rounds -------------------------------------------------------------------------------------

    def due(self, timer: RunTimer, now: float, out: Outbox) -> None:
        match timer:
            case RoundDue():
                self._begin_round(now, out)
            case PartnerLate():
                # While our offer is leaving, the partner is not late; our link is slow.
                if not self._exchanges.leaving(self._awaited):
                    self._next_exchange(now, out)
            case PatienceOver():
                self._begin_alone(out)
            case SaveDue():
                self._save(now, out)
            case RotateDue():
                self.pool.rotate(self._context.entropy(16))
                out.timer(RotateDue(self.info.id), now + ROTATE_S)

    @property
    def _training(self) -> bool:
        limit = self._config.learning.rounds_max
        return self._joined and (limit == 0 or self._round < limit)

    @property
    def _doing(self) -> str:
        if not self._joined:
            return "joining"
        if not self._training:
            return "exchanging"
        return "diverged" if self._dropped >= DIVERGED else "training"

    def _begin_round(self, now: float, out: Outbox) -> None:
        if self._leaving:
            return
        self._round_at = now
        self._awaited = None
        self._tries = TRIES
        self.holding.new_round(alone=len(self.pool) <= 1)
        if self._joined:
            # Without steps the job only refreshes the averaged read-out.
            steps = self._config.learning.local_steps if self._training else 0
            self._train_ticket = out.compute(Train(steps), self.info.id)
        else:
            self._begin_exchange(now, out)

    def _begin_exchange(self, now: float, out: Outbox) -> None:
        """Offer the shard whose last exchange is longest ago to a random holder of it."""
        self._tries -= 1
        for shard in self._turn:
            if self._exchanges.full(self.holding, shard) or (
                not self._joined and self.holding.ages[shard] > 0
            ):
                continue
            partner = self._draw(shard, now)
            if partner is None:
                continue
            self._awaited = self._exchanges.initiate(self.holding, shard, partner, now, out)
            self._wait(partner.node, now, out)
            return
        self._end_round(now, out)

    def _wait(self, partner: NodeId, now: float, out: Outbox) -> None:
        """From now on, until the partner of this round is late."""
        late_s = self._exchanges.patience.late_s(partner)
        if late_s > 0:
            out.timer(self._partner_late, now + late_s)

    def left(self, number: int, partner: NodeId, now: float, out: Outbox) -> None:
        """An offer has left, so that its partner can begin to answer."""
        if number == self._awaited:
            self._wait(partner, now, out)

    def lasts(self, exchange: Lasting, partner: NodeId, now: float, out: Outbox) -> None:
        """Weights are on their way, to or from the partner of this exchange."""
        if not self._joined:
            out.timer(PatienceOver(self.info.id), now + self._config.exchange.join_patience_s)
        elif exchange.number != self._awaited:
            return
        elif now > exchange.begun + self._config.exchange.timeout_s:
            self._end_round(now, out)  # the exchange goes on, and so do we
        else:
            self._wait(partner, now, out)

    def _draw(self, shard: int, now: float) -> Contact | None:
        """A random holder of `shard` that can be offered to now."""
        connections = self._context.connections
        for _ in range(DRAWS):
            partner = self.pool.partner(shard, self._context.rng)
            if partner is None:
                return None
            node = partner.node
            if connections.resting(node, now) or self._exchanges.waiting_for(node, self.holding, shard):
                continue
            if node in connections or self._context.verified(partner):
                return partner
            self.pool.forget(node)
        return None

    def _next_exchange(self, now: float, out: Outbox) -> None:
        """The partner of this round is busy, or late: another one, as long as this round may try."""
        if self._tries > 0 and not self._leaving:
            self._begin_exchange(now, out)
        else:
            self._end_round(now, out)

    def overdue(self, number: int, now: float, out: Outbox) -> None:
        """No answer to an offer in time: learning does not stand still because a partner does."""
        if number == self._awaited:
            self._next_exchange(now, out)

    def ended(self, end: Ended, now: float, out: Outbox) -> None:
        if end.reason is None:
            self._turn.remove(end.shard)
            self._turn.append(end.shard)
            self._initiated += 1
        if end.reason is Reason.REPLAYED and now >= self._skipped_at + SKIP_S:
            # Our disk is older than what we signed: restored from a backup, perhaps. It must not happen again.
            self._skipped_at = now
            self._context.sequence.skip(out)
        if not self._joined:
            self._newcomer_ended(end, out)
        if end.number != self._awaited:
            return
        if end.reason is Reason.BUSY and not end.crossed:
            self._next_exchange(now, out)
        else:
            self._end_round(now, out)

    def _end_round(self, now: float, out: Outbox) -> None:
        self._awaited = None
        out.timer(self._partner_late, inf)
        interval = self._config.learning.round_interval_s * self._context.rng.uniform(0.9, 1.1)
        # max: a round that took longer than the interval is followed at once, without trying to catch up.
        out.timer(self._round_due, max(now, self._round_at + interval))

    # --- joining ------------------------------------------------------------------------------------

    def _newcomer_ended(self, end: Ended, out: Outbox) -> None:
        """A newcomer adopted, or learned that the one it asked is a newcomer too."""
        if end.reason is Reason.NOT_READY:
            self._newcomers[end.peer] = None
        if all(age > 0 for age in self.holding.ages):
            self._begin(out)
        elif self._newcomers and len(self._newcomers) >= min(NEWCOMERS_ASKED, len(self.pool)):
            self._begin_alone(out)

    def _begin_alone(self, out: Outbox) -> None:
        """Nobody has anything to adopt: begin from genesis, which is the same for all."""
        if self._joined:
            return
        for shard, age in enumerate(self.holding.ages):
            self.holding.ages[shard] = max(age, 1)
        self._begin(out)

    def _begin(self, out: Outbox) -> None:
        self._joined = True
        self._newcomers.clear()
        out.timer(PatienceOver(self.info.id), inf)
        out.fact(Working(self.info.id, self._doing, True))

    # --- results of jobs ----------------------------------------------------------------------------

    def done(self, ticket: int, result: JobResult, now: float, out: Outbox) -> bool:
        """A job ended; False if it was not one of ours."""
        if ticket == self._train_ticket:
            assert isinstance(result, Trained)
            self._train_ticket = 0
            if self._training:
                self._trained(result, out)
            if not self._leaving:
                self._begin_exchange(now, out)
        elif ticket == self._save_ticket:
            assert isinstance(result, Saved)
            self._save_ticket = 0
            out.persist(persisted.learned_entries(self.info, self.holding.ages, self._round))
        else:
            return False
        return True

    def exchanged(self, out: Outbox) -> None:
        """A job of an exchange ended: perhaps somebody's offer made us adopt before our own did."""
        if not self._joined and all(age > 0 for age in self.holding.ages):
            self._begin(out)

    def _trained(self, result: Trained, out: Outbox) -> None:
        was = self._doing
        self._round += 1
        self._loss = result.loss
        self._dropped = self._dropped + 1 if result.dropped else 0
        self._changes_dropped += result.dropped
        for shard in range(len(self.holding.ages)):
            self.holding.ages[shard] += result.steps
        out.emit(Learned(self._round, result.steps, result.loss, result.dropped))
        if self._doing != was:
            out.fact(Working(self.info.id, self._doing, True))

    def _save(self, now: float, out: Outbox) -> None:
        self._order_save(out)
        interval = self._config.learning.save_interval_s
        out.timer(SaveDue(self.info.id), now + interval * self._context.rng.uniform(0.8, 1.2))

    def _order_save(self, out: Outbox) -> None:
        if self._save_ticket == 0 and self._joined:
            self._save_ticket = out.compute(Save(), self.info.id)

    def leave(self, out: Outbox) -> None:
        self._leaving = True
        self._order_save(out)

    def snapshot(self) -> RunView:
        info = self.info
        return RunView(
            run=info.id,
            task=info.task,
            schema=info.schema,
            shards=len(info.shard_sizes),
            ages=list(self.holding.ages),
            round=self._round,
            loss=self._loss,
            changes_dropped=self._changes_dropped,
            initiated=self._initiated,
            pool=len(self.pool),
        )
