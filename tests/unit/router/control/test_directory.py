"""What a name means that the directory does not have: nothing, or not yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.router_doors import served_model

from mooring.errors import ModelNotFoundError, ModelNotReadyError, ModelUnavailableError
from router.control.directory import DeploymentDirectory, Preparation


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


def test_a_model_that_is_being_made_says_how_far_it_is() -> None:
    directory = DeploymentDirectory()
    directory.prepare("a", Preparation("train", 0.25, 61.2))
    with pytest.raises(ModelNotReadyError, match="train, 25% done, about 61 s left") as caught:
        directory.get("a")
    assert caught.value.retry_after_s == 61.2
    directory.prepare("a", Preparation("read"))
    with pytest.raises(ModelNotReadyError, match=r"\(read\)") as caught:
        directory.get("a")
    assert caught.value.retry_after_s == 30
    assert list(directory.preparing()) == ["a"]
    directory.withhold("a", "it failed")
    with pytest.raises(ModelUnavailableError, match="it failed"):
        directory.get("a")
    assert not directory.preparing()


def test_an_older_version_is_served_while_a_newer_one_is_made() -> None:
    directory = DeploymentDirectory()
    older = served_model("a", Path())
    newer = replace(older, version=2)
    directory.serve(older)
    directory.prepare("a", Preparation("train"))
    assert directory.get("a") is older
    assert not directory.preparing()
    directory.serve(newer)
    assert directory.get("a") is newer


def test_the_folder_of_a_version_that_nobody_serves_any_more_is_told() -> None:
    unserved: list[Path] = []
    directory = DeploymentDirectory(unserved.append)
    older = served_model("a", Path("/one"))
    directory.serve(older)
    directory.serve(older)
    directory.serve(replace(older, name="b"))
    directory.serve(replace(older, folder=Path("/two")))
    assert unserved == []  # another deployment has it
    directory.withhold("b", "it is disabled")
    assert unserved == [Path("/one")]
    directory.forget("a")
    directory.forget("a")
    assert unserved == [Path("/one"), Path("/two")]
