"""Costs of a model's steps, as they were lately.

Least squares with forgetting: what a step tells fades over the next few hundred. The manager foretells by it how soon
a model answers, and a worker how much a step may take in. Cheap enough to be told of every step.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StepCosts", "StepModel"]

_FORGETTING = 1 - 1 / 300
_GUESS_WEIGHT = 0.02  # of the first guess beside a step that was measured
_INERTIA = 0.0001  # of what is known, beside a step that was measured
_MOST_TIMES_EXPECTED = 3.0
_FIRST_STEP_S = 0.02
# Of what a step costs in any case. Measured steps are compared in these units, each with its error for its size, so
# that a long prompt does not drown what the decodes tell.
_DECODE_PART = 0.01
_PREFILL_TOKEN_PART = 0.004


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds that a model's steps take.

    Attributes:
        step_s: each step, whatever it computes.
        decode_s: each sequence in it that computes one token.
        prefill_token_s: each token of the others.
    """

    step_s: float
    decode_s: float
    prefill_token_s: float

    def seconds(self, num_decodes: float, num_prefill_tokens: float) -> float:
        """Seconds of a step."""
        return self.step_s + self.decode_s * num_decodes + self.prefill_token_s * num_prefill_tokens


class StepModel:
    """Seconds of a model's step, linear in what it computes.

    What the steps do not tell apart, as long as all are alike, stays as it was known before. No cost is negative, and
    a step that took more than three times what was expected counts as if it had taken just that.

    Attributes:
        step_s, decode_s, prefill_token_s: as in ``StepCosts``.
    """

    def __init__(self) -> None:
        self._matrix = [[_GUESS_WEIGHT if row == column else 0.0 for column in range(3)] for row in range(3)]
        self._sums = [0.0] * 3
        self._is_guess = True
        self._set([_FIRST_STEP_S] * 3)

    def seconds(self, num_decodes: float, num_prefill_tokens: float) -> float:
        """Expected duration of a step."""
        return self.step_s + num_decodes * self.decode_s + num_prefill_tokens * self.prefill_token_s

    @property
    def measured(self) -> StepCosts | None:
        """Costs as they are known now; None before the first step."""
        return None if self._is_guess else StepCosts(self.step_s, self.decode_s, self.prefill_token_s)

    def note(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """Notes how long a step took; nothing if it computed nothing.

        Args:
            num_decodes: sequences that computed one token.
            num_prefill_tokens: computed by the others.
        """
        if seconds <= 0 or num_decodes + num_prefill_tokens <= 0:
            return
        size = 1 + num_decodes * _DECODE_PART + num_prefill_tokens * _PREFILL_TOKEN_PART
        if self._is_guess:  # what is not known yet costs as much more or less than guessed as this step did
            self._is_guess = False
            self._set([seconds / size] * 3)
            self._sums = [_GUESS_WEIGHT * cost for cost in self._costs]
        seconds = min(seconds, _MOST_TIMES_EXPECTED * self.seconds(num_decodes, num_prefill_tokens))
        shares = (
            1 / size,
            num_decodes * _DECODE_PART / size,
            num_prefill_tokens * _PREFILL_TOKEN_PART / size,
        )
        for row, share in enumerate(shares):
            cells = self._matrix[row]
            for column in range(3):
                cells[column] = _FORGETTING * cells[column] + share * shares[column]
            cells[row] += _INERTIA
            self._sums[row] = (
                _FORGETTING * self._sums[row] + share * seconds / size + _INERTIA * self._costs[row]
            )
        self._set(_least_squares(self._matrix, self._sums))

    def _set(self, costs: list[float]) -> None:
        self._costs = costs
        self.step_s = costs[0]
        self.decode_s = costs[1] * _DECODE_PART
        self.prefill_token_s = costs[2] * _PREFILL_TOKEN_PART


def _least_squares(matrix: list[list[float]], sums: list[float]) -> list[float]:
    """Solves the normal equations; what would be negative is 0, and the others are the best with that.

    Args:
        matrix: [3][3], positive definite.
        sums: [3], positive, so one at least is not negative.
    """
    free = [0, 1, 2]
    while True:
        values = _solved([[matrix[row][column] for column in free] + [sums[row]] for row in free])
        least = min(values)
        if least >= 0:
            break
        del free[values.index(least)]
    solution = [0.0] * 3
    for place, value in zip(free, values, strict=True):
        solution[place] = value
    return solution


def _solved(rows: list[list[float]]) -> list[float]:
    """Solution of linear equations by elimination; positive definite, they need no pivoting.

    Args:
        rows: [n][n + 1], the right side last. Changed.
    """
    num = len(rows)
    for place, pivot in enumerate(rows):
        for row in rows[place + 1 :]:
            factor = row[place] / pivot[place]
            for column in range(place + 1, num + 1):
                row[column] -= factor * pivot[column]
    values = [0.0] * num
    for place in reversed(range(num)):
        known = sum(rows[place][column] * values[column] for column in range(place + 1, num))
        values[place] = (rows[place][num] - known) / rows[place][place]
    return values
