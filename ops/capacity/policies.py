"""Ways to share a device between models, in virtual time: ours, and two to compare it with."""

from __future__ import annotations

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import unused_from_s
from memory_manager.policy.chooser import choose
from memory_manager.policy.slack import running_latest_s, waiting_latest_s
from memory_manager.policy.stakes import Standing
from memory_manager.policy.standings import fresh_slack_s, guest_s, slacks_s, stay_s
from ops.capacity.machine import SimulatedModel, SimulatedRequest
from ops.capacity.simulation import Simulation

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
        model.pattern.note(simulation.now_s)

    def plan(self, simulation: Simulation) -> None:
        models = simulation.models
        num_present = sum(each.is_resident or each.coming_at_s is not None for each in models)
        choice = choose(
            [self._standing(simulation, each) for each in models],
            simulation.machine.num_resident - num_present,
            self._config,
            is_short_of_kv=any(
                simulation.now_s < each.kv_wanted_at_s + self._config.kv_short_s for each in models
            ),
        )
        for exchange in choice.exchanges:
            for name in exchange.leave:
                simulation.send_away(simulation.model(name))
            simulation.bring(simulation.model(exchange.come), as_guest=exchange.as_guest)
        simulation.plan_at_s = simulation.now_s + choice.due_in_s

    def _standing(self, simulation: Simulation, model: SimulatedModel) -> Standing:
        now_s, back_s = simulation.now_s, simulation.machine.wake_s
        is_coming = model.coming_at_s is not None
        latest_s = [self._latest_s(model, each) for each in model.requests()]
        waited_s = now_s - max(model.left_at_s, min(map(_at_s, model.not_running()), default=now_s))
        last_used_s = max(model.came_at_s, model.last_used_s)
        return Standing(
            name=model.name,
            num_bytes=1,
            is_present=model.is_resident or is_coming,
            may_leave=model.is_resident,
            may_come=not is_coming,
            back_s=back_s,
            slacks_s=slacks_s(latest_s, now_s),
            rate_per_s=model.rate.per_s(now_s, self._config.rate_half_life_s),
            fresh_slack_s=fresh_slack_s(model.pace.first_token_s, self._config),
            waited_s=waited_s,
            is_settled=now_s >= model.came_at_s + stay_s(back_s, is_guest=model.is_guest),
            is_unused=not latest_s
            and now_s >= unused_from_s(last_used_s, model.pattern.longest_pause_s, back_s, self._config),
            is_guest=model.is_guest and now_s < model.came_at_s + guest_s(back_s),
        )

    def _latest_s(self, model: SimulatedModel, request: SimulatedRequest) -> float:
        if request.first_at_s is None:
            return waiting_latest_s(request.deadline_s, model.pace.first_token_s)
        return running_latest_s(
            first_at_s=request.first_at_s,
            deadline_s=request.deadline_s,
            num_tokens=request.num_output,
            expected_tokens=model.mean_output,
            token_s=model.pace.token_s,
            tpot_target_s=request.tpot_target_s,
        )


class Static:
    """The most popular models that fit, each with an equal part of the KV; the others are refused."""

    def begin(self, simulation: Simulation) -> None:
        num_served = simulation.machine.num_resident
        for model in simulation.models:
            model.is_served = model.is_resident = int(model.name) < num_served
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
            (min(map(_at_s, each.not_running())), each.name)
            for each in simulation.models
            if each.waiting or each.queued
        ]
        [present] = [each for each in simulation.models if each.is_resident]
        if not waiting:
            return
        wanted = simulation.model(min(waiting)[1])
        present.is_open, wanted.is_open = wanted is present, True
        if wanted is not present and not present.running:
            simulation.send_away(present)
            simulation.bring(wanted)


def _at_s(request: SimulatedRequest) -> float:
    return request.at_s
