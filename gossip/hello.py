"""How we introduce ourselves to a peer: one message, made once for all who are told the same addresses."""

from gossip import wire
from gossip.dht.directory import Directory
from gossip.events import Effect
from gossip.learning.task import RunInfo

# Hellos kept. Two are in use, for peers on this machine and elsewhere; others tell addresses that have changed since.
HELLOS_MAX = 4


class Hellos:
    """The hello of one node in one run."""

    def __init__(self, run: RunInfo, directory: Directory) -> None:
        self._run = run
        self._directory = directory
        self._made: dict[tuple[str, ...], bytes] = {}  # by the addresses that they tell

    def frame(self, *, nearby: bool, out: list[Effect]) -> bytes:
        """The hello for a peer; `nearby`: on this machine. Made anew only when there are other addresses to tell, for
        the record in it costs a number."""
        told = self._directory.told(nearby=nearby)
        if told not in self._made:
            if len(self._made) >= HELLOS_MAX:
                self._made.clear()
            self._made[told] = wire.encode(self._hello(told, out))
        return self._made[told]

    def _hello(self, told: tuple[str, ...], out: list[Effect]) -> wire.Hello:
        return wire.Hello(
            agent="p2pnode/1",
            record=self._directory.peer_record(told, out),
            run=self._run.id,
            schema=self._run.schema,
            shards=list(range(len(self._run.shard_sizes)))[:1024],
            task=self._run.task[:200],
            version=wire.PROTOCOL_VERSION,
        )
