"""What every stage does before and after its own work."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import yaml

from deepcv.errors import DeepcvError
from deepcv.home import quiet_environment

_INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; a DeepcvError becomes one message and exit status 1, Ctrl-C exit status 130."""
    stage = Path(sys.argv[0]).stem
    signal.signal(signal.SIGINT, signal.default_int_handler)  # deepcv/stages/__init__.py set it for the imports
    try:
        os.environ.update(quiet_environment())
        _check_libraries(stage)
        main()
    except DeepcvError as error:
        sys.exit(f"{stage}: {error}")
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; the next `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _check_libraries(stage: str) -> None:
    """Refuse library versions that would compute something else than what DVC records for this stage."""
    try:
        recorded: dict[str, str] = yaml.safe_load(Path("versions.yaml").read_text(encoding="utf-8"))
        params = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["params"]
    except FileNotFoundError as error:
        raise DeepcvError(
            f"{error.filename} is not here; run a stage in the project's folder, as `dvc repro` does"
        ) from error
    names = [name for entry in params if isinstance(entry, dict) for name in entry.get("versions.yaml", [])]
    wrong = [
        f"{name} {found} (versions.yaml: {recorded[name]})"
        for name in names
        if (found := _installed(name)) != recorded[name]
    ]
    if wrong:
        raise DeepcvError(
            f"{sys.executable} has {', '.join(wrong)}; DVC would record the wrong version. "
            "Run `make setup` and use .venv/bin/dvc, or change versions.yaml to what you want to use"
        )


def _installed(name: str) -> str:
    try:
        return metadata.version(name).split("+")[0]  # a local label such as +cu130 is the same release
    except metadata.PackageNotFoundError:
        return "missing"
