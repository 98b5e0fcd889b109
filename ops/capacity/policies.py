"""Ways to share a device between models, in virtual time: ours, and two to compare it with."""

from __future__ import annotations

import numpy as np

from memory_manager.config import PlannerConfig
from memory_manager.policy.chooser import Standing, choose
from memory_manager.policy.slack import running_slack_s, waiting_slack_s
from ops.capacity.simulation import SimulatedModel, SimulatedRequest, Simulation

__all__ = ["Elastic", "Static", "SwapOneAtATime"]


class Elastic:
    """The server's own chooser; KV is shared."""

    def __init__(self, config: PlannerConfig) -> None:
        self._config = config

    def begin(self, simulation: Simulation) -> None:
        for model in simulation.models[: simulation.machine.num_resident]:
            model.is_resident = True

    def arrived(self, simulation: Simulation, model: SimulatedModel) -> None:
        model.rate.note(simulation.now_s, self._config.rate_half_life_s)

    def plan(self, simulation: Simulation) -> None:
        models = simulation.models
        num_present = sum(each.is_resident or each.coming_at_s is not None for each in models)
        first_token_s = max(each.first_token_s for each in models)
        choice = choose(
            [self._standing(simulation, each) for each in models],
            simulation.machine.num_resident - num_present,
            self._config.ttft_target_s - first_token_s,
            self._config,
        )
        for exchange in choice.exchanges:
            for name in exchange.leave:
                simulation.send_away(models[int(name)])
            simulation.bring(models[int(exchange.come)])
        simulation.plan_at_s = simulation.now_s + choice.due_in_s

    def _standing(self, simulation: Simulation, model: SimulatedModel) -> Standing:
        is_coming = model.coming_at_s is not None
        slacks_s = [self._slack_s(simulation, model, each) for each in model.requests()]
        return Standing(
            name=str(model.index),
            num_bytes=1,
            is_present=model.is_resident or is_coming,
            may_leave=model.is_resident,
            may_come=not is_coming,
            back_s=simulation.machine.wake_s,
            slacks_s=np.sort(np.array(slacks_s, float)),
            rate_per_s=model.rate.per_s(simulation.now_s, self._config.rate_half_life_s),
        )

    def _slack_s(self, simulation: Simulation, model: SimulatedModel, request: SimulatedRequest) -> float:
        if request.first_at_s is None:
            return waiting_slack_s(request.deadline_s, model.first_token_s, simulation.now_s)
        return running_slack_s(
            first_at_s=request.first_at_s,
            deadline_s=request.deadline_s,
            num_tokens=request.num_done,
            expected_tokens=model.mean_output,
            token_s=simulation.token_s,
            tpot_target_s=self._config.tpot_target_s,
            now_s=simulation.now_s,
        )


class Static:
    """The most popular models that fit, each with an equal part of the KV; the others are refused."""

    def begin(self, simulation: Simulation) -> None:
        num_served = simulation.machine.num_resident
        for model in simulation.models:
            model.is_served = model.is_resident = model.index < num_served
            model.kv_share = simulation.machine.kv_tokens // num_served

    def arrived(self, simulation: Simulation, model: SimulatedModel) -> None:
        """Changes nothing."""

    def plan(self, simulation: Simulation) -> None:
        """Changes nothing."""


class SwapOneAtATime:
    """One model at a time, with all KV: first come, first served, the one before drained, as llama-swap does."""

    def begin(self, simulation: Simulation) -> None:
        simulation.models[0].is_resident = True

    def arrived(self, simulation: Simulation, model: SimulatedModel) -> None:
        """Changes nothing."""

    def plan(self, simulation: Simulation) -> None:
        if any(each.coming_at_s is not None for each in simulation.models):
            return
        waiting = [
            (min(request.at_s for request in each.waiting), each.index)
            for each in simulation.models
            if each.waiting
        ]
        [present] = [each for each in simulation.models if each.is_resident]
        if not waiting:
            return
        wanted = simulation.models[min(waiting)[1]]
        present.is_open, wanted.is_open = wanted is present, True
        if wanted is not present and not present.running:
            simulation.send_away(present)
            simulation.bring(wanted)
