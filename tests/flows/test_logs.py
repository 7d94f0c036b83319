"""A stage outlives the server that its progress is shown on."""

import logging

import pytest
from httpx import ConnectError

from flows import logs
from flows.logs import StageLog


def test_a_server_that_died_does_not_end_the_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[float] = []

    def refuse(_artifact: object, percent: float) -> None:
        asked.append(percent)
        raise ConnectError("connection refused")

    monkeypatch.setattr(logs, "get_run_logger", lambda: logging.getLogger("of a run"))
    monkeypatch.setattr(logs, "create_progress_artifact", lambda *_, **__: "artifact")
    monkeypatch.setattr(logs, "update_progress_artifact", refuse)
    log = StageLog("train", commands=1)
    log.command()
    log.progress("train:  40%|####")
    log.ran()
    assert asked == [40.0]  # each attempt of Prefect's client takes a minute: one is enough
    assert "train: progress is no longer shown: connection refused" in caplog.text
