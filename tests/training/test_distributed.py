"""Two real processes against one. They are started once and do everything in a row: importing torch costs most."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed_worker
import psutil
import pytest
import torch
import toys

from deepcv.data.augmentation import Augmentation, Recipe
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.crops import random_crops
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, open_shards
from deepcv.errors import DeepcvError
from deepcv.lifetime import lives
from deepcv.training import distributed, sharding
from deepcv.training.fit import fit
from deepcv.training.hardware import resolve
from deepcv.training.setup import set_up

CPU = torch.device("cpu")
HERE = Path(__file__).parent
LAUNCH = "from deepcv.training import distributed; distributed.launch(2, 'launched_module')"


def environment(**more: str) -> dict[str, str]:
    paths = [str(toys.REPOSITORY), str(HERE.parent), str(HERE)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo", **more}


@contextmanager
def started(*arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment(**more), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toys.write_shards(tmp_path_factory.mktemp("distributed"))
    toys.write_several_shards(folder / "several")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What distributed_worker.py found in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    worker = (str(HERE / "distributed_worker.py"), str(folder))
    with (
        started(*worker, RANK="0", LOCAL_RANK="0", **world) as one,
        started(*worker, RANK="1", LOCAL_RANK="1", **world) as two,
    ):
        for process in (one, two):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", distributed_worker.TRAININGS)
def test_two_processes_train_as_one_does(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    one, (two, other) = distributed_worker.trained(name, folder, 1), (rank[name] for rank in ranks)
    assert two["history"] == other["history"]
    assert two["weights"].keys() == one["weights"].keys()
    assert all(torch.equal(value, other["weights"][key]) for key, value in two["weights"].items())
    assert not two["own layers"]
    double = one["gradients"][0][0].dtype == torch.float64
    largest = max(float(gradient.abs().max()) for step in one["gradients"] for gradient in step)
    bound = 1e-10 if double else 1e-4 * largest
    for a, b in zip(one["gradients"], two["gradients"], strict=True):
        for gradient, shared in zip(a, b, strict=True):
            torch.testing.assert_close(shared, gradient, rtol=0, atol=bound)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, rtol=0, atol=1e-10 if double else 1e-4, msg=key)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-6 if double else 1e-3)  # float32 logits


def test_processes_judge_further_targets_together(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        last = rank[distributed_worker.FURTHER]["history"][-1]
        assert [name for name in last if "." in name] == ["val_numbers.größe/2.r2", "val_tags.bright.accuracy"]


def test_a_training_that_one_process_was_asked_to_end_goes_on_with_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        for kind in ("resumed", "resumed, replicated", "resumed, sharded"):
            assert rank[kind] == {
                "told": [] if number else [1, 2, 3], "checkpoints": ["checkpoint_3.pt", "checkpoint_4.pt"],
                "same": True, "history": True, "type": "Classifier",
            }  # fmt: skip


def shapes(content: Any) -> Any:
    """What a file holds, with the shapes of its tensors instead of their values."""
    if isinstance(content, dict):
        return {key: shapes(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [shapes(value) for value in content]
    return tuple(content.shape) if isinstance(content, torch.Tensor) else type(content)


@pytest.mark.usefixtures("ranks")
def test_what_a_sharded_training_writes_is_what_an_unsharded_one_does(folder: Path) -> None:
    one, sharded = (folder / name for name in ("replicated", "sharded"))
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.pt"))
    assert names == sorted(str(path.relative_to(sharded)) for path in sharded.rglob("*.pt"))
    assert len(names) == 4
    for name in names:
        whole, spread = (torch.load(root / name, weights_only=True) for root in (one, sharded))
        assert shapes(spread) == shapes(whole)
        for key in ("model", "ema", "state_dict"):
            for a, b in zip(whole.get(key, {}).values(), spread.get(key, {}).values(), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_each_process_holds_its_share_and_steps_as_the_whole(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["optimizers"] == dict.fromkeys(sharding._ELEMENTWISE, True)
        assert rank["spread"]["stepped"] == [False, True]
        assert "diverged in epoch 1 (loss inf)" in rank["spread"]["diverged"]
    for of in (0, 1):  # weights, and the averages of their gradients
        held = [rank["spread"]["held"][of] for rank in ranks]
        assert sum(held) == ranks[0]["spread"]["whole"]
        assert max(held) < 0.6 * sum(held)


def test_a_parameter_of_a_single_number_cannot_be_shared_out(folder: Path) -> None:
    setup = set_up(toys.network(folder), open_shards(folder), toys.config())
    setup.classifier.network.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    with pytest.raises(DeepcvError, match=r"network\.scale is a single number, .*; set train\.fsdp to false"):
        sharding.shard(setup.classifier, "cpu", 2)


@pytest.mark.parametrize(("changes", "says"), [
    ({"processes": 1}, r"train\.fsdp .* over processes, but there is one; set train\.processes to 2 or more, or"),
    ({"compile": True}, r"train\.compile .* set one of the two to false"),
    ({"optimizer": "muon"}, r"train\.optimizer: muon may look at whole tensors, .*; take adamw, sgd or torch/"),
    ({"optimizer": "torch/Adafactor"}, r"train\.optimizer: torch/Adafactor may look"),
    ({"optimizer": "timm/lamb"}, r"train\.optimizer: timm/lamb may look .*, or set train\.fsdp to false"),
])  # fmt: skip
def test_what_cannot_be_sharded_says_so_before_the_first_step(changes: dict[str, Any], says: str, folder: Path) -> None:
    with pytest.raises(DeepcvError, match=says):
        fit(toys.network(folder), open_shards(folder), toys.config(**{"processes": 2, "fsdp": True, **changes}))


@pytest.mark.parametrize(("what", "says"), [
    ("diverged", r"^DivergedError: training diverged in epoch 1 \(loss (nan|inf)\); lower train\.lr"),
    ("compares", r"train\.losses compares the images of a batch, .* set train\.processes to 1"),
    ("batch", r"batch of 7 images .* 2 processes; set train\.batch_size to a multiple of 2, of at most the 24 images"),
    ("count", r"train\.processes is 3, but 2 run; set train\.processes to 2"),
    ("layer", r"network\.mean: LayerMeanBatchNorm would see the share of one process .*; set train\.processes to 1"),
    ("folders", r"different checkpoints, of the steps 0, 9; all need one common folder"),
    ("model", r"weight has become another in each process"),
    ("equal model", r"^$"),
])  # fmt: skip
def test_every_process_says_what_is_wrong(what: str, says: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert re.search(says, rank["errors"][what]), rank["errors"][what]


def test_what_processes_tell_each_other(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["any"] == [(False, True), (False, False)]
        assert rank["by_rows"] == [[[4.0 * row, 4.0 * row + 2] for row in range(n)] for n in (1, 2, 5)]


def test_one_process_alone_has_no_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DeepcvError, match=r"train\.processes is 2, but 1 runs; .* `torchrun --standalone --nproc-per-node 2`"
    ):
        fit(toys.network(folder), open_shards(folder), toys.config(processes=2))
    assert distributed.join(1, "cpu") == distributed.ALONE
    assert not torch.distributed.is_initialized()
    model = torch.nn.Linear(1, 1)
    assert (
        distributed.replicated(model, distributed.ALONE, outputs=["logits"], trained=["logits"], partly=False) is model
    )
    if not torch.cuda.is_available():
        assert resolve("auto", "fp32", True, 1, "auto").processes == 1
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    assert resolve("cpu", "fp32", True, 1, "auto").processes == 4
    assert distributed.rank() == 3


MIXED = Recipe("trivialaugment", mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.4))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_shards(toys.write_encoded_shards(tmp_path_factory.mktemp("encoded")))


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize("recipe", [Recipe(), MIXED])
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_shares_are_disjoint_and_together_the_batch(
    processes: int, crops: bool, recipe: Recipe, balance: float, folder: Path, encoded: Dataset
) -> None:
    """Bit for bit, partners of MixUp and CutMix included."""
    images: Any = random_crops(encoded.train, encoded.recipe, seed=0) if crops else open_shards(folder).train

    def batches(rank: int, ranks: int) -> Any:
        loader = TrainLoader(
            images, batch_size=8, augmentation=Augmentation(flip=True, shift=2, cutout=3), seed=5, device=CPU,
            recipe=recipe, classes=2, balance=balance, rank=rank, ranks=ranks,
        )  # fmt: skip
        loader.epoch, loader.first = 4, 1
        return list(loader)

    whole = batches(0, 1)
    assert len(whole) == 2
    for batch, *shares in zip(whole, *(batches(rank, processes) for rank in range(processes)), strict=True):
        assert {len(share.targets) for share in shares} == {8 // processes}
        assert torch.equal(torch.cat([share.images_nchw for share in shares]), batch.images_nchw)
        assert torch.equal(torch.cat([share.targets for share in shares]), batch.targets)


def wait_for(condition: Any, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_process_outlives_its_launcher_and_who_was_killed_is_named(tmp_path: Path) -> None:
    folders = [tmp_path / "launcher", tmp_path / "worker"]
    for folder in folders:
        folder.mkdir()

    def pids(folder: Path) -> list[int]:
        texts = [file.read_text() for file in folder.iterdir()]
        return [int(text) for text in texts if text.endswith(" ")]

    with (
        started("-c", LAUNCH, FOLDER=str(folders[0])) as killed,
        started("-c", LAUNCH, FOLDER=str(folders[1])) as told,
    ):
        wait_for(lambda: all(len(pids(folder)) == 2 for folder in folders))
        workers = [psutil.Process(pid) for folder in folders for pid in pids(folder)]
        killed.kill()
        workers[-1].kill()
        assert told.wait(60) == 1
        assert told.stderr is not None
        assert re.search(r"DeepcvError: process \d of 2 was ended by signal 9", told.stderr.read())
        wait_for(lambda: not any(lives(worker) for worker in workers))
