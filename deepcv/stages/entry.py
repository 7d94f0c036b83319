"""What every stage does before and after its own work."""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml

from deepcv.errors import DeepcvError
from deepcv.home import quiet_environment
from deepcv.lifetime import ECHO_S

_REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run(main: Callable[[], Callable[[], None] | None]) -> None:
    """Run a stage's `main`; a DeepcvError becomes one message and exit status 1, Ctrl-C exit status 130.

    What `main` returns is called last, once it is certain that DVC may record this run.
    """
    stage = Path(sys.argv[0]).stem
    signal.signal(signal.SIGINT, signal.default_int_handler)  # deepcv/stages/__init__.py set it for the imports
    signal.signal(signal.SIGTERM, _leave)  # DVC was killed, or the flow is cancelled
    try:
        os.environ.update(quiet_environment())
        definition = _project_yaml("dvc.yaml")["stages"][stage]
        _check_libraries(definition)
        before = _inputs(definition)
        clean_up = main()
        _check_unchanged(before, _inputs(definition))
        if clean_up is not None:
            clean_up()
    except DeepcvError as error:
        sys.exit(f"{stage}: {error}")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.exit(
            f"{stage}: no room left on the disk{where} ({os.strerror(error.errno)}); what was there before is whole. "
            "Free space (`dvc gc -w` drops data of other versions), then run `dvc repro` again"
        )
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; the next `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    left_s = time.monotonic()

    def again(number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - left_s > ECHO_S:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, again)
    sys.exit(128 + number)  # and not at once: half-written outputs are removed on the way


def _project_yaml(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DeepcvError(
            f"{error.filename} is not here; run a stage in the project's folder, as `dvc repro` does"
        ) from error


def _check_libraries(definition: dict[str, Any]) -> None:
    """Refuse library versions that would compute something else than what DVC records for this stage."""
    recorded: dict[str, str] = _project_yaml("versions.yaml")
    names = [
        name for entry in definition["params"] if isinstance(entry, dict) for name in entry.get("versions.yaml", [])
    ]
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


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a run whose inputs changed meanwhile: DVC reads them once more after it, and would record what never ran."""
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise DeepcvError(f"{changed[0]}{more} changed while the stage ran; run `dvc repro` again")


def _inputs(definition: dict[str, Any]) -> dict[str, Any]:
    """Values of a stage's params; size and time of change of each file of its deps that a stage may read."""
    params = _yaml_as_it_stands("params.yaml")
    found: dict[str, Any] = {}
    for entry in definition["params"]:
        for file, keys in entry.items() if isinstance(entry, dict) else [("params.yaml", [entry])]:
            values = _yaml_as_it_stands(file)
            found |= {f"{key} in {file}": values.get(key) for key in keys}
    for dep in definition["deps"]:
        top = Path(dep)
        if reference := _REFERENCE.fullmatch(dep):  # ${ingest.path}
            section = params.get(reference[1])
            top = Path(str(section.get(reference[2]) if isinstance(section, dict) else None))
        for where, folders, names in os.walk(top) if top.is_dir() else [(str(top.parent), [], [top.name])]:
            folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
            for path in (Path(where, name) for name in names if not name.startswith(".")):
                if path.is_file():
                    status = path.stat()
                    found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def _yaml_as_it_stands(file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None  # as while an editor saves it; whoever needs it says what is wrong
    return content if isinstance(content, dict) else {}


def _installed(name: str) -> str:
    try:
        return metadata.version(name).split("+")[0]  # a local label such as +cu130 is the same release
    except metadata.PackageNotFoundError:
        return "missing"
