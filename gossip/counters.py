"""What a node counts for people. Fed by its own news, so that both tell the same."""

from gossip.dht.ids import NodeId
from gossip.events import Effect, Emit, Exchanged, Learned, Refused
from gossip.links import Links


class Counters:
    """Since the start; `exchanged_with` since the connection began."""

    def __init__(self) -> None:
        self.exchanged = 0  # applied, in any role; not those that we only refused and answered
        self.initiated = 0  # of these, initiated here
        self.exchanged_with: dict[NodeId, int] = {}
        self.refused: dict[str, int] = {}  # by us, per reason
        self.refused_by_peers: dict[str, int] = {}
        self.lost_frames = 0
        self.changes_dropped = 0  # of local training, because they were not finite

    def hear(self, out: list[Effect], links: Links) -> None:
        """Counts what is news among effects."""
        for effect in out:
            if type(effect) is not Emit:
                continue
            news = effect.news
            if type(news) is Exchanged:
                if news.role == "rescuer":
                    continue
                self.exchanged += 1
                if news.peer in links:
                    self.exchanged_with[news.peer] = self.exchanged_with.get(news.peer, 0) + 1
            elif type(news) is Learned:
                self.changes_dropped += news.dropped
            elif type(news) is Refused:
                counters = self.refused if news.by_us else self.refused_by_peers
                counters[news.reason] = counters.get(news.reason, 0) + 1
