"""Pages of other sites in a real browser, on a machine that runs a server without keys: they can neither read
from it, nor have it do anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.browser import Browser, Page
from support.running_server import RunningServer
from support.server_probes import check_idle, metric
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.integration

# Both are this machine to the browser. The second stands for an attacker's name whose address became ours after
# its page had loaded.
FOREIGN, REBOUND = "foreign.test", "rebound.test"

PROMPT = "hello"
MESSAGES = [{"role": "user", "content": PROMPT}]
TENSOR = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}
POSTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "a", "max_tokens": 3, "prompt": PROMPT},
    "/v1/chat/completions": {"model": "a", "max_tokens": 3, "messages": MESSAGES},
    "/tokenize": {"model": "a", "prompt": PROMPT},
    "/v2/models/a/generate": {"max_tokens": 3, "text_input": PROMPT},
    "/v2/models/a/generate_stream": {"max_tokens": 3, "stream": True, "text_input": PROMPT},
    "/v2/models/a/infer": {"inputs": [TENSOR]},
    "/v2/repository/models/a/unload": {},
    "/admin/v1/tenants": {"name": PROMPT},
}
GETS = ("/v1/models", "/v2/models/a", "/admin/v1/models", "/metrics", "/openapi.json", "/health/ready")
FORMS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")

# A text, and bytes without a type, go to any server at once; before it sends JSON a browser asks.
FETCH = """
async function attempt(path, options) {
  try {
    const answer = await fetch(base + path, options);
    return [answer.status, await answer.text()];
  } catch (error) { return ['failed', '']; }
}
async function fetchAll() {
  const found = {};
  for (const path of gets)
    for (const mode of ['cors', 'no-cors']) found[`GET ${path} ${mode}`] = await attempt(path, {mode});
  for (const [path, text] of Object.entries(posts)) {
    const json = {'content-type': 'application/json'};
    found[`POST ${path} json`] = await attempt(path, {method: 'POST', body: text, headers: json});
    const bodies = {text, bytes: new Blob([text]), typed: new Blob([text], {type: 'application/json'})};
    for (const [kind, body] of Object.entries(bodies))
      for (const mode of ['cors', 'no-cors'])
        found[`POST ${path} ${kind} ${mode}`] = await attempt(path, {method: 'POST', body, mode});
  }
  return found;
}
"""
SUBMIT = """
function submit(path, type, text) {
  return new Promise((done) => {
    const [frame, form, field] = ['iframe', 'form', 'input'].map((tag) => document.createElement(tag));
    frame.name = `frame-${Math.random()}`;
    // In text/plain a form says name=value: JSON, if the sign falls into a string.
    [field.name, field.value] = [text.slice(0, text.indexOf(prompt)), text.slice(text.indexOf(prompt))];
    Object.assign(form, {action: base + path, method: 'post', enctype: type, target: frame.name});
    form.append(field);
    document.body.append(frame, form);
    frame.onload = () => done(frame.contentDocument ? frame.contentDocument.body.innerText : '');
    form.submit();
  });
}
async function submitAll() {
  const found = {};
  for (const [path, text] of Object.entries(posts))
    if (text.includes(prompt) && !path.includes('stream'))
      for (const type of types) found[`${path} ${type}`] = await submit(path, type, text);
  return found;
}
"""
LISTEN = """
function listen(source) {
  return new Promise((done) => { source.onopen = () => done('open'); source.onerror = () => done('failed'); });
}
async function listenAll() {
  const socket = (base || location.origin).replace('http', 'ws') + '/v1/stream';
  return [await listen(new WebSocket(socket)), await listen(new EventSource(base + '/v1/stream'))];
}
"""


class _Site(BaseHTTPRequestHandler):
    """A site with one empty page."""

    def do_GET(self) -> None:
        page = b"<!doctype html><body></body>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of another site's page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{FOREIGN}:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("browsers")
    model = make_tiny_model(folder / "model")
    flags = ("--engine", "null", "--memory-budget", "256MiB")
    with RunningServer(folder / "data", {"a": model}, flags) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser({FOREIGN: "127.0.0.1", REBOUND: "127.0.0.1"}) as started:
        yield started


def port_of(server: RunningServer) -> str:
    return server.http_url.rpartition(":")[2]


def deeds(server: RunningServer) -> dict[str, Any]:
    """Everything that the server was asked to do, as far as it is known once nothing runs."""
    check_idle(server)
    counted = ("vllm:prompt_tokens_total", "vllm:request_success_total")
    [deployment] = server.admin("GET", "/deployments").json()
    return {
        **{name: metric(server, name) for name in counted},
        "enabled": deployment["policy"]["enabled"],
        "models": server.admin("GET", "/models").json(),
        "tenants": server.admin("GET", "/tenants").json(),
        "inferences": server.client.get(f"{server.http_url}/v2/models/a/stats").json(),
    }


def run(page: Page, base: str, script: str, call: str) -> Any:
    """What a page finds out, at its own site if ``base`` is empty."""
    names = {"base": base, "prompt": PROMPT, "gets": GETS, "types": FORMS}
    names["posts"] = {path: json.dumps(body) for path, body in POSTS.items()}
    given = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
    return page.run(f"(() => {{ {given} {script} return {call}(); }})()")


def test_a_page_of_the_server_itself_is_served(browser: Browser, server: RunningServer) -> None:
    """Shows that the other tests' attempts would succeed if nobody refused them."""
    before = deeds(server)
    page = browser.open(f"http://localhost:{port_of(server)}/health/live")
    found = run(page, "", FETCH, "fetchAll")
    assert found["GET /v1/models cors"][0] == 200
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v2/models/a/generate"):
        assert found[f"POST {path} json"][0] == 200
        assert found[f"POST {path} text cors"][0] != 200  # no page of ours sends JSON as text
    assert run(page, "", LISTEN, "listenAll")[0] == "open"
    assert deeds(server) != before


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_page_of_another_site_reads_nothing_and_starts_nothing(
    browser: Browser, server: RunningServer, site: str, name: str
) -> None:
    before = deeds(server)
    page = browser.open(site)
    base = f"http://{name}:{port_of(server)}"
    fetched = run(page, base, FETCH, "fetchAll")
    assert len(fetched) == 2 * len(GETS) + 7 * len(POSTS)
    # 0 is the status of an answer that the page is kept from, and "failed" no answer at all.
    assert {what: said for what, said in fetched.items() if said not in ([0, ""], ["failed", ""])} == {}
    submitted = run(page, base, SUBMIT, "submitAll")
    assert len(submitted) == 6 * len(FORMS)
    assert set(submitted.values()) == {""}
    assert run(page, base, LISTEN, "listenAll") == ["failed", "failed"]
    assert deeds(server) == before


def test_a_page_whose_name_became_ours_is_misdirected(browser: Browser, server: RunningServer) -> None:
    before = deeds(server)
    page = browser.open(f"http://{REBOUND}:{port_of(server)}/health/live")
    fetched = run(page, "", FETCH, "fetchAll")
    assert {what: said for what, said in fetched.items() if said[0] != 421} == {}
    assert not any("hello" in text or '"a"' in text for _, text in fetched.values())
    submitted = run(page, "", SUBMIT, "submitAll")
    assert len(submitted) == 6 * len(FORMS)
    assert [text for text in submitted.values() if not text.startswith('{"error"')] == []
    assert run(page, "", LISTEN, "listenAll") == ["failed", "failed"]
    assert deeds(server) == before
