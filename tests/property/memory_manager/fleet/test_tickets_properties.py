"""Places against a plain list."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.fleet.tickets import Places


@dataclass(eq=False)
class Request:
    tenant: str
    num_choices: int


REQUESTS = [Request(tenant, number) for number, tenant in enumerate(("t", "t", "t", "u", "u", "", ""), 1)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "discard", "clear"]), st.integers(0, len(REQUESTS) - 1))
)


@given(STEPS)
def test_places_are_a_list_without_doubles(steps: list[tuple[str, int]]) -> None:
    places: Places[Request] = Places()
    model: list[Request] = []
    for step, number in steps:
        request = REQUESTS[number]
        match step:
            case "add":
                places.add(request)
                if request not in model:
                    model.append(request)
            case "discard":
                places.discard(request)
                if request in model:
                    model.remove(request)
            case _:
                places.clear()
                model.clear()
        assert list(places) == model
        assert len(places) == len(model)
        assert all((each in places) == (each in model) for each in REQUESTS)
        for tenant in ("t", "u", "", "nobody"):
            assert places.num_of(tenant) == sum(each.tenant == tenant for each in model)
        assert places.num_sequences == sum(each.num_choices for each in model)
