"""What a name means that the directory does not have: nothing, or not yet."""

from __future__ import annotations

import pytest

from mooring.errors import ModelNotFoundError, ModelUnavailableError
from router.control.directory import DeploymentDirectory


def test_while_the_server_starts_an_unknown_name_may_still_come() -> None:
    directory = DeploymentDirectory()
    with pytest.raises(ModelUnavailableError, match="starting") as caught:
        directory.get("a")
    assert caught.value.retry_after_s == 1
    directory.complete()
    with pytest.raises(ModelNotFoundError, match="'a' does not exist") as unknown:
        directory.get("a")
    assert unknown.value.param == "model"


def test_what_is_withheld_says_why_before_and_after_the_start() -> None:
    directory = DeploymentDirectory()
    directory.withhold("a", "it is disabled")
    for _ in range(2):
        with pytest.raises(ModelUnavailableError, match="it is disabled"):
            directory.get("a")
        directory.complete()
