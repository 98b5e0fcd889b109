"""Merge patches: applied to what was before they give what is after, and they say nothing about what is equal."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mooring.merge_patch import Document, merge_patch, patched

# Few names and values, so that documents that are drawn beside each other have much in common.
NAMES = st.sampled_from("abcd")
VALUES = st.sampled_from([0, 1, True, False, 1.0, 0.5, "", "x", [], [1], [{"a": 1}]])


def objects(members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, members, max_size=4)


DOCUMENTS: st.SearchStrategy[Document] = objects(st.recursive(VALUES, objects, max_leaves=8))


def exactly(document: object) -> object:
    """The document with the type of each value, since ``1 == True == 1.0``."""
    if isinstance(document, dict):
        return {name: exactly(value) for name, value in document.items()}
    return type(document), document


@given(DOCUMENTS, DOCUMENTS)
def test_a_patch_makes_the_new_document_of_the_old(before: Document, after: Document) -> None:
    originals = copy.deepcopy((before, after))
    assert exactly(patched(before, merge_patch(before, after))) == exactly(after)
    assert (before, after) == originals


@given(DOCUMENTS)
def test_the_patch_between_equals_is_empty(document: Document) -> None:
    assert merge_patch(document, copy.deepcopy(document)) == {}


@given(DOCUMENTS, DOCUMENTS)
def test_a_patch_names_nothing_that_is_equal(before: Document, after: Document) -> None:
    def check(patch: Document, old: Document, new: Document) -> None:
        for name, value in patch.items():
            assert exactly(old.get(name)) != exactly(new.get(name))
            if isinstance(value, dict) and isinstance(old.get(name), dict):
                check(value, old[name], new[name])

    check(merge_patch(before, after), before, after)


@given(st.lists(DOCUMENTS, min_size=1, max_size=6))
def test_patches_one_after_the_other_give_the_last_document(documents: list[Document]) -> None:
    state: Document = {}
    for before, after in zip([{}, *documents], documents, strict=False):
        state = patched(state, merge_patch(before, after))
    assert exactly(state) == exactly(documents[-1])
