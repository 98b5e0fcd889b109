"""Text in processes of its own: what a tokenizer or a chat template does there, nobody else notices."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT
from support.router_doors import byte_fallback_tokenizer, byte_level_tokenizer, write_model_folder
from support.until import until

from mooring.errors import ArtifactError, InternalError, InvalidRequestError, OverloadedError
from mooring.units import MIB
from router.request.bounds import RouterConfig
from router.tenancy.tenant import ANONYMOUS, Tenant
from router.text.prompts import ChatPrompt
from router.text.starter import TextStarter
from router.text.text_models import TextModel, TextModels

pytestmark = pytest.mark.integration

# What a message says is what it does.
TEMPLATE = """
{%- set what = messages[0].content -%}
{%- if what == 'spin' -%}
  {%- for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}
  {%- endfor %}{% endfor %}{% endfor -%}
{%- elif what == 'slow' -%}{%- for i in range(40) %}{% for j in range(20000) %}{% endfor %}{% endfor -%}
{%- elif what == 'swell' -%}
  {%- set all = namespace(text='a' * 1000) -%}
  {%- for i in range(40) %}{% set all.text = all.text ~ all.text %}{% endfor -%}
{%- elif what in ('hoard', 'overflow') -%}
  {%- set all = namespace(text='a' * 1000) -%}
  {%- set all.itself = all -%}
  {%- for i in range(17) %}{% set all.text = all.text ~ all.text %}{% endfor -%}
  {%- if what == 'overflow' %}{{ all.text }}{% endif -%}
{%- endif -%}
{{ what }}
"""


class Texts:
    """Text models of one starter, and the processes that there are."""

    def __init__(self, starter: TextStarter, config: RouterConfig) -> None:
        self._starter = starter
        self.models = TextModels(config, starter)

    @property
    def starter(self) -> psutil.Process:
        [found] = self.starters()
        return found

    def starters(self) -> list[psutil.Process]:
        return [
            each for each in psutil.Process().children() if "router.text_process" in " ".join(each.cmdline())
            and each.pid not in EARLIER
        ]  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        return self.starter.children()

    def copies(self) -> list[psutil.Process]:
        return [copy for process in self.processes() for copy in process.children()]


EARLIER: set[int] = set()


@pytest.fixture
async def texts() -> AsyncIterator[Callable[..., Texts]]:
    EARLIER.update(each.pid for each in psutil.Process().children())
    starter = TextStarter()
    made: list[Texts] = []

    def make(**config: object) -> Texts:
        made.append(Texts(starter, RouterConfig(**config)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.models.close()
    starter.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "m", byte_level_tokenizer(), TEMPLATE)


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(({"role": "user", "content": text},))


async def said(model: TextModel, prompt: ChatPrompt | str) -> str:
    [encoded] = (await model.encode([prompt], tenant=ANONYMOUS)).prompts
    return await model.decode(encoded.ids.tolist(), tenant=ANONYMOUS)


async def test_a_template_without_end_costs_its_own_request(
    texts: Callable[..., Texts], folder: Path, tmp_path: Path
) -> None:
    here = texts(text_timeout_s=1.0)
    model = await here.models.get(folder)
    other = await here.models.get(write_model_folder(tmp_path / "other", byte_fallback_tokenizer()))
    before = {each.pid for each in here.processes()}
    bad = asyncio.create_task(model.encode([chat("spin")], tenant=ANONYMOUS, param="messages"))
    await asyncio.sleep(0.05)
    good = [asyncio.create_task(said(model, chat(f"hello {i}"))) for i in range(5)]
    assert await said(other, "the") == "the"
    with pytest.raises(InvalidRequestError, match="took longer than 1 s") as caught:
        await bad
    assert caught.value.param == "messages"
    assert await asyncio.gather(*good) == [f"hello {i}" for i in range(5)]
    after = {each.pid for each in here.processes()}
    assert len(before & after) == 1  # the other model's
    assert len(after) == 2


async def test_a_kill_in_flight_costs_nobody_anything(texts: Callable[..., Texts], folder: Path) -> None:
    here = texts(text_timeout_s=60.0)
    model = await here.models.get(folder)
    for _ in range(2):  # a request is refused for a second death at its own work, not at others'
        waiting = [asyncio.create_task(said(model, chat(text))) for text in ("slow", "a", "b")]
        long = asyncio.create_task(model.encode(["hello " * 50_000], tenant=ANONYMOUS))
        await asyncio.sleep(0.1)
        [process] = here.processes()
        process.kill()
        assert await asyncio.gather(*waiting) == ["slow", "a", "b"]
        assert (await long).prompts[0].num_tokens > 50_000


async def test_what_kills_its_process_twice_is_refused(texts: Callable[..., Texts], folder: Path) -> None:
    here = texts(text_timeout_s=60.0)
    model = await here.models.get(folder)
    bad = asyncio.create_task(model.encode([chat("spin")], tenant=ANONYMOUS, param="messages"))
    good = asyncio.create_task(said(model, chat("hello")))
    for _ in range(2):
        await asyncio.to_thread(until, lambda: busy(here.processes()), "a process at work")
        [process] = here.processes()
        process.kill()
        await asyncio.to_thread(process.wait, 20)
    with pytest.raises(InvalidRequestError, match="twice"):
        await bad
    assert await good == "hello"


def busy(processes: list[psutil.Process]) -> bool:
    """Whether the one process has computed for longer than it takes to read the small tokenizer."""
    return len(processes) == 1 and processes[0].cpu_times().user > 0.7


async def test_memory_is_bounded(texts: Callable[..., Texts], folder: Path) -> None:
    here = texts(text_memory_bytes=512 * MIB)
    model = await here.models.get(folder)
    [process] = here.processes()
    assert process.rlimit(psutil.RLIMIT_AS) == (512 * MIB, 512 * MIB)
    with pytest.raises(InvalidRequestError):
        await model.encode([chat("swell")], tenant=ANONYMOUS)
    assert await said(model, chat("hello")) == "hello"


async def test_memory_that_a_template_filled_is_given_back(texts: Callable[..., Texts], folder: Path) -> None:
    here = texts()
    model = await here.models.get(folder)
    [process] = here.processes()
    before_bytes = process.memory_info().rss
    assert await said(model, chat("hoard")) == "hoard"
    with pytest.raises(InvalidRequestError, match="more than"):
        await model.encode([chat("overflow")], tenant=ANONYMOUS)
    assert here.processes() == [process]
    assert await asyncio.to_thread(most_resident_bytes, process) > before_bytes + 128 * MIB
    await asyncio.to_thread(until, lambda: process.memory_info().rss < before_bytes + 32 * MIB, "less memory")


def most_resident_bytes(process: psutil.Process) -> int:
    """The most that a process has ever held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def test_a_process_keeps_nothing_of_the_file_that_it_has_read(
    texts: Callable[..., Texts], tmp_path: Path
) -> None:
    here = texts()
    await here.models.get(large_model(tmp_path))
    [process] = here.processes()
    await asyncio.to_thread(
        until, lambda: process.memory_info().rss < 0.6 * most_resident_bytes(process), "less memory"
    )


async def test_who_gives_up_while_a_folder_is_read_leaves_no_process_behind(
    texts: Callable[..., Texts], folder: Path
) -> None:
    here = texts()
    for _ in range(3):
        given_up = asyncio.create_task(here.models.get(folder))
        await asyncio.to_thread(until, here.starters, "the starter")
        await asyncio.sleep(0.02)
        given_up.cancel()
        await asyncio.wait([given_up])
    model = await here.models.get(folder)
    assert await said(model, "hello") == "hello"
    assert len(here.processes()) == 1


async def test_who_gives_up_while_a_dropped_process_starts_again_leaves_none_behind(
    texts: Callable[..., Texts], folder: Path, tmp_path: Path
) -> None:
    here = texts(tokenizers_cached=1)
    dropped = await here.models.get(folder)
    await here.models.get(write_model_folder(tmp_path / "other", byte_level_tokenizer()))
    await asyncio.to_thread(until, lambda: len(here.processes()) == 1, "one process")
    given_up = asyncio.create_task(dropped.encode(["hello"], tenant=ANONYMOUS))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    await asyncio.sleep(0.5)
    await asyncio.to_thread(until, lambda: len(here.processes()) == 1, "one process again")


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPrompt(({"role": "user", "content": "hello"},), template_variables={"more": "the " * 5000}),
        ChatPrompt(({"role": "user", "content": "hello", "name": "the " * 5000},)),
    ],
    ids=["variables", "name"],
)
async def test_all_of_a_chat_counts_for_its_length(
    texts: Callable[..., Texts], tmp_path: Path, prompt: ChatPrompt
) -> None:
    template = "{% for i in range(40) %}{% for j in range(20000) %}{% endfor %}{% endfor %}{{ more }}"
    here = texts()
    model = await here.models.get(write_model_folder(tmp_path / "m", byte_level_tokenizer(), template))
    long = asyncio.create_task(model.encode([prompt], tenant=ANONYMOUS))
    await asyncio.to_thread(until, here.copies, "a copy for the long chat")
    assert (await long).prompts


async def test_a_tokenizer_too_large_for_its_memory_is_a_broken_model(
    texts: Callable[..., Texts], tmp_path: Path
) -> None:
    here = texts(text_memory_bytes=160 * MIB)
    with pytest.raises(ArtifactError):
        await here.models.get(large_model(tmp_path))


def large_model(tmp_path: Path) -> Path:
    """A tokenizer of 18 MB."""
    folder = write_model_folder(tmp_path / "large", byte_level_tokenizer())
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"Ġ{'token' * 10}{i}": 400 + i for i in range(265_000)}
    path.write_text(json.dumps(content, ensure_ascii=False))
    assert path.stat().st_size > 18 * 10**6
    return folder


async def test_reading_a_large_tokenizer_holds_nobody_up(
    texts: Callable[..., Texts], folder: Path, tmp_path: Path
) -> None:
    here = texts()
    model = await here.models.get(folder)
    large = asyncio.create_task(here.models.get(large_model(tmp_path)))
    await asyncio.sleep(0)
    assert await said(model, "hello") == "hello"
    assert not large.done()
    assert await said(await large, "hello") == "hello"


async def test_a_short_text_does_not_wait_for_a_long_one(texts: Callable[..., Texts], folder: Path) -> None:
    model = await texts().models.get(folder)
    long = asyncio.create_task(model.encode(["hello the " * 200_000], tenant=ANONYMOUS))
    await asyncio.sleep(0.01)
    assert await said(model, "hello") == "hello"
    assert not long.done()
    assert (await long).prompts[0].num_tokens > 200_000


@pytest.mark.parametrize("text", ["hello the " * 20_000, "hello the " * 1000], ids=["long", "short"])
async def test_another_tenants_text_does_not_wait_for_all_of_one_tenants(
    texts: Callable[..., Texts], folder: Path, text: str
) -> None:
    model = await texts(long_texts_at_once=1, inline_texts_at_once=1).models.get(folder)
    greedy, other = Tenant("greedy", b"1"), Tenant("other", b"2")
    many = [asyncio.create_task(model.encode([text], tenant=greedy)) for _ in range(10)]
    await asyncio.sleep(0)
    assert (await model.encode([text], tenant=other)).prompts
    assert sum(each.done() for each in many) <= 2
    await asyncio.gather(*many)


async def test_work_on_a_long_text_ends_when_nobody_wants_it(
    texts: Callable[..., Texts], folder: Path
) -> None:
    here = texts()
    model = await here.models.get(folder)
    long = asyncio.create_task(model.encode(["hello the " * 400_000], tenant=ANONYMOUS))
    await asyncio.to_thread(until, here.copies, "a copy for the long text")
    long.cancel()
    await asyncio.to_thread(until, lambda: not here.copies(), "the end of the copy")
    assert await said(model, "hello") == "hello"


async def test_a_copy_that_is_killed_twice_fails_its_own_text(
    texts: Callable[..., Texts], folder: Path
) -> None:
    here = texts()
    model = await here.models.get(folder)
    long = asyncio.create_task(model.encode(["hello the " * 400_000], tenant=ANONYMOUS))
    for _ in range(2):
        await asyncio.to_thread(until, here.copies, "a copy for the long text")
        [copy] = here.copies()
        copy.send_signal(signal.SIGKILL)
        await asyncio.to_thread(copy.wait, 20)
    with pytest.raises(InvalidRequestError, match="twice"):
        await long
    assert len(here.processes()) == 1


async def test_the_least_recently_used_process_ends_beyond_the_bound(
    texts: Callable[..., Texts], tmp_path: Path
) -> None:
    here = texts(tokenizers_cached=2)
    folders = [write_model_folder(tmp_path / str(i), byte_level_tokenizer()) for i in range(3)]
    first = await here.models.get(folders[0])
    for each in folders[1:]:
        await here.models.get(each)
    await asyncio.to_thread(until, lambda: len(here.processes()) == 2, "two processes")
    # Whoever still has the first one may go on with it, and leaves nothing behind.
    assert await said(first, "hello") == "hello"
    await asyncio.to_thread(until, lambda: len(here.processes()) == 2, "two processes again")


async def test_the_process_of_a_folder_that_is_dropped_ends(
    texts: Callable[..., Texts], folder: Path, tmp_path: Path
) -> None:
    here = texts()
    model = await here.models.get(folder)
    waiting = asyncio.create_task(said(model, chat("slow")))
    await asyncio.sleep(0)
    here.models.drop(folder)
    assert await waiting == "slow"
    await asyncio.to_thread(until, lambda: not here.processes(), "the end of the process")
    loading = asyncio.create_task(here.models.get(write_model_folder(tmp_path / "n", byte_level_tokenizer())))
    await asyncio.sleep(0)
    here.models.drop(tmp_path / "n")
    await loading
    await asyncio.to_thread(until, lambda: not here.processes(), "the end of the other process")


async def test_a_starter_that_is_killed_is_started_again(texts: Callable[..., Texts], folder: Path) -> None:
    here = texts()
    model = await here.models.get(folder)
    starter, [process] = here.starter, here.processes()
    starter.kill()
    await asyncio.to_thread(until, lambda: not process.is_running(), "the end of what it started")
    assert await said(model, "hello") == "hello"


NO_SECOND_PROCESS = """
import os, socket, sys
from router.text_process.__main__ import main

fork, num_forks = os.fork, 0
def fork_at_first():
    global num_forks
    num_forks += 1
    if num_forks != 1:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = fork_at_first
main(socket.socket(fileno=int(sys.argv[1])))
"""


class StarterWithoutProcesses(TextStarter):
    """A starter on a system that has no more than one process for it, and none for long texts."""

    command = (sys.executable, "-c", NO_SECOND_PROCESS)


async def test_where_no_more_processes_can_be_started_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    starter = StarterWithoutProcesses()
    models = TextModels(RouterConfig(), starter)
    try:
        model = await models.get(folder)
        with pytest.raises(InternalError, match="cannot be started"):
            await models.get(write_model_folder(tmp_path / "other", byte_level_tokenizer()))
        with pytest.raises(OverloadedError, match="long text"):
            await model.encode(["hello " * 10_000], tenant=ANONYMOUS)
        assert await said(model, "hello") == "hello"
    finally:
        models.close()
        starter.close()


async def test_a_starter_that_cannot_be_started_is_an_error_of_ours(folder: Path) -> None:
    starter = TextStarter()
    starter.command = ("/no/such/program",)
    with pytest.raises(InternalError, match="cannot be started"):
        await TextModels(RouterConfig(), starter).get(folder)


CHILD = """
import asyncio, sys
from pathlib import Path
from router.request.bounds import RouterConfig
from router.tenancy.tenant import ANONYMOUS
from router.text.starter import TextStarter
from router.text.text_models import TextModels
from router.text.prompts import ChatPrompt
import mooring.server.server

async def main():
    models = TextModels(RouterConfig(), TextStarter())
    model = await models.get(Path(sys.argv[1]))
    await model.encode(["hello"], tenant=ANONYMOUS)
    print(*(name for name in ("jinja2", "router.text_process") if name in sys.modules), flush=True)
    await model.encode([ChatPrompt(({"role": "user", "content": "spin"},))], tenant=ANONYMOUS)

asyncio.run(main())
"""


def test_all_end_with_the_server_which_never_imports_what_they_need(folder: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    with server, server.stdout:
        imported = server.stdout.readline()
        started = psutil.Process(server.pid).children(recursive=True)
        server.kill()
    assert imported.split() == []
    assert len(started) == 2
    until(lambda: not any(each.is_running() for each in started), "the end of all")
