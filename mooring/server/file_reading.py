"""Reads a stranger's files, as a process of its own::

    python -m mooring.server.file_reading examine FOLDER --engine NAME --parent PID
    python -m mooring.server.file_reading outline FOLDER_OR_GGUF --engine NAME --parent PID
    python -m mooring.server.file_reading convert GGUF FOLDER --parent PID

The process is a job (``mooring.job``). Whatever the files hold, it answers within its limits or dies of them, and the
server goes on.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import Any

from engines.kinds import KINDS, engine_kind
from model_registry.importing.examination import examine_folder
from mooring.child_job import JobProgress, add_job_arguments, do_job
from mooring.errors import ArtifactError, InvalidRequestError, MooringError
from mooring.strangers_json import read_strangers_json
from router.text_process.model_folder import load_model_text
from router.text_process.model_text import ModelText
from router.text_process.vocabulary import write_vocabulary

__all__ = ["check_text", "main"]

_SENTENCE = "Mooring reads this."
_CONVERSATION = {
    "messages": [{"role": "user", "content": _SENTENCE}],
    "add_generation_prompt": True,
    "continue_final_message": False,
    "template_variables": {},
}
_MAX_PROMPT_TOKENS = 500_000  # of the conversation: templates have no more than some thousand of their own


def main() -> int:
    """Runs the module's command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mooring.server.file_reading", description="Read files.")
    commands = parser.add_subparsers(dest="command", required=True)
    examine = commands.add_parser("examine", help="check a Hugging Face folder")
    examine.add_argument("folder", type=Path)
    examine.add_argument("--engine", choices=sorted(KINDS), required=True, help="what is to run the model")
    examine.add_argument("--max-text-cpu-s", type=int, required=True, help="for tokenizer and chat template")
    outline = commands.add_parser("outline", help="read the configuration of a folder or a GGUF file")
    outline.add_argument("source", type=Path)
    outline.add_argument("--engine", choices=sorted(KINDS), required=True, help="what is to run the model")
    convert = commands.add_parser("convert", help="write a GGUF file as a Hugging Face folder")
    convert.add_argument("source", type=Path)
    convert.add_argument("destination", type=Path)
    for command in (examine, outline, convert):
        add_job_arguments(command)
    args = parser.parse_args()
    if args.command == "convert":
        return do_job(args, lambda tell: _convert(args.source, args.destination, tell))
    if args.command == "outline":
        return do_job(args, lambda tell: _outline(args.source, args.engine))
    return do_job(args, lambda tell: _examine(args, tell))


def _convert(source: Path, destination: Path, tell: JobProgress) -> None:
    from model_registry.importing.gguf_import import convert_gguf  # the examination does without the library

    convert_gguf(source, destination, tell)


def _outline(source: Path, engine: str) -> dict[str, Any]:
    if source.is_dir():
        raw = read_strangers_json(source / "config.json")
    else:
        from model_registry.importing.gguf_import import (
            gguf_outline,
        )  # the examination does without the library

        raw = gguf_outline(source)
    config, precision, max_model_len = engine_kind(engine).outline(raw)
    return {"config": config, "precision": precision, "max_model_len": max_model_len}


def _examine(args: argparse.Namespace, tell: JobProgress) -> dict[str, Any]:
    tell("check", 0, 0)
    found = examine_folder(args.folder, engine_kind(args.engine).describe)
    tell("tokenizer and chat template", 0, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard_limit_s = resource.getrlimit(resource.RLIMIT_CPU)
    limit_s = int(used.ru_utime + used.ru_stime) + 1 + args.max_text_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (min(limit_s, hard_limit_s), hard_limit_s))
    check_text(load_model_text(args.folder))
    return found.to_json()


def check_text(model: ModelText) -> None:
    """Tokenizes a sentence and renders a conversation.

    Raises:
        ArtifactError: the vocabulary cannot be served, the tokenizer fails on it, or the chat template makes too much
            of it. A template may refuse the conversation, as it may refuse any other.
    """
    write_vocabulary(model.tokenizer)
    try:
        _num_tokens(model, _SENTENCE)
        num_tokens = _num_tokens(model, _CONVERSATION)
    except InvalidRequestError as error:
        if isinstance(error.__cause__, MemoryError | OverflowError):
            raise ArtifactError(
                "the model's chat template takes too much memory for one sentence, or makes something too large of it"
            ) from error
        return
    except (MooringError, MemoryError):
        raise
    except Exception as error:  # the library raises a bare one
        raise ArtifactError(f"the model's tokenizer cannot tokenize a sentence: {error}") from error
    if num_tokens > _MAX_PROMPT_TOKENS:
        raise ArtifactError(f"the model's chat template makes {num_tokens} tokens or more of one sentence")


def _num_tokens(model: ModelText, prompt: str | dict[str, Any]) -> int:
    """Number of tokens of a prompt, or the least that it can be if that is too many."""
    call = {
        "prompts": [prompt],
        "special_tokens": None,
        "param": "messages",
        "max_tokens": _MAX_PROMPT_TOKENS,
        "num_kept": None,
        "bad_words": (),
    }
    [(_, num_tokens, _)] = model.encode(call).content["prompts"]
    return int(num_tokens)


if __name__ == "__main__":
    sys.exit(main())
