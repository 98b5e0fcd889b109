"""What users of the ``llm`` command do: a model named in its file, then prompts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from run_checks import Server

MODELS = """
- model_id: mooring-a
  model_name: a
  api_base: {url}/v1
"""


def llm(server: Server, *arguments: str) -> str:
    """The command with our server in its ``extra-openai-models.yaml``."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "extra-openai-models.yaml").write_text(MODELS.format(url=server.url))
        ended = subprocess.run(
            [Path(sys.executable).with_name("llm"), *arguments],
            env={**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_prompt(server: Server) -> None:
    whole = llm(server, "-m", "mooring-a", "-o", "max_tokens", "12", "--no-stream", "hello")
    assert len(whole.rstrip("\n")) == 12
    assert llm(server, "-m", "mooring-a", "-o", "max_tokens", "12", "hello") == whole, "streamed"
