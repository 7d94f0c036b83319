"""Write versions.yaml from requirements.lock: the library versions that can change a stage's result.

Run by `make lock`. Each stage of dvc.yaml lists the ones that matter to it as DVC params.
"""

import re
from pathlib import Path

LIBRARIES = (
    "great-expectations", "matplotlib", "mlflow", "numpy", "onnx", "onnxruntime", "onnxscript", "opencv-python",
    "pandas", "pyarrow", "pytorch-ignite", "scikit-learn", "scipy", "timm", "torch", "torchvision",
)  # fmt: skip
_HEADER = """\
# Library versions that can change a result, taken from requirements.lock by `make lock`.
# Each stage of dvc.yaml lists those that matter to it, so that a new torch trains again and a new boto3 does not.
"""


def locked_versions(lock: str) -> dict[str, str]:
    """Versions in a lock file by name; a library with two versions for two Pythons is an error."""
    versions: dict[str, str] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, flags=re.MULTILINE):
        if name in LIBRARIES and versions.setdefault(name, version) != version:
            raise ValueError(
                f"{name} is locked to two versions: bound it in pyproject.toml so that all Pythons share one"
            )
    return {name: versions[name] for name in LIBRARIES}


if __name__ == "__main__":
    found = locked_versions(Path("requirements.lock").read_text(encoding="utf-8"))
    lines = [f'{name}: "{version}"\n' for name, version in found.items()]
    Path("versions.yaml").write_text(_HEADER + "".join(lines), encoding="utf-8")
