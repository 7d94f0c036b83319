"""Curves for TensorBoard, read back from the bytes of its files."""

import errno
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from deepcv.stages import tensorboard
from deepcv.stages.tensorboard import TensorBoard
from deepcv.task import CLASSIFICATION
from deepcv.training.history import EpochRecord, Point


def record(epoch: int, more: float = 0.0) -> EpochRecord:
    return EpochRecord(epoch, 1 / epoch, 0.5, 2 / epoch, 1 - 1 / (epoch + 1) + more, 0.1)


def events(file: Path) -> Iterator[Event]:
    """The whole records of a file: length, its checksum, content, its checksum."""
    data, place = file.read_bytes(), 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        content = data[place + 12 : place + 12 + length]
        checksums = struct.unpack_from("<I", data, place + 8), data[place + 12 + length : place + 16 + length]
        if len(checksums[1]) < 4:
            return
        assert checksums[0][0] == masked_crc32c(data[place : place + 8])
        assert struct.unpack("<I", checksums[1])[0] == masked_crc32c(content)
        yield Event.FromString(content)
        place += 16 + length


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: file after file by name, a session's beginning drops the points from its step on."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        for event in events(file):
            if event.session_log.status == SessionLog.START:
                found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def check_shown(folder: Path, *records: EpochRecord) -> None:
    found = shown(folder)
    expected = [one.metrics(CLASSIFICATION) for one in records]
    assert found.keys() == expected[0].keys()
    for tag, points in found.items():
        assert [step for step, _ in points] == [one.epoch for one in records]
        assert [value for _, value in points] == pytest.approx([one[tag] for one in expected])


def test_a_killed_training_has_every_epoch_once(tmp_path: Path) -> None:
    """The first process wrote an epoch that its checkpoint has not, and was killed while it wrote the next."""
    folder = tmp_path / "toy-key"
    killed = TensorBoard(folder)
    for epoch in (1, 2, 3, 4):
        killed.epoch(record(epoch, more=9.0))
    killed.close()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    check_shown(folder, *(record(epoch, more=9.0) for epoch in (1, 2, 3)))
    second = TensorBoard(folder)
    for epoch in (1, 2, 3, 4, 5):
        second.epoch(record(epoch))
    second.close()
    assert len(list(folder.iterdir())) == 2
    check_shown(folder, *(record(epoch) for epoch in (1, 2, 3, 4, 5)))


def test_a_killed_training_has_every_point_within_epochs_once(tmp_path: Path) -> None:
    killed = TensorBoard(tmp_path)
    for step in (5, 10, 15):
        killed.point(Point(step, 9.0, {"lr": 0.1}))
    killed.epoch(record(1, more=9.0))
    killed.close()
    second = TensorBoard(tmp_path)
    for step in (5, 10, 15, 20):
        second.point(Point(step, 1 / step, {"lr": step / 100}))
    second.epoch(record(1))
    second.close()
    found = shown(tmp_path)
    assert found["step/train_loss"] == [(step, pytest.approx(1 / step)) for step in (5, 10, 15, 20)]
    assert found["step/lr"] == [(step, pytest.approx(step / 100)) for step in (5, 10, 15, 20)]
    assert found["val_loss"] == [(1, 2.0)]


def test_points_are_there_while_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "_FLUSH_S", -1.0)
    board = TensorBoard(tmp_path)
    board.epoch(record(1))
    check_shown(tmp_path, record(1))
    board.epoch(record(2))
    check_shown(tmp_path, record(1), record(2))


def test_nothing_of_it_fails_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def tell(folder: Path) -> str:
        board = TensorBoard(folder)
        for epoch in (1, 2):
            board.epoch(record(epoch))
        board.close()
        return capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        said = tell(tmp_path / "full")
    assert said == f"train: no more curves for TensorBoard in {tmp_path / 'full'}: [Errno 28] No space left on device\n"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
        said = tell(tmp_path / "missing")
    assert said.count("\n") == 1
    assert "tensorboardX" in said
    (tmp_path / "file").touch()
    assert tell(tmp_path / "file").count("\n") == 1
    assert tell(tmp_path / "fine") == ""
