"""A stage outlives the server that its progress is shown on."""

import logging
from pathlib import Path

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


def test_pictures_are_not_sent_to_a_server_that_died_nor_if_huge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[str] = []

    def refuse(data: str, **_: object) -> None:
        sent.append(data)
        raise ConnectError("connection refused")

    monkeypatch.setattr(logs, "get_run_logger", lambda: logging.getLogger("of a run"))
    monkeypatch.setattr(logs, "create_image_artifact", refuse)
    log = StageLog("draw", commands=1)
    small, huge = tmp_path / "small.png", tmp_path / "huge.png"
    small.write_bytes(b"PNG")
    with huge.open("wb") as file:
        file.truncate(logs.MAX_PICTURE_BYTES + 1)
    log.picture(huge, name="huge.png", again=True)
    assert sent == []
    log.picture(small, name="small.png", again=True)
    log.picture(small, name="small.png", again=True)
    assert sent == ["data:image/png;base64,UE5H"]
