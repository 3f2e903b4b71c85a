"""The faults that are planted: one line each, of the kind that a tired person writes."""

from typing import NamedTuple


class Planted(NamedTuple):
    name: str
    path: str
    old: str  # occurs once in the file
    new: str
    why_not: str = ""  # where it is known why no run can show it


EXCHANGE = "gossip/run/exchange.py"
FAULTS = (
    Planted(
        "the signature of an offer is not checked",
        EXCHANGE,
        "        self._check_signature(key, Purpose.OFFER, message.header, message.signature)\n",
        "",
    ),
    Planted(
        "the signature of a reply is not checked",
        EXCHANGE,
        "        self._check_signature(key, Purpose.REPLY, message.header, message.signature)\n",
        "",
    ),
    Planted(
        "an equal sequence number is accepted",
        EXCHANGE,
        "header.seq <= self._marks.get(header.author, 0)",
        "header.seq < self._marks.get(header.author, 0)",
    ),
    Planted(
        "an offer for somebody else is accepted", EXCHANGE, "if to != self._identity.public_key:", "if False:"
    ),
    Planted(
        "another run is not noticed",
        EXCHANGE,
        "        holding = self._holdings.get(header.run)\n",
        "        holding = next(iter(self._holdings.values()))\n",
    ),
    Planted(
        "+c on both sides",
        "gossip/learning/strategies/shard_pair.py",
        "State(state.x - WEIGHT * c)",
        "State(state.x + WEIGHT * c)",
    ),
    Planted(
        "the weight of one side is another",
        "gossip/learning/strategies/shard_pair.py",
        "State(state.x - WEIGHT * c)",
        "State(state.x - np.float32(0.49) * c)",
    ),
    Planted(
        "numbers are not persisted before they are signed",
        "gossip/sequence.py",
        "            out.persist([persisted.ceiling_entry(self._ceiling)], fsync=True)\n",
        "",
    ),
    Planted(
        "numbers are persisted without fsync",
        "gossip/sequence.py",
        "[persisted.ceiling_entry(self._ceiling)], fsync=True)",
        "[persisted.ceiling_entry(self._ceiling)])",
    ),
    Planted(
        "the mark of an author is not persisted before its offer is applied",
        EXCHANGE,
        "        out.persist([persisted.mark_entry(header.author, header.seq)])\n",
        "",
    ),
    Planted(
        "the mark of an author is not kept",
        EXCHANGE,
        "        self._mark(header.author, header.seq, out)\n",
        "",
    ),
    Planted(
        "a change beyond the declared limit is applied",
        "gossip/learning/meeting.py",
        "        taken = c_norm <= limit\n",
        "        taken = True\n",
    ),
    Planted(
        "a reply is taken also while its exchange is being finished",
        EXCHANGE,
        'message.payload, outgoing.clip), out)\n            outgoing.state = "finishing"\n',
        "message.payload, outgoing.clip), out)\n",
    ),
    Planted("one fault of a peer is enough to ban it", "gossip/node.py", "FAULTS_MAX = 10", "FAULTS_MAX = 1"),
    Planted(
        "nobody looks back for those who are gone",
        "gossip/net/bootstrap.py",
        "            out.timer(LookBackDue(), max(now, self._looked_back_at + LOOK_BACK_S))\n",
        "",
    ),
    Planted(
        "who is alone tries its addresses once",
        "gossip/net/bootstrap.py",
        "        out.timer(BootstrapDue(), again)\n",
        "",
    ),
    Planted(
        "a node looks for others once",
        "gossip/dht/service.py",
        "        out.timer(WalkDue(), now + self._walk_s * self.context.rng.uniform(0.8, 1.2))\n",
        "",
    ),
    Planted(
        "a record is published once",
        "gossip/dht/service.py",
        "        return bool(addresses.all) and now >= date\n",
        "        return bool(addresses.all) and place not in self._published\n",
    ),
    Planted(
        "offers that are over are remembered for ever",
        EXCHANGE,
        "        if len(self._closed) > CLOSED_MAX:\n",
        "        if False:\n",
    ),
    Planted(
        "any number of offers is worked on",
        EXCHANGE,
        "if len(self._incoming) >= INCOMING_MAX:",
        "if False:",
    ),
    Planted(
        "scales that are not finite are decoded",
        "gossip/learning/codec.py",
        "    if not np.isfinite(scales).all():\n",
        "    if False:\n",
        "the gate behind it refuses weights that are not finite, so that nothing else happens",
    ),
    Planted(
        "a payload is not compared with its hash",
        EXCHANGE,
        "        if hashlib.sha256(payload).digest() != digest:\n",
        "        if False:\n",
    ),
    Planted(
        "one subnet may fill a bucket",
        "gossip/dht/routing.py",
        "            if sum(subnet in other.subnets for other in bucket.entries.values()) >= SUBNET_PER_BUCKET_MAX:\n",
        "            if False:\n",
    ),
)
