"""Reads a model's tokenizer and chat template from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mooring.errors import ArtifactError
from router.text_process.chat_template import ChatTemplate
from router.text_process.model_text import ModelText

__all__ = ["load_model_text"]

_SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def load_model_text(folder: Path) -> ModelText:
    """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a folder.

    Raises:
        ArtifactError: a file is missing or broken; the message names it.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {path.name} of the model: {error.strerror}") from error
    # The library raises a bare Exception for a file it cannot make sense of, and nothing narrower.
    except Exception as error:
        raise ArtifactError(f"{path.name} of the model is broken: {error}") from error
    settings = _read_json(folder / "tokenizer_config.json")
    specials = _special_tokens(_read_json(folder / "special_tokens_map.json") | settings)
    source = _template_source(folder, settings)
    return ModelText(tokenizer, None if source is None else ChatTemplate(source, specials))


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is absent."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} of the model is broken: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.name} of the model is not a JSON object")
    return content


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; each is a string, or an object with its ``content``."""
    found = {}
    for name in _SPECIAL_TOKEN_NAMES:
        token = settings.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or a setting (one text, or several by name)."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
