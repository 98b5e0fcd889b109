"""For how long a request can be left alone and still meet its targets.

Least slack first is a scheduler of hard real-time systems (Mok, *Fundamental Design Problems of Distributed Systems*,
1983); here it says what a request loses while its model is away. Both functions give the latest moment at which a
request has to be computed again, on the clock of their arguments; slack is what is left until then.
"""

from __future__ import annotations

import math

__all__ = ["running_latest_s", "waiting_latest_s"]


def waiting_latest_s(deadline_s: float, first_token_s: float) -> float:
    """The latest moment for a request without a token.

    Args:
        deadline_s: when its first token is due.
        first_token_s: seconds that it takes to its first token once its model is there.
    """
    return deadline_s - first_token_s


def running_latest_s(
    *,
    first_at_s: float,
    deadline_s: float,
    num_tokens: int,
    expected_tokens: float,
    token_s: float,
    tpot_target_s: float,
) -> float:
    """The latest moment for a request that has its first token; ``-inf`` if that came late.

    Args:
        first_at_s: when its first token came.
        num_tokens: tokens so far.
        expected_tokens: tokens of an output as this one, on average.
        token_s: seconds that each further token takes now.
        tpot_target_s: seconds that each token after the first may take, on average.
    """
    if first_at_s > deadline_s:
        return -math.inf
    total = max(expected_tokens, num_tokens + 1.0)
    return first_at_s + tpot_target_s * (total - 1) - (total - num_tokens) * token_s
