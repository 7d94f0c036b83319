"""The figures that do not depend on how fast the machine is, each by its benchmark script. Run by `make acceptance`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared/data/cifar10-jpeg.tar.gz"
FASHION = Path("/usr/share/datasets/fashion-mnist")

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]


def result(*command: str) -> dict[str, object]:
    output = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr[-3000:]
    line: dict[str, object] = json.loads(output.stdout.splitlines()[-1])
    print(json.dumps(line))
    return line


def test_digits_reach_98_5_percent() -> None:
    assert result("benchmarks.accuracy", "params.yaml", "--seeds", "0", "1", "2", "--target", "0.985")["holds"]


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_reaches_92_5_percent() -> None:
    assert result("benchmarks.accuracy", "examples/fashion-mnist.yaml", "--target", "0.925")["holds"]


@pytest.mark.skipif(not CIFAR.is_file(), reason="the CIFAR-10-JPEG tar is not beside the checkout")
def test_cifar_reaches_85_percent() -> None:
    command = ("benchmarks.accuracy", "examples/cifar10-jpeg.yaml", "--path", str(CIFAR), "--target", "0.85")
    assert result(*command)["holds"]


@pytest.mark.skipif(not CIFAR.is_file(), reason="the CIFAR-10-JPEG tar is not beside the checkout")
def test_normalisation_is_of_the_train_images_alone() -> None:
    assert result("benchmarks.train_statistics", "--path", str(CIFAR))["holds"]


def test_a_search_is_reproduced_by_dvc() -> None:
    assert result("benchmarks.search")["holds"]
