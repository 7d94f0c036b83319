"""Run a script of Jordan's airbench, as it is, on prepared images: its accuracies and the seconds that it counts itself.

    python -m benchmarks.airbench_peer SCRIPT SHARDS RUNS [--wait] [--eager]     (a step of benchmarks.cifar_gpu)

The script is airbench94_muon.py or airbench96_faster.py of github.com/KellerJordan/cifar10-airbench (MIT), or the folder of PyPI's
older package `airbench` (MIT), of which train94 is run, which compiles nothing. The first run, which compiles, does not count; with
`--wait` the others begin when a line comes in. With `--eager` nothing is compiled.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from deepcv.data.shards import open_shards

_WARM_UP_EPOCHS = 4.0  # of airbench96, which changes its network after three


def write_images(shards: Path, folder: Path) -> None:
    """Write the train and test split as the script reads them."""
    dataset = open_shards(shards)
    folder.mkdir()
    for name in ("train", "test"):
        split = getattr(dataset, name)
        images, labels = (torch.from_numpy(np.array(values)) for values in (split.images_nhwc, split.labels))
        torch.save({"images": images, "labels": labels, "classes": list(dataset.classes)}, folder / f"{name}.pt")


def imported(script: Path) -> ModuleType:
    """The script, or a package, as a module; a script reads its own text from the first argument of the command line."""
    if script.is_dir():
        sys.path.insert(0, str(script.parent))
        return importlib.import_module(script.name)
    spec = importlib.util.spec_from_file_location("airbench_script", script)
    assert spec is not None  # noqa: S101  # it is a file of Python
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules["airbench_script"] = module
    sys.argv = [str(script)]
    spec.loader.exec_module(module)
    return module


def training(module: ModuleType, how: dict[str, Any]) -> Callable[[object], Any]:
    """One run of the script, with the models that its last lines make: compiled once, used by every run.

    The package's `run` of -1 ends after a step; so does its warm-up here. What a run returns is the accuracy, None of the package.
    """
    if hasattr(module, "train94"):

        def packaged(run: object) -> None:  # it returns the network
            module.train94(run=-1 if run == "warmup" else run)

        return packaged
    if hasattr(module, "train_proxy"):
        hyp = module.hyp
        models = [module.make_net(hyp[kind]) for kind in ("proxy", "net", "net")]
        for model in (models[0], models[2]):
            model[0].bias.requires_grad = False
        proxy, first, rest = (torch.compile(model, **how) for model in models)
        epochs = hyp["opt"]["train_epochs"]

        def train(run: object) -> Any:
            hyp["opt"]["train_epochs"] = _WARM_UP_EPOCHS if run == "warmup" else epochs
            return module.main(run, hyp, proxy, first, rest)

        return train
    model = module.CifarNet().cuda().to(memory_format=torch.channels_last)
    model.compile(**how)
    return lambda run: module.main(run, model)


def main() -> None:
    """Run and print one line of JSON."""
    script, shards, runs = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
    wait = "--wait" in sys.argv
    how: dict[str, Any] = {"backend": "eager"} if "--eager" in sys.argv else {"mode": "max-autotune"}
    module = imported(script)  # which changes the arguments
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_images(shards, Path("cifar10"))
        train = training(module, how)
        accuracies, seconds = [], []
        for run in range(-1, runs):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                returned = train("warmup" if run < 0 else run)
            if run < 0:
                print(f"{script.name}: warm after {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
                if wait:
                    sys.stdin.readline()
                continue
            numbers = re.findall(r"\d+\.\d+", printed.getvalue())  # the last of its table are accuracy and seconds
            accuracies.append(float(numbers[-2] if returned is None else returned))
            seconds.append(float(numbers[-1]))
            print(f"{script.name}: {accuracies[-1]:.4f} in {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        os.chdir("/")
    print(json.dumps({"accuracies": accuracies, "seconds": seconds}))


if __name__ == "__main__":
    main()
