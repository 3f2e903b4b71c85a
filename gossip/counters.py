"""What a node counts for people. Fed by its own news, so that both tell the same."""

from gossip.dht.ids import NodeId
from gossip.events import Effect, Emit, Exchanged, Refused
from gossip.net.connections import Connections


class Counters:
    """Since the start; `exchanged_with` since the connection began."""

    def __init__(self) -> None:
        self.exchanged = 0  # applied, in any role; not those that we only refused and answered
        self.exchanged_with: dict[NodeId, int] = {}
        self.refused: dict[str, int] = {}  # by us, per reason
        self.refused_by_peers: dict[str, int] = {}

    def hear(self, out: list[Effect], connections: Connections) -> None:
        """Counts what is news among effects."""
        for effect in out:
            if type(effect) is not Emit:
                continue
            news = effect.news
            if type(news) is Exchanged:
                if news.role == "rescuer":
                    continue
                self.exchanged += 1
                if news.peer in connections:
                    self.exchanged_with[news.peer] = self.exchanged_with.get(news.peer, 0) + 1
            elif type(news) is Refused:
                counters = self.refused if news.by_us else self.refused_by_peers
                counters[news.reason] = counters.get(news.reason, 0) + 1
