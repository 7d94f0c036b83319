"""A GPU machine may have torch, numpy, PyYAML and ignite alone: the core imports and trains with them."""

import subprocess
import sys
from pathlib import Path

import toys

SCRIPT = '''
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.util import find_spec
import torch, numpy, yaml, ignite.engine, ignite.handlers  # what these load themselves is there

there = {name.split(".")[0] for name in sys.modules}
allowed = there | set(sys.stdlib_module_names) | {"deepcv", "torch", "numpy", "yaml", "ignite"}

class Bare:
    """Finds the allowed packages only, as if the others were not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path, target) if name.split(".")[0] in allowed else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]
for name in ("pydantic", "cv2", "mlflow", "pandas", "sklearn", "ruamel", "matplotlib", "pyarrow", "scipy"):
    assert find_spec(name) is None, name

from pathlib import Path
import deepcv.nn.classifier, deepcv.nn.layers, deepcv.nn.ops, deepcv.nn.spec
import deepcv.profiling.describe, deepcv.profiling.page, deepcv.profiling.report
import deepcv.nn.module, deepcv.nn.network_file, deepcv.nn.parts, deepcv.nn.pretrained, deepcv.nn.weights_file
import deepcv.training.checkpoints, deepcv.training.engine, deepcv.training.fit, deepcv.training.hardware
import deepcv.training.range_search
import deepcv.training.losses
import deepcv.evaluation.history, deepcv.evaluation.inference, deepcv.evaluation.metrics, deepcv.evaluation.plots
import deepcv.data.augmentation.mixing, deepcv.data.augmentation.policies, deepcv.data.loaders, deepcv.data.shards
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit

folder = Path(sys.argv[1])
spec = deepcv.nn.spec.load(folder / "network.yaml", {})
config = TrainConfig(1, 8, "adamw", .01, .9, 0.0, 0.0, .25, True, 1, 2, 0, 1, "cpu", "fp32", True)
fitted = fit(spec, deepcv.data.shards.open_shards(folder), config, checkpoints=folder / "checkpoints")
deepcv.nn.classifier.save(folder / "model.pt", fitted.classifier, spec.canonical(), fitted.info)
deepcv.nn.classifier.load(folder / "model.pt")
print("trained", len(fitted.history))
'''


def test_the_core_runs_with_torch_numpy_yaml_and_ignite_alone(tmp_path: Path) -> None:
    toys.write_shards(tmp_path)
    toys.network(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=toys.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "trained 1\n", done.stderr
