"""What importing `flows` does to the environment, in a process of its own."""

import json
import sys
from pathlib import Path

import pytest
import tiny

SHOW = """
import json, os
import flows.pipeline
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED
print(json.dumps([dict(os.environ), str(PREFECT_HOME.value()), PREFECT_SERVER_ANALYTICS_ENABLED.value()]))
"""


def test_nothing_exported_brings_telemetry_or_a_home_elsewhere_back(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = done.parent / "home" / ".prefect"
    monkeypatch.setenv("PREFECT_HOME", str(elsewhere))
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "7")
    environment, home, analytics = json.loads(tiny.command(done, sys.executable, "-c", SHOW).splitlines()[-1])
    assert home == environment["PREFECT_HOME"] == str(done / ".deepcv/prefect")
    assert analytics is False
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "7"  # no switch of ours
    assert not elsewhere.exists()


def test_no_proxy_stands_before_the_servers_of_this_machine(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")
    code = """
import flows
from urllib.request import proxy_bypass
print([proxy_bypass(host) for host in ("127.0.0.1:4200", "intranet.example", "elsewhere.example")])
"""
    assert tiny.command(done, sys.executable, "-c", code).splitlines()[-1] == "[True, True, False]"
