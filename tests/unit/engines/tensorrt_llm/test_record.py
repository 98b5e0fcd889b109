"""The adapter against the record of TensorRT-LLM's API: every call, argument and attribute."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.small_checkpoint import write_checkpoint
from support.sources import parsed, sources
from support.tensorrt_llm_double import DOUBLES, LlmDriver, double, problems

from engines.config import TensorRtLlmConfig
from engines.tensorrt_llm.surface import FEATURES
from mooring.errors import InternalError
from ops.tensorrt_llm_record import main, uses

ROOM = Path("engines/tensorrt_llm")
ARGUMENTS = sorted(use for use in uses() if re.search(r"\(.+\)", use))


def test_every_use_is_in_the_record() -> None:
    with double():
        from tensorrt_llm.api import record

        assert len(uses()) > 60
        assert problems(record()) == []
        assert uses() >= {use for use in record().names() if not use.endswith("(tags)")}, (
            "and nothing else is"
        )


@pytest.mark.parametrize("use", ARGUMENTS)
def test_an_argument_of_another_name_is_found(use: str) -> None:
    call, argument = use.rstrip(")").split("(")
    with double():
        from tensorrt_llm.api import record

        record().calls[call][f"{argument}_now"] = record().calls[call].pop(argument)
        assert f"{use} is not in the record" in problems(record())


def test_a_new_required_argument_is_found() -> None:
    with double():
        from tensorrt_llm.api import record

        record().calls["LLM.shutdown"]["reason"] = {"type": "str"}
        assert problems(record()) == ["LLM.shutdown(reason) is required and never given"]


def test_an_attribute_that_is_gone_is_found() -> None:
    with double():
        from tensorrt_llm.api import record

        del record().attributes["RequestOutput.finished"]
        assert problems(record()) == ["RequestOutput.finished is not in the record"]


@pytest.mark.parametrize(
    ("use", "changed"),
    [
        ("KvCacheConfig.__init__(max_gpu_total_bytes)", None),
        ("LLM.__init__(max_seq_len)", None),
        ("LLM.__init__(enable_chunked_prefill)", "str"),
    ],
)
def test_a_wrong_call_fails_when_it_is_made(tmp_path: Path, use: str, changed: str | None) -> None:
    call, argument = use.rstrip(")").split("(")
    with double():
        from tensorrt_llm.api import record

        stated = record().calls[call].pop(argument)
        if changed is not None:
            record().calls[call][argument] = {**stated, "type": changed}
        driver = LlmDriver(write_checkpoint(tmp_path / "m"))
        with pytest.raises((TypeError, InternalError), match=argument):
            driver.load()


def use_everything(folder: Path) -> None:
    """Has the adapter do all that it can."""
    config = TensorRtLlmConfig(
        guided_decoding_backend="xgrammar",
        speculative_config='{"decoding_type": "NGram", "max_draft_len": 4}',
        host_kv_bytes=1 << 20,
    )
    driver = LlmDriver(folder, config)
    driver.load()
    everything: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logprobs": 2,
        "logit_bias": ((3, 1.5),),
        "bad_words_ids": ((4,),),
        "stop_token_ids": (1,),
    }
    driver.submit(1, **everything)
    driver.run()
    driver.submit(2, max_tokens=10_000)
    driver.run_until_said(2, 1)
    driver.run_until_figures()
    driver.engine.sleep("m")
    driver.engine.wake("m", 1 << 30)
    driver.engine.cancel([2])
    driver.run()
    driver.engine.close()


def test_every_use_is_exercised(tmp_path: Path) -> None:
    """The record holds the calls that are really made, and no type of the surface stands there unused."""
    with double():
        from tensorrt_llm.api import record

        use_everything(write_checkpoint(tmp_path / "m"))
        assert uses() - record().used == set()
        assert record().used - uses() == set()


def test_nothing_of_the_package_is_used_past_the_surface() -> None:
    """mypy holds the adapter to the surface, as long as nothing there is of type Any."""
    importers = set()
    for path in sources():
        for node in ast.walk(parsed(path)):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.partition(".")[0] == "tensorrt_llm" for name in names):
                importers.add(path)
    assert importers == {ROOM / "surface.py"}
    for path in sorted((ROOT / ROOM).glob("*.py")):
        text = path.read_text()
        assert (
            re.findall(r"\bAny\b(?!\.\n)|\bcast\(|\bgetattr\(|type: ignore", text.partition('"""\n')[2]) == []
        )
        top = {
            alias.name
            for node in ast.parse(text).body
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not top & {"torch", "tensorrt_llm"}


def test_the_record_is_made_from_the_references(tmp_path: Path) -> None:
    folder = tmp_path / "tests/unittest/api_stability"
    made = json.loads((DOUBLES / "tensorrt_llm/record.json").read_text())
    for part in ("references", "references_committed"):
        (folder / part).mkdir(parents=True)
        for name in ("llm", "sampling_params", "request_output", "completion_output"):
            (folder / part / f"{name}.yaml").write_text("methods: {}\nproperties: {}\n")
    (folder / "references/llm.yaml").write_text(
        "methods:\n"
        "  __init__:\n"
        "    parameters:\n"
        "      model: {annotation: str, default: inspect._empty}\n"
        '      sleep_config: {annotation: "Optional[SleepConfig]", default: null}\n'
        "      unheard_of: {annotation: int, default: 3}\n"
        "      needed: {annotation: int, default: inspect._empty}\n"
    )
    out = tmp_path / "record.json"
    flags = [f"--commit={path}=abc" for path in made["commits"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["record", str(tmp_path), "--out", str(out), *flags])
        assert main() == 0
    record = json.loads(out.read_text())
    assert record["commits"] == dict.fromkeys(made["commits"], "abc")
    assert record["calls"] == {
        "LLM.__init__": {
            "model": {"type": "str"},
            "sleep_config": {"type": "Optional[SleepConfig]", "default": None},
            "needed": {"type": "int"},
        }
    }


def test_the_page_names_the_version_of_each_feature() -> None:
    page = (ROOT / "docs/tensorrt-llm.md").read_text()
    assert f"{len(uses())} uses" in page
    rows = re.findall(r"^\| .*?\| (\d\.\d) \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(".".join(map(str, needed)) for needed in FEATURES.values())
