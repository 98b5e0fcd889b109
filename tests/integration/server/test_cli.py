"""Every `mooring` command through the installed script, against a real server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
from support.certificates import make_certificates
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

import mooring.cli
from mooring import __version__
from mooring.cli.connection import Connection
from mooring.errors import MooringError
from mooring.server.data_dir import own_data_dir, published

pytestmark = pytest.mark.integration

MOORING = Path(sys.executable).with_name("mooring")


class Shell:
    """Runs ``mooring`` as a user of one data folder does, who has told it nothing else."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MOORING_")},
            "XDG_CONFIG_HOME": str(server.data_dir / "no-config"),
            "MOORING_DATA_DIR": str(server.data_dir),
            "COLUMNS": "160",
        }

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The installed script in a process of its own."""
        return subprocess.run(
            [MOORING, *arguments], env=self._environment, capture_output=True, text=True, timeout=30
        )

    @contextlib.contextmanager
    def begun(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The installed script, running; killed at the end."""
        process = subprocess.Popen(
            [MOORING, *arguments], env=self._environment, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(
        self, *arguments: str, code: int = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What the script calls, in this process: that takes a tenth of the time."""
        out, err = io.StringIO(), io.StringIO()
        returned = 0
        with (
            mock.patch.dict(os.environ, {**self._environment, **(environment or {})}, clear=True),
            mock.patch.object(sys, "argv", ["mooring", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                mooring.cli.main()
            except SystemExit as end:
                returned = int(end.code or 0)
        assert returned == code, out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess(["mooring", *arguments], code, out.getvalue(), err.getvalue())

    def said(self, *arguments: str) -> str:
        """What it prints; nothing on stderr."""
        ended = self.run(*arguments)
        assert ended.stderr == ""
        return ended.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.said(*arguments, "--json"))

    def complaint(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """Its one line on stderr."""
        ended = self.run(*arguments, code=1, environment=environment)
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert line.startswith("mooring: ")
        return line


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    root = tmp_path_factory.mktemp("cli")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(
        root / "data", {"first": write_checkpoint(root / "first")}, flags, NULL_ENVIRONMENT
    ) as server:
        yield Shell(server)


COMMANDS = [
    [],
    ["serve"],
    ["models"],
    ["models", "register"],
    ["models", "list"],
    ["models", "show"],
    ["models", "delete"],
    ["models", "registrations"],
    ["models", "cancel"],
    ["models", "resume"],
    ["deployments"],
    ["deployments", "list"],
    ["deployments", "show"],
    ["deployments", "create"],
    ["deployments", "update"],
    ["deployments", "delete"],
    ["deployments", "sleep"],
    ["deployments", "wake"],
    ["tenants"],
    ["tenants", "list"],
    ["tenants", "create"],
    ["tenants", "update"],
    ["tenants", "delete"],
    ["tenants", "keys"],
    ["tenants", "keys", "create"],
    ["tenants", "keys", "list"],
    ["tenants", "keys", "revoke"],
    ["classes"],
    ["classes", "list"],
    ["classes", "create"],
    ["classes", "update"],
    ["classes", "delete"],
    ["status"],
    ["queue"],
    ["slo"],
    ["events"],
    ["plan"],
    ["plan", "memory"],
    ["plan", "fit"],
    ["bench"],
    ["bench", "abuse"],
    ["bench", "batching"],
    ["bench", "router"],
    ["bench", "slo"],
    ["bench", "ui"],
    ["ui"],
    ["bench", "fairness"],
    ["bench", "isolation"],
    ["bench", "sharing"],
    ["bench", "gpu"],
    ["bench", "residency"],
    ["bench", "soak"],
]


def test_every_command_has_help_that_says_what_it_does(shell: Shell) -> None:
    for command in COMMANDS:
        page = shell.said(*command, "--help")
        usage, *rest = [line.strip() for line in page.splitlines() if line.strip()]
        assert usage.startswith("Usage: " + " ".join(["mooring", *command])), page
        assert rest[0].endswith(".") or len(rest[0]) > 60, f"{command} does not say what it does: {rest[0]}"
    assert sorted(map(tuple, COMMANDS)) == sorted(names(typer.main.get_command(mooring.cli.app)))


def names(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a command and all below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from names(below, (*path, name))


STATUS_KEYS = {"devices", "workers", "deployments", "queues", "ledger_mismatches"}


def test_the_installed_script(shell: Shell) -> None:
    assert shell.script("--version").stdout == f"mooring {__version__}\n"
    status = shell.script("status", "--json")
    assert (status.returncode, status.stderr) == (0, "")
    assert json.loads(status.stdout).keys() == STATUS_KEYS
    refused = shell.script("deployments", "show", "nothing")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "mooring: there is no deployment 'nothing'\n"
    assert shell.script("status", "--jsno").returncode == 2


def test_models(shell: Shell, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", 1)
    ended = shell.run("models", "register", "second", str(source))
    assert ended.stdout == "second is registered.\n"
    found = json.loads(shell.run("models", "register", "third", str(source), "--json", "--no-deploy").stdout)
    assert (found["name"], found["state"], found["error"]) == ("third", "done", None)
    (version,) = shell.json("models", "show", "third")
    assert version["source"] == str(source)
    assert version["digest"][:12] in shell.said("models", "show", "third")
    listed = {model["name"]: model["deployments"] for model in shell.json("models", "list")}
    assert listed == {"first": ["first"], "second": ["second"], "third": []}
    assert "third" in shell.said("models", "list")
    assert shell.said("models", "delete", "third") == "third is deleted.\n"
    assert "deployment 'second'" in shell.complaint("models", "delete", "second")
    started = shell.run("models", "register", "second", str(source), "--no-wait").stdout
    assert started.startswith("Registration ")


def test_a_registration_that_fails_says_why(shell: Shell, tmp_path: Path) -> None:
    ended = shell.run("models", "register", "bad", "nowhere", code=1)
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("mooring: bad is not registered: there is nothing at ")
    ended = shell.run("models", "register", "bad", str(tmp_path), "--json", code=1)
    assert json.loads(ended.stdout)["state"] == "failed"
    assert ended.stderr.startswith("mooring: bad is not registered: ")
    assert "letters" in shell.complaint("models", "register", "a b", str(tmp_path))


def test_registrations_are_listed_cancelled_and_resumed(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "later"
    shell.run("models", "register", "later", str(source), code=1)
    newest = shell.json("models", "registrations")[-1]
    assert (newest["name"], newest["state"]) == ("later", "failed")
    assert newest["id"] in shell.said("models", "registrations")
    assert "it is failed" in shell.complaint("models", "cancel", newest["id"])
    again = shell.run("models", "resume", newest["id"], code=1).stderr.splitlines()
    assert again[-1].startswith("mooring: later is not registered: there is nothing at ")
    write_checkpoint(source, 5)
    assert shell.run("models", "resume", newest["id"]).stdout == "later is registered.\n"
    assert "is done" in shell.complaint("models", "resume", newest["id"])
    shell.said("deployments", "delete", "later")
    shell.said("models", "delete", "later")


def test_deployments(shell: Shell) -> None:
    made = shell.said("deployments", "create", "alias", "first", "--priority", "2", "--kv-guarantee", "4MiB")
    assert made == "alias is deployed.\n"
    policy = shell.json("deployments", "show", "alias")["policy"]
    assert (policy["priority"], policy["kv_guarantee_bytes"], policy["pinned"]) == (2, 4 << 20, False)
    shell.said("deployments", "update", "alias", "--pinned", "--max-model-len", "100", "--version", "1")
    policy = shell.json("deployments", "show", "alias")["policy"]
    assert (policy["priority"], policy["pinned"], policy["max_model_len"]) == (2, True, 100)
    shell.said("deployments", "update", "alias", "--no-pinned")
    lines = [line.split() for line in shell.said("deployments", "show", "alias").splitlines()]
    assert ["pinned", "no"] in lines
    assert ["kv_guarantee_bytes", "4194304"] in lines
    assert shell.said("deployments", "wake", "alias") == "alias is resident.\n"
    assert {d["name"]: d["residency"] for d in shell.json("deployments", "list")}["alias"] == "resident"
    assert shell.said("deployments", "sleep", "alias") == "alias sleeps.\n"
    assert "warm" in shell.said("deployments", "list")
    assert shell.said("deployments", "delete", "alias") == "alias is deleted.\n"

    assert "nothing to change" in shell.complaint("deployments", "update", "alias")
    assert "'alias'" in shell.complaint("deployments", "delete", "alias")
    assert "'nothing'" in shell.complaint("deployments", "create", "x", "nothing")
    usage = shell.run("deployments", "create", "x", "first", "--kv-cap", "much", code=2)
    assert "--kv-cap" in usage.stderr


def test_tenants_and_keys(shell: Shell) -> None:
    assert "acme is created" in shell.said("tenants", "create", "acme")
    made = shell.run("tenants", "keys", "create", "acme", "--name", "laptop")
    assert made.stdout.endswith("\n"), "a pipe gets a whole line"
    (key,) = made.stdout.splitlines()
    assert key.startswith("mk-"), "stdout is the key alone, so that a script can take it"
    assert "cannot be shown again" in made.stderr
    (listed,) = shell.json("tenants", "keys", "list", "acme")
    assert key.startswith(listed["prefix"])
    assert listed["name"] == "laptop"
    assert key not in shell.said("tenants", "keys", "list", "acme")
    assert shell.json("tenants", "list")[0]["keys"] == 1
    assert "revoke" in shell.complaint("tenants", "delete", "acme")
    shell.said("tenants", "keys", "revoke", "acme", listed["prefix"])
    assert shell.json("tenants", "keys", "list", "acme")[0]["revoked"]
    second = shell.json("tenants", "keys", "create", "acme")
    shell.said("tenants", "keys", "revoke", "acme", second["prefix"])
    assert shell.said("tenants", "delete", "acme") == "Tenant acme is deleted.\n"
    assert shell.said("tenants", "list") == "There are no tenants.\n"


def test_classes_and_how_they_are_kept(shell: Shell) -> None:
    assert shell.said("classes", "list") == "There are no SLO classes.\n"
    made = shell.said(
        "classes", "create", "gold", "--ttft-target-s", "60", "--tpot-target-s", "5", "--goal", "0.9"
    )
    assert made == "SLO class gold is created.\n"
    assert shell.said("classes", "update", "gold", "--priority", "-3") == "SLO class gold is changed.\n"
    shell.said("tenants", "create", "golden")
    assert shell.said("tenants", "update", "golden", "--slo-class", "gold") == "Tenant golden is changed.\n"
    (found,) = shell.json("classes", "list")
    assert found == {
        "name": "gold",
        "ttft_target_s": 60.0,
        "tpot_target_s": 5.0,
        "goal": 0.9,
        "priority": -3,
        "on_miss": "batch",
        "tenants": ["golden"],
    }
    assert shell.said("classes", "list").splitlines()[1].split() == (
        ["gold", "60", "s", "5", "s", "0.9", "-3", "batch", "golden"]
    )
    assert "gold" in shell.said("tenants", "list")
    assert "'golden'" in shell.complaint("classes", "delete", "gold")
    both = shell.complaint("tenants", "update", "golden", "--slo-class", "gold", "--best-effort")
    assert "either --slo-class or --best-effort" in both
    assert "nothing to change" in shell.complaint("tenants", "update", "golden")
    shell.said("tenants", "update", "golden", "--weight", "2.5")
    shell.said("tenants", "create", "silver", "--weight", "0.5")
    assert [each["weight"] for each in shell.json("tenants", "list")] == [2.5, 0.5]
    assert shell.said("tenants", "list").splitlines()[1].split()[:3] == ["golden", "gold", "2.5"]
    shell.said("tenants", "update", "silver", "--allow-slo-class", "gold")
    assert [each["allowed_slo_classes"] for each in shell.json("tenants", "list")] == [[], ["gold"]]
    assert shell.said("tenants", "list").splitlines()[2].split()[:3] == ["silver", "gold", "0.5"]
    both = ("--allow-slo-class", "gold", "--no-allowed-slo-classes")
    assert "either --allow-slo-class" in shell.complaint("tenants", "update", "silver", *both)
    shell.said("tenants", "update", "silver", "--no-allowed-slo-classes")
    assert [each["allowed_slo_classes"] for each in shell.json("tenants", "list")] == [[], []]
    assert "'weight'" in shell.complaint("tenants", "update", "silver", "--weight", "0")
    shell.said("tenants", "delete", "silver")
    assert "nothing to change" in shell.complaint("classes", "update", "gold")
    assert "'ttft_target_s'" in shell.complaint("classes", "create", "empty")
    assert "'goal'" in shell.complaint("classes", "update", "gold", "--goal", "2")
    shell.said("classes", "update", "gold", "--on-miss", "refuse")
    assert shell.json("classes", "list")[0]["on_miss"] == "refuse"

    (key,) = shell.run("tenants", "keys", "create", "golden").stdout.splitlines()
    complete(shell, key)
    (entry,) = [each for each in shell.json("slo") if each["tenant"] == "golden"]
    assert (entry["slo_class"], entry["model"], entry["goal"]) == ("gold", "first", 0.9)
    (line,) = [line.split() for line in shell.said("slo").splitlines() if line.startswith("golden")]
    assert line == ["golden", "gold", "first", "90.00%", "100.00%", "1", "100.00%", "1", "100.00%"]
    assert entry["misses"] == []
    shell.said("classes", "update", "gold", "--ttft-target-s", "0.000001", "--on-miss", "batch")
    (key,) = shell.run("tenants", "keys", "create", "golden").stdout.splitlines()  # one not remembered yet
    complete(shell, key)
    (entry,) = [each for each in shell.json("slo") if each["tenant"] == "golden"]
    (miss,) = entry["misses"]
    table = shell.said("slo", "--misses", "1")
    for word in ("misses", "wake", "prefill", miss["request_id"], f"{miss['prefill_s']:.3f} s"):
        assert word in table

    for each in shell.json("tenants", "keys", "list", "golden"):
        shell.said("tenants", "keys", "revoke", "golden", each["prefix"])
    shell.said("tenants", "update", "golden", "--best-effort")
    assert shell.said("classes", "delete", "gold") == "SLO class gold is deleted.\n"
    shell.said("tenants", "delete", "golden")


def complete(shell: Shell, key: str) -> None:
    body = {"model": "first", "prompt": "hello", "max_tokens": 3}
    headers = {"authorization": f"Bearer {key}"}
    answer = shell.server.client.post(f"{shell.server.http_url}/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


def test_events_and_why(shell: Shell) -> None:
    name = shell.json("deployments", "list")[0]["name"]
    shell.said("deployments", "wake", name)
    events = shell.json("events", "--limit", "1000")
    assert {"load", "ready", "kv_lease", "worker"} <= {each["kind"] for each in events}
    assert [each["id"] for each in events] == sorted((each["id"] for each in events), reverse=True)
    shown = shell.said("events", "--deployment", name, "--kind", "load", "--limit", "1")
    assert name in shown
    assert "kv_guarantee" in shown
    assert "Nothing was decided yet." in shell.said("events", "--deployment", "nobody")
    assert "Invalid 'kind" in shell.complaint("events", "--kind", "nonsense")
    why = shell.json("status", "--why", name)["why"]
    assert (why["name"], why["way_in"]["verdict"]) == (name, "there")
    table = shell.said("status", "--why", name)
    assert "decisions" in table
    assert "to come in now" not in table
    shell.said("deployments", "sleep", name)
    assert "to come in now" in shell.said("status", "--why", name)
    assert "there is no deployment" in shell.complaint("status", "--why", "nobody")


def test_events_are_followed(shell: Shell) -> None:
    name = shell.json("deployments", "list")[0]["name"]
    with shell.begun("events", "--follow", "--json", "--kind", "sleep", "--limit", "1") as following:
        time.sleep(1.0)
        shell.said("deployments", "wake", name)
        shell.said("deployments", "sleep", name)
        assert following.stdout is not None
        while True:
            event = json.loads(following.stdout.readline())
            assert event["kind"] == "sleep"
            if event["deployment"] == name:
                break


def test_status(shell: Shell) -> None:
    status = shell.json("status")
    assert status.keys() == STATUS_KEYS
    assert status["workers"][0]["pid"] in shell.server.worker_pids()
    table = shell.said("status")
    for word in (
        "devices",
        "cpu: ",
        "of 64 MiB",
        "% busy",
        "queues",
        "workers",
        "null-0",
        "deployments",
        "first",
    ):
        assert word in table


def test_queue(shell: Shell) -> None:
    (queue,) = shell.json("queue")
    assert (queue["device"], queue["policy"], queue["shares"], queue["first"]) == ("cpu", "slo", [], [])
    names, row = (line.split() for line in shell.said("queue").splitlines())
    assert names[:4] == ["device", "policy", "in", "time"]
    assert row[:4] == ["cpu", "slo", "0", "0"]


def test_what_the_server_is_not_told_is_found_by_itself_and_what_is_wrong_is_named(
    shell: Shell, tmp_path: Path
) -> None:
    server = shell.server
    elsewhere = {"MOORING_DATA_DIR": str(tmp_path)}
    assert "admin key cannot be read" in shell.complaint("status", environment=elsewhere)
    no_server = shell.complaint("status", environment={**elsewhere, "MOORING_ADMIN_KEY": "k"})
    assert "no server uses the data folder" in no_server
    remote = {**elsewhere, "MOORING_SERVER": server.http_url, "MOORING_ADMIN_KEY": server.admin_key}
    assert shell.run("status", "--json", environment=remote).stdout.startswith("{")
    wrong = {**remote, "MOORING_ADMIN_KEY": "wrong"}
    assert "admin key" in shell.complaint("status", environment=wrong)
    assert "mooring serve" in shell.complaint("--server", "http://127.0.0.1:1", "status")
    assert "not an address" in shell.complaint("--server", "http://a:b", "status")
    unknown = shell.complaint("status", environment={"MOORING_HTTP_PROT": "1"})
    assert "did you mean MOORING_HTTP_PORT?" in unknown
    assert shell.run("--data-dir", str(server.data_dir), "status", environment=elsewhere).stdout


def test_the_admin_key_goes_to_the_server_and_to_no_proxy(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxied = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), address)
        for named in ((), ("--server", shell.server.http_url)):
            assert shell.run(*named, "status", environment=proxied).stdout
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_the_folder_s_own_server_is_reached_without_a_proxy_at_any_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    umask = os.umask(0o077)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.server.server_address[1])  # type: ignore[index]
            self.send_response(HTTPStatus.NO_CONTENT)
            self.end_headers()

    (tmp_path / "admin.key").touch(0o600)
    (tmp_path / "admin.key").write_text("key")
    name = socket.gethostname()
    with (
        ThreadingHTTPServer((socket.gethostbyname(name), 0), Answer) as server,
        ThreadingHTTPServer(("127.0.0.1", 0), Answer) as proxy,
        own_data_dir(tmp_path),
        published(tmp_path, {"http": f"http://{name}:{server.server_port}"}),
    ):
        monkeypatch.delenv("MOORING_SERVER", raising=False)
        for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
        for each in (server, proxy):
            threading.Thread(target=each.serve_forever, args=(0.05,)).start()
        try:
            Connection(None, tmp_path).get("/status")
        finally:
            server.shutdown()
            proxy.shutdown()
            os.umask(umask)
        assert asked == [server.server_port]


def test_a_server_with_tls_is_known_by_its_certificate(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    client = tmp_path / "client.pem"
    client.write_text(made.client.read_text() + made.client_key.read_text())
    elsewhere = {"MOORING_DATA_DIR": str(tmp_path / "data")}
    command = [
        MOORING, "serve", "--engine", "null", "--memory-budget", "64MiB", "--http-port", "0", "--grpc-port", "0",
        "--tls-certificate", made.server, "--tls-key", made.server_key, "--tls-client-ca", made.authority,
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(command, env={**os.environ, **elsewhere}, stdout=log, stderr=log)
    try:
        published = tmp_path / "data" / "server.json"
        deadline = time.monotonic() + 60
        while not published.exists():
            assert serving.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with mock.patch.dict(os.environ, elsewhere):
            assert Connection(None, None, client).get("/status")["devices"]
            with pytest.raises(MooringError):  # no certificate of the client's
                Connection(None, None).get("/status")
            addresses = json.loads(published.read_text())
            published.write_text(json.dumps({**addresses, "tls_certificate": str(made.client)}))
            with pytest.raises(MooringError):  # the server's certificate is not the one that is expected
                Connection(None, None, client).get("/status")
    finally:
        serving.terminate()
        serving.wait(30)


def test_a_command_that_is_none_is_a_usage_error(shell: Shell) -> None:
    assert "No such command" in shell.run("modles", code=2).stderr
    assert "Missing argument" in shell.run("models", "register", "x", code=2).stderr
    assert "NAME=SOURCE" in shell.run("serve", "--model", "x", code=2).stderr
    assert "512MiB" in shell.run("serve", "--memory-budget", "lots", code=2).stderr
