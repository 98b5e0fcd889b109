"""The double's classes. Every call and every attribute is held to the record of the package's API."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tensorrt_llm.api import record

_BLOCK_TOKENS = 32
_NUM_BLOCKS = 64


class RequestError(RuntimeError):
    """One request failed."""


@dataclass
class Control:
    """What tests make the double do.

    Attributes:
        step_s: how long an iteration takes.
        fail: how a call (``release``, ``resume``, ``load``) fails: before all (``refused``) or half way (``torn``).
        poison: prompts that begin with this id fail.
        is_silent: whether iterations give nothing.
        is_broken: whether requests end with an error that is not theirs.
        hides_end: whether requests end without a reason.
        llms: all that were made.
    """

    step_s: float = 0.001
    fail: dict[str, str] = field(default_factory=dict)
    poison: int | None = None
    is_silent: bool = False
    is_broken: bool = False
    hides_end: bool = False
    llms: list[LLM] = field(default_factory=list)


control = Control()


class _Stated:
    """An object that has the attributes of the record and no other."""

    _name = ""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__["_attributes"] = attributes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        record().read(f"{self._name}.{name}")
        return self._attributes[name]


class _Figures(dict[str, Any]):
    """Figures by the names of the record."""

    def __init__(self, name: str, **figures: Any) -> None:
        super().__init__(figures)
        self._name = name

    def get(self, key: str, default: Any = None) -> Any:
        record().read(f"{self._name}.{key}")
        return super().get(key, default)


class _Config:
    """A configuration: its arguments, as the record has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.values = record().bind(f"{type(self).__name__}.__init__", args, kwargs)


class KvCacheConfig(_Config):
    pass


class SchedulerConfig(_Config):
    pass


class SleepConfig(_Config):
    pass


class SamplingParams(_Config):
    pass


class Logprob(_Stated):
    _name = "Logprob"


class CompletionOutput(_Stated):
    _name = "CompletionOutput"


class RuntimeMemoryStatus(_Stated):
    _name = "RuntimeMemoryStatus"


class RequestOutput(_Stated):
    """A request. Its own state is private; the loop of its model writes it."""

    _name = "RequestOutput"

    def __init__(self, llm: LLM, prompt: list[int], arguments: dict[str, Any]) -> None:
        state: dict[str, Any] = {"token_ids": [], "logprobs": [], "finish_reason": None}
        super().__init__(outputs=[CompletionOutput(**state)], finished=False, cached_tokens=0)
        self._llm, self._prompt, self._params = llm, prompt, arguments["sampling_params"].values
        self._priority = arguments.get("priority", 0.5)
        self._salt = arguments["cache_salt"]
        self._is_aborted = False
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Any] = asyncio.Queue()

    def abort(self) -> None:
        record().bind("RequestOutput.abort", (), {})
        self._is_aborted = True

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        record().bind("RequestOutput.__aiter__", (), {})
        return self

    async def __anext__(self) -> RequestOutput:
        if self._attributes["finished"]:
            raise StopAsyncIteration
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        state = self._attributes["outputs"][0]._attributes
        state["token_ids"] += news["token_ids"]
        state["logprobs"] += news["logprobs"]
        state["finish_reason"] = news["reason"]
        self._attributes["finished"] = news["finished"]
        self._attributes["cached_tokens"] = news["cached"]
        return self

    def _tell(self, news: Any) -> None:
        self._loop.call_soon_threadsafe(self._news.put_nowait, news)


class LLM:
    """A model that says a function of what it has heard: the next token follows from all tokens before it, and from
    the seed if it is drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.values = record().bind("LLM.__init__", args, kwargs)
        if control.fail.get("load"):
            raise RuntimeError("out of memory")
        self._vocab_size = json.loads((Path(self.values["model"]) / "config.json").read_text())["vocab_size"]
        self._state = "running"
        self._waiting: list[RequestOutput] = []
        self._running: list[RequestOutput] = []
        self._cached: dict[str, list[list[int]]] = {}
        self._changed = threading.Condition()
        self._is_shut_down = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        control.llms.append(self)

    def generate_async(self, *args: Any, **kwargs: Any) -> RequestOutput:
        arguments = record().bind("LLM.generate_async", args, kwargs)
        if self._is_shut_down:
            raise RuntimeError("LLM is shutting down")
        if self._state != "running":
            raise RuntimeError(f"generation is rejected in state {self._state}")
        prompt, params = arguments["inputs"], arguments["sampling_params"].values
        if len(prompt) + params["max_tokens"] > self.values["max_seq_len"]:
            raise ValueError("the sum of prompt length and max_tokens should not exceed max_seq_len")
        output = RequestOutput(self, list(prompt), arguments)
        with self._changed:
            self._waiting.append(output)
            self._changed.notify_all()
        return output

    def get_stats_async(self, *args: Any, **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        record().bind("LLM.get_stats_async", args, kwargs)

        async def figures() -> AsyncIterator[dict[str, Any]]:
            num_used = min(_NUM_BLOCKS, len(self._running))
            blocks = _Figures("KVCacheStats", maxNumBlocks=_NUM_BLOCKS, usedNumBlocks=num_used)
            yield _Figures("IterationStats", kvCacheStats=blocks)

        return figures()

    def release(self, *args: Any, **kwargs: Any) -> None:
        record().bind("LLM.release", args, kwargs)
        self._move("release", "running", "parking", "parked")

    def resume(self, *args: Any, **kwargs: Any) -> None:
        record().bind("LLM.resume", args, kwargs)
        self._move("resume", "parked", "waking", "running")

    def get_memory_status(self, *args: Any, **kwargs: Any) -> RuntimeMemoryStatus:
        record().bind("LLM.get_memory_status", args, kwargs)
        return RuntimeMemoryStatus(state=self._state)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        record().bind("LLM.shutdown", args, kwargs)
        with self._changed:
            self._is_shut_down = True
            self._changed.notify_all()
        self._thread.join()

    def _move(self, call: str, before: str, between: str, after: str) -> None:
        if self.values["sleep_config"] is None:
            raise ValueError("sleep_config is not set")
        if self._state == after:
            return
        if self._state != before:
            raise RuntimeError(f"{call} is rejected in state {self._state}")
        if control.fail.get(call) == "refused":
            raise RuntimeError(f"{call} is refused")
        self._state = between
        with self._changed:  # work in flight is drained
            assert self._changed.wait_for(lambda: not self._running and not self._waiting, 20)
        if control.fail.get(call) == "torn":
            self._state = "failed"
            raise RuntimeError(f"{call} failed on rank 0")
        self._state = after

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._waiting or self._is_shut_down)
                if self._is_shut_down:
                    return
                self._waiting.sort(key=lambda each: -each._priority)
                num_free = self.values["max_batch_size"] - len(self._running)
                self._running += self._waiting[:num_free]
                del self._waiting[:num_free]
                running = list(self._running)
            time.sleep(control.step_s)
            if not control.is_silent:
                for request in running:
                    self._advance(request)
            with self._changed:
                self._running = [each for each in self._running if not getattr(each, "_ended", False)]
                self._changed.notify_all()

    def _advance(self, request: RequestOutput) -> None:
        if control.is_broken:
            self._end(request, OSError("the executor is gone"))
        elif request._prompt[0] == control.poison:
            self._end(request, RequestError("CUDA says no"))
        elif request._is_aborted:
            news = {"token_ids": [], "logprobs": [], "cached": 0, "reason": "cancelled", "finished": True}
            self._end(request, news)
        else:
            self._speak(request)

    def _end(self, request: RequestOutput, news: Any) -> None:
        request._ended = True
        request._tell(news)

    def _speak(self, request: RequestOutput) -> None:
        params, said = request._params, getattr(request, "_said", [])
        token_id = self._next(request._prompt + said, params)
        said = request._said = [*said, token_id]
        reason = None
        if len(said) >= params["max_tokens"]:
            reason = "length"
        elif token_id in (params["stop_token_ids"] or []):
            reason = "stop"
        shown = [token_id]
        if reason == "stop" and not params["include_stop_str_in_output"]:
            shown = []
        logprobs = []
        if params["logprobs"]:
            top = {each: Logprob(logprob=-1.0 - each) for each in range(params["logprobs"])}
            logprobs = [{**top, token_id: Logprob(logprob=-0.5)}] * len(shown)
        news = {"token_ids": shown, "logprobs": logprobs, "cached": self._num_cached(request, said)}
        news |= {"reason": None if control.hides_end else reason, "finished": reason is not None}
        if reason is None:
            request._tell(news)
        else:
            self._end(request, news)

    def _next(self, context: list[int], params: dict[str, Any]) -> int:
        if params["embedding_bias"] is not None and float(params["embedding_bias"].max()) >= 50:
            return int(params["embedding_bias"].argmax())
        is_greedy = params["top_k"] == 1 or params["top_p"] < 1e-3 or params["min_p"] == 1
        drawn = [] if is_greedy else [params["seed"] % 1000]
        token_id = zlib.crc32(np.array([*context, *drawn], np.int64).tobytes()) % self._vocab_size
        while token_id in (params["bad_token_ids"] or []):
            token_id = (token_id + 1) % self._vocab_size
        return token_id

    def _num_cached(self, request: RequestOutput, said: list[int]) -> int:
        """Tokens of the prompt that another prompt of the same salt began with, in whole blocks."""
        if len(said) > 1:
            return request._num_cached
        known = self._cached.setdefault(request._salt, [])
        most = 0
        for other in known:
            same = 0
            while same < min(len(other), len(request._prompt) - 1) and other[same] == request._prompt[same]:
                same += 1
            most = max(most, same // _BLOCK_TOKENS * _BLOCK_TOKENS)
        if self.values["kv_cache_config"].values["enable_block_reuse"]:
            known.append(request._prompt)
        request._num_cached = most
        return most
