"""One poisonous request among innocents: it alone fails, whatever the order of events."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from router.dispatch.failover import SuspectPolicy

POISON = 0


@dataclass
class Running:
    """One request of the simulated router: tokens so far, and those it had when it last started."""

    length: int
    tokens: int = 0
    tokens_at_start: int = 0
    running: bool = False


class Simulation:
    """A worker that runs everything it is given, one token a request and step, and dies of the poison."""

    def __init__(self, lengths: list[int], arrivals: list[int], kills_at: int, lost_tokens: int) -> None:
        self.policy = SuspectPolicy[int]()
        self.requests = {key: Running(length) for key, length in enumerate(lengths)}
        self.arrivals = arrivals
        self.kills_at = kills_at
        self.lost_tokens = lost_tokens  # how far the router's view lags at a death
        self.finished: set[int] = set()
        self.failed: set[int] = set()
        self.num_deaths = 0

    def run(self) -> None:
        step = 0
        while self.requests:
            assert step < 20_000, "somebody waits for ever"
            self.start_what_may(step)
            self.step()
            step += 1

    def start_what_may(self, step: int) -> None:
        for key, request in self.requests.items():
            if not request.running and self.arrivals[key] <= step and self.policy.ask_turn(key):
                self.start(request)
        while (turn := self.policy.take_turn()) is not None:
            self.start(self.requests[turn])

    def start(self, request: Running) -> None:
        request.running = True
        request.tokens_at_start = request.tokens

    def step(self) -> None:
        poison = self.requests.get(POISON)
        if poison is not None and poison.running and poison.tokens + 1 >= self.kills_at:
            self.die()
            return
        for key, request in list(self.requests.items()):
            if not request.running:
                continue
            request.tokens += 1
            self.policy.progressed(key, request.tokens - request.tokens_at_start)
            if request.tokens >= request.length:
                self.end(key, self.finished)

    def die(self) -> None:
        self.num_deaths += 1
        present = [key for key, request in self.requests.items() if request.running]
        for key in self.policy.died(present):
            self.end(key, self.failed)
        for key in present:
            if key in self.requests:
                request = self.requests[key]
                request.running = False
                request.tokens = max(request.tokens_at_start, request.tokens - self.lost_tokens)

    def end(self, key: int, into: set[int]) -> None:
        into.add(key)
        del self.requests[key]
        self.policy.forget(key)


@settings(max_examples=200)
@given(
    innocents=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), max_size=12),
    poison_arrives=st.integers(0, 60),
    kills_at=st.integers(1, 50),
    lost_tokens=st.integers(0, 7),
)
def test_the_poisonous_request_fails_alone(
    innocents: list[tuple[int, int]], poison_arrives: int, kills_at: int, lost_tokens: int
) -> None:
    lengths = [1000, *(length for length, _ in innocents)]
    arrivals = [poison_arrives, *(arrival for _, arrival in innocents)]
    simulation = Simulation(lengths, arrivals, kills_at, lost_tokens)
    simulation.run()
    assert simulation.failed == {POISON}
    assert simulation.finished == set(range(1, len(lengths)))
    assert 2 <= simulation.num_deaths <= 3
