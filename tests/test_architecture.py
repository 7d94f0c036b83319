"""The rules of the design, proven on the code: imports, DVC's deps, start-up cost, files that load."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest
import yaml

from deepcv.nn.spec.expand import ZOO
from infra.versions import locked_versions

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, list[str | dict[str, list[str]]]]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())[
    "stages"
]

# A heavy tool and the only modules that import it: one for the stages, and beside it what no stage may depend on.
IMPORTERS = {
    "great_expectations": {"deepcv.data.expectations"},
    "mlflow": {
        "deepcv.tracking",
        "deepcv.registry",
        "deepcv.provenance",
        "deepcv.artifacts",
        "deepcv.network_registry",
    },
    "nni": {"deepcv.search.nni"},
    "pydantic": "deepcv.params",
    "prefect": "flows",
    "dvc": "flows",
    "onnxruntime": {"deepcv.serving.predictor", "deepcv.serving.features"},
    "onnx": {"deepcv.serving.onnx_export", "deepcv.serving.features"},
    "matplotlib": {"deepcv.evaluation.figures", "deepcv.evaluation.plots", "deepcv.monitoring.picture"},
    "fvcore": {"deepcv.profiling.cross_check"},
    "torchinfo": {"deepcv.profiling.cross_check"},
    "tensorboardX": {"deepcv.stages.tensorboard"},
}
HEAVY = {
    "torch",
    "numpy",
    "pandas",
    "mlflow",
    "prefect",
    "dvc",
    "nni",
    "cv2",
    "pydantic",
    "sklearn",
    "great_expectations",
    "matplotlib",
    "ignite",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "scipy",
    "ruamel",
}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("deepcv", "flows", include_external_packages=True)


def files_of_closure(module: str) -> set[str]:
    """Every file of deepcv that importing `module` runs, packages' __init__ included."""
    closure: set[str] = set()
    pending = {module}
    while pending:
        name = pending.pop()
        closure.add(name)
        packages = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)}
        imported = {m for m in graph().find_modules_directly_imported_by(name) if m.startswith("deepcv")}
        pending |= (packages | imported) - closure
    files = set()
    for name in closure:
        path = Path(*name.split("."))
        files.add(str(path / "__init__.py") if (ROOT / path).is_dir() else f"{path}.py")
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_deps_hold_every_module_that_a_stage_imports(stage: str) -> None:
    deps = {str(dep) for dep in STAGES[stage]["deps"]}
    missing = sorted(
        f
        for f in files_of_closure(f"deepcv.stages.{stage}")
        if not any(str(p) in deps for p in (Path(f), *Path(f).parents))
    )
    assert not missing, f"dvc.yaml, stage {stage}: add to deps: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_deps_hold_no_code_that_a_stage_does_not_import(stage: str) -> None:
    closure = files_of_closure(f"deepcv.stages.{stage}")
    deps = [str(dep) for dep in STAGES[stage]["deps"] if str(dep).startswith("deepcv/")]
    assert deps == sorted(deps)
    code = [dep for dep in deps if dep != str(ZOO.relative_to(ROOT))]  # network files, of which no import tells
    unused = [dep for dep in code if dep not in closure and not any(Path(dep) in Path(f).parents for f in closure)]
    assert not unused, f"dvc.yaml, stage {stage}: no longer imported: {unused}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_directory_dep_is_used_whole(stage: str) -> None:
    closure = files_of_closure(f"deepcv.stages.{stage}")
    for dep in STAGES[stage]["deps"]:
        if (ROOT / str(dep)).is_dir() and str(dep).startswith("deepcv/"):
            files = {str(p.relative_to(ROOT)) for p in (ROOT / str(dep)).rglob("*.py")}
            assert len(files - closure) <= 1, (
                f"{stage} re-runs for nothing when these change: {sorted(files - closure)}"
            )


def test_a_training_depends_on_the_zoo() -> None:
    """Of which a network file may take networks by name: `spec: resnet-18`."""
    assert ZOO.relative_to(ROOT).as_posix() in STAGES["train"]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_its_section_and_known_library_versions(stage: str) -> None:
    versions = yaml.safe_load((ROOT / "versions.yaml").read_text())
    section, libraries = STAGES[stage]["params"]
    assert section == stage
    assert isinstance(libraries, dict)
    assert set(libraries["versions.yaml"]) <= set(versions)


# Name of the distribution where it is not that of the import.
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "great_expectations": "great-expectations",
    "ignite": "pytorch-ignite",
    "sklearn": "scikit-learn",
}
# Imported, but what comes out does not depend on it.
WITHOUT_EFFECT = {
    "validate": {"opencv-python"},  # of the module that packs the manifest, which `validate` reads
    "train": {"matplotlib", "mlflow"},  # show and tell what happens
    "evaluate": {"mlflow"},
    "export": {"pandas"},  # of the predictor's door for MLflow
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_versions_of_the_libraries_that_it_imports(stage: str) -> None:
    modules = [f.removesuffix(".py").removesuffix("/__init__") for f in files_of_closure(f"deepcv.stages.{stage}")]
    imported = {
        name.partition(".")[0]
        for module in modules
        for name in graph().find_modules_directly_imported_by(module.replace("/", "."))
    }
    known = set(yaml.safe_load((ROOT / "versions.yaml").read_text()))
    matter = {DISTRIBUTIONS.get(name, name) for name in imported} & known - WITHOUT_EFFECT.get(stage, set())
    libraries = STAGES[stage]["params"][1]
    assert isinstance(libraries, dict)
    assert matter <= set(libraries["versions.yaml"]), f"dvc.yaml, stage {stage}: add to the list of versions.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_started_so_that_it_dies_with_dvc(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"exec python -m deepcv.stages.{stage}"


@pytest.mark.parametrize("tool", IMPORTERS)
def test_one_heavy_tool_one_importer(tool: str) -> None:
    importers = graph().find_modules_that_directly_import(tool)
    allowed = IMPORTERS[tool]
    if isinstance(allowed, str):
        assert importers
        assert all(m == allowed or m.startswith(f"{allowed}.") for m in importers), importers
    else:
        assert importers == allowed


def test_import_contracts_hold() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_nothing_imports_by_name() -> None:
    """A string look-up would hide an import from the proof above."""
    for path in [*(ROOT / "deepcv").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"importlib\.import_module|__import__\(|from importlib import import_module", text), path


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print(json.dumps([m for m in sys.modules if '.' not in m]), file=sys.stderr))\n"
        "from deepcv.cli import main\nmain(['--help'])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "deepcv init" in result.stdout
    assert not HEAVY & set(json.loads(result.stderr.splitlines()[-1]))


def yaml_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.yaml", "*.yml", "dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_every_yaml_file_loads() -> None:
    files = yaml_files()
    assert ROOT / "params.yaml" in files
    for path in files:
        assert yaml.safe_load(path.read_text()) is not None, path


def test_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert yaml.safe_load((ROOT / "versions.yaml").read_text()) == locked_versions(lock)


def test_the_lock_names_no_download_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--index|--find-links|@ ", lock)
