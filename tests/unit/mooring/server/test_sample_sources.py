"""Which samples the settings ask for."""

from __future__ import annotations

import pytest

from mooring.config import load_settings
from mooring.errors import ConfigurationError
from mooring.server.samples import model_entries, sample_of


def test_samples_come_after_the_models_of_the_settings_and_leave_out_taken_names() -> None:
    own = {"name": "draft", "source": "/some/where"}
    entries = model_entries(load_settings({"models": [own], "samples": True}))
    assert [(entry.name, entry.source) for entry in entries] == [
        ("draft", "/some/where"),
        ("smollm2", "sample:smollm2"),
        ("pythonlm", "sample:pythonlm"),
    ]
    assert [sample_of(entry) for entry in entries] == [None, "smollm2", "pythonlm"]
    assert model_entries(load_settings({})) == ()


def test_a_sample_may_have_another_name() -> None:
    (entry,) = model_entries(load_settings({"models": [{"name": "code", "source": "sample:pythonlm"}]}))
    assert sample_of(entry) == "pythonlm"


def test_an_unknown_sample_is_an_error_that_names_the_model() -> None:
    (entry,) = model_entries(load_settings({"models": [{"name": "a", "source": "sample:b"}]}))
    with pytest.raises(ConfigurationError, match="model a: there is no sample 'b'"):
        sample_of(entry)
