"""A request as the order of service sees it: what it is promised, how large it is, and how far it has come."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["Backlog", "Obstacle", "Precedence", "RequestClaim", "Urgency"]

Urgency = tuple[bool, int]
Precedence = tuple[bool, int, float, int]


class Obstacle(enum.Enum):
    """A reason for which a worker cannot begin a request now."""

    SLOTS = "slots"  # it runs as many sequences of this model as it can
    KV_CAP = "kv_cap"  # this model has all the KV that it may have
    SHARE = "share"  # what is free is left to other tenants
    PROMPT_TOKENS = "prompt_tokens"  # it has prompts to compute for its next steps
    DECODE_PACE = "decode_pace"  # a round of decodes with it would take too long for those that are paced
    KV = "kv"  # the KV that it needs is promised to others

    @property
    def is_own(self) -> bool:
        """Whether it stops those for one model, or of one tenant, and nobody else."""
        return self in (Obstacle.SLOTS, Obstacle.KV_CAP, Obstacle.SHARE)

    def stops(self, one: RequestClaim, other: RequestClaim) -> bool:
        """Whether it keeps another request from beginning too, if it keeps this one."""
        match self:
            case Obstacle.SLOTS | Obstacle.KV_CAP:
                return one.model == other.model
            case Obstacle.SHARE:
                return one.tenant == other.tenant
        return True


@dataclass(slots=True, eq=False)
class RequestClaim:
    """One request, from its arrival to its end. Times are of one clock, in seconds.

    Attributes:
        model: name of the deployment that it is for.
        arrival: order in which it came; no two are equal.
        at_s: when it came.
        deadline_s: when its first token is due; ``inf`` if nothing is promised.
        tpot_target_s: seconds that each further token may take, on average; ``inf`` if nothing is promised.
        priority: higher goes first.
        tenant: whose it is.
        weight: of the tenant.
        refuses_miss: it is refused if it is not expected to begin in time; else it waits behind all that are.
        num_prompt: tokens of its prompt.
        num_choices: sequences that it asks for.
        most_output: tokens at which each of them ends in any case.
        expected_s: seconds of the device that it is expected to take.
        due_s: when a worker has to have it at the latest; ``-inf`` if it is not expected to begin in time.
        predicted_s: seconds to its first token, as expected when it came.
        waits_for_room: others had to end before there was room for it.
        first_at_s: when it had its first token; None if it has none.
        num_computed: tokens whose KV is there, as far as is known.
        num_output: tokens that it has by now; of several choices, that of any.
    """

    model: str
    arrival: int
    at_s: float
    deadline_s: float
    tpot_target_s: float
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    refuses_miss: bool = False
    num_prompt: int = 1
    num_choices: int = 1
    most_output: float = math.inf
    expected_s: float = 0.0
    due_s: float = math.inf
    predicted_s: float = math.inf
    waits_for_room: bool = False
    first_at_s: float | None = None
    num_computed: int = 0
    num_output: int = 0

    def is_late(self, now_s: float) -> bool:
        """Whether its first token came after its deadline, or can only come after it."""
        return (now_s if self.first_at_s is None else self.first_at_s) > self.deadline_s

    def is_paced(self, now_s: float) -> bool:
        """Whether its further tokens are due in time: it has a target for them, and is not late."""
        return self.tpot_target_s < math.inf and not self.is_late(now_s)

    @property
    def num_to_compute(self) -> int:
        """Tokens of its prompt that are not computed yet; 0 once it decodes."""
        return 0 if self.first_at_s is not None else max(1, self.num_prompt - self.num_computed)

    def urgency(self, now_s: float) -> Urgency:
        """Sort key: those in time first, then by priority."""
        return self.is_late(now_s), -self.priority

    def precedence(self, now_s: float) -> Precedence:
        """Sort key of requests without a first token, in the order in which their prompts are computed: by urgency,
        then by deadline."""
        return *self.urgency(now_s), self.deadline_s, self.arrival


_MOST_OUTPUT = 2**40  # stands for no bound, so that sums of it can be taken apart again


@dataclass(slots=True)
class Backlog:
    """Requests for one model, in sum.

    Attributes:
        num_requests: how many they are.
        num_choices: sequences that they ask for.
        num_tokens: of their prompts, and of what they have given.
        num_to_compute: tokens of their prompts that are not computed yet.
        most_output: sum of the tokens at which their outputs end in any case.
        num_waiting_for_room: those for whom others have to end first.
    """

    num_requests: int = 0
    num_choices: int = 0
    num_tokens: int = 0
    num_to_compute: int = 0
    most_output: int = 0
    num_waiting_for_room: int = 0

    @classmethod
    def of(cls, claim: RequestClaim) -> Backlog:
        """The backlog that is this request alone."""
        return cls(
            1,
            claim.num_choices,
            claim.num_prompt + claim.num_output,
            claim.num_to_compute,
            int(min(claim.most_output, _MOST_OUTPUT)),
            int(claim.waits_for_room),
        )

    def add(self, other: Backlog, times: int = 1) -> None:
        """Takes in the requests of another, or takes them out again.

        Args:
            times: 1, or -1 to take them out.
        """
        self.num_requests += times * other.num_requests
        self.num_choices += times * other.num_choices
        self.num_tokens += times * other.num_tokens
        self.num_to_compute += times * other.num_to_compute
        self.most_output += times * other.most_output
        self.num_waiting_for_room += times * other.num_waiting_for_room
