"""A small DVC project for tests: the real params.yaml, four stages of a few lines each, one of them with parameters."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  fetch:
    cmd: exec python fetch.py
    deps: [fetch.py, source.txt]
    params: [ingest]
    outs: [data/raw]
  fit:
    cmd: exec python fit.py
    deps: [fit.py, data/raw]
    params: [train]
    outs: [data/model.txt]
  score:
    cmd: exec python score.py
    deps: [score.py, data/model.txt]
    params: [evaluate]
    metrics: [data/metrics.json: {cache: false}]
  page:
    cmd: exec python page.py
    deps: [page.py, data/raw]
    outs: [data/report/index.html]
"""

SCRIPTS = {
    "fetch.py": """\
from pathlib import Path
Path("data/raw").mkdir(parents=True, exist_ok=True)
Path("data/raw/rows.txt").write_text(Path("source.txt").read_text().strip().upper())
print("fetched")
""",
    "fit.py": """\
import sys
from pathlib import Path
sys.stderr.write("\\r".join(f"fit: {percent:3d}%|###" for percent in (0, 50, 100)) + "\\n")
print("fitted", Path("data/raw/rows.txt").read_text())
text = Path("params.yaml").read_text()
epochs = next(line for line in text.splitlines() if line.strip().startswith("epochs:")).split(":")[1].split("#")[0]
Path("data/model.txt").write_text(Path("data/raw/rows.txt").read_text() + epochs.strip())
""",
    "score.py": """\
import json
from pathlib import Path
size = len(Path("data/model.txt").read_text())
Path("data/metrics.json").write_text(json.dumps({"accuracy": 1 - 1 / size, "size": size}))
""",
    "page.py": """\
from pathlib import Path
Path("data/report").mkdir(parents=True, exist_ok=True)
Path("data/report/index.html").write_text("<p>" + Path("data/raw/rows.txt").read_text())
""",
}


def environment(project: Path) -> dict[str, str]:
    """Environment of commands that work in the project: our Python first, no telemetry, state inside."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "DEEPCV_HOME": str(project / ".deepcv"),
        "DVC_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "1",
        "HOME": str(project.parent / "home"),
    }


def command(project: Path, *words: str, timeout_s: float = 60) -> str:
    """Run a command in the project and return what it printed; fails the test if the command fails."""
    done = subprocess.run(
        words,
        cwd=project,
        env=environment(project),
        timeout=timeout_s,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def create(folder: Path) -> Path:
    """Create the project in `folder` (created too), under git and DVC."""
    folder.mkdir(parents=True)
    (folder.parent / "home").mkdir(exist_ok=True)
    for name, text in {**SCRIPTS, "dvc.yaml": DVC_YAML, "source.txt": "one\n"}.items():
        (folder / name).write_text(text)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    command(folder, "git", "init", "-q")
    command(folder, "dvc", "init", "-q")
    (folder / ".gitignore").write_text("/.deepcv/\n")
    return folder
