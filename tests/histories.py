"""A small project with a past: real git and DVC, the real `ingest`, four datasets of which two are committed."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from toys import REPOSITORY, picture

from deepcv.images import encode_png

WEIRD = "cat/a \"quoted\" <img src=x onerror=alert(1)> & 'new\nline' é.png"

_DVC_YAML = """\
stages:
  ingest:
    cmd: exec python -m deepcv.stages.ingest
    params: [ingest]
    deps: ["${ingest.path}"]
    outs: [data/raw]
  preprocess:
    cmd: python shards.py
    deps: [data/raw, shards.py]
    outs: [data/shards]
"""
_PARAMS = "ingest: {dataset: pets, path: images, val_fraction: 0.2, test_fraction: 0.2, seed: 0}\n"
_SHARDS = """\
import hashlib, os, pathlib
os.makedirs("data/shards")
raw = pathlib.Path("data/raw/manifest.parquet").read_bytes()
pathlib.Path("data/shards/dataset.json").write_text(hashlib.sha256(raw).hexdigest())
"""


@dataclass(frozen=True)
class History:
    """`one` and `two` are tags; the workspace is a third dataset, and a fourth is known to DVC's run cache alone.

    `cache` is a folder that .dvc/config.local names.
    """

    root: Path
    cache: Path

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "DEEPCV_", "GIT_"))}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "DVC_NO_ANALYTICS": "true",
            "HOME": str(self.root.parent / "home"),
        }

    def git(self, *words: str) -> str:
        return self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)

    def repro(self) -> None:
        self.run("dvc", "repro", "-q")

    def commit(self, tag: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", f"dataset {tag}")
        self.git("tag", tag)

    def write(self, name: str, seed: int) -> None:
        """Write a picture that depends on the seed alone."""
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(picture(seed)))

    def move(self, name: str, to: str) -> None:
        (self.root / "images" / name).rename(self.root / "images" / to)

    def remove(self, name: str) -> None:
        (self.root / "images" / name).unlink()

    def manifest(self) -> pd.DataFrame:
        """Manifest of the workspace, by image id."""
        return pd.read_parquet(self.root / "data/raw/manifest.parquet").set_index("id")


def make(folder: Path) -> History:
    """Make the project; takes some 15 s."""
    history = History(folder / "project", folder / "cache")
    history.root.mkdir()
    for name, text in {
        "dvc.yaml": _DVC_YAML, "params.yaml": _PARAMS, "shards.py": _SHARDS,
        "versions.yaml": "{}\n", ".gitignore": "/images/\n/.deepcv/\n",
    }.items():  # fmt: skip
        (history.root / name).write_text(text)
    history.git("init", "-q")
    history.run("dvc", "init", "-q")
    history.run("dvc", "cache", "dir", "--local", str(history.cache))
    for seed in range(20):
        history.write(f"{'cat' if seed % 2 else 'dog'}/{seed}.png", seed)
    for name, seed in {WEIRD: 50, "cat/twin1.png": 60, "cat/twin2.png": 60, "dog/old.png": 70}.items():
        history.write(name, seed)
    history.repro()
    history.commit("one")

    history.write("cat/new.png", 80)
    history.write(WEIRD, 51)
    history.write("cat/1.png", 81)
    history.remove("dog/18.png")
    history.move("dog/old.png", "dog/renamed.png")
    history.move("cat/3.png", "dog/was a cat.png")
    history.move("cat/twin2.png", "cat/twin3.png")
    history.repro()
    history.commit("two")

    history.write("dog/brief.png", 90)
    history.repro()
    history.remove("dog/brief.png")
    history.write("dog/late.png", 91)
    history.repro()
    return history


def copy(history: History, folder: Path) -> History:
    """A copy that a test may change; its cache is its own."""
    other = History(folder / "project", folder / "cache")
    shutil.copytree(history.root, other.root)
    shutil.copytree(history.cache, other.cache)
    config = other.root / ".dvc/config.local"
    config.write_text(config.read_text().replace(str(history.cache), str(other.cache)))
    return other
