"""Stage `ingest`: the raw dataset into one manifest and one packed file."""

from pathlib import Path

from tqdm import tqdm

from deepcv.data import manifest
from deepcv.data.sources import open_source
from deepcv.files import atomic_folder
from deepcv.home import state_dir
from deepcv.params.base import load_section
from deepcv.params.ingest import IngestParams
from deepcv.stages import entry

RAW = Path("data/raw")


def main() -> None:
    """Read `ingest.path`, write data/raw."""
    params = load_section(IngestParams)
    source = open_source(Path(params.path), state_dir() / "downloads")
    samples = tqdm(source.samples(), total=source.count, desc="ingest", unit="image", mininterval=0.5)
    with atomic_folder(RAW) as folder:
        rows = manifest.pack(
            samples, source.classes, folder, name=params.dataset, source=Path(params.path).name,
            val_fraction=params.val_fraction, test_fraction=params.test_fraction, seed=params.seed,
        )  # fmt: skip
    counts = ", ".join(f"{count} {split}" for split, count in rows["split"].value_counts().items())
    print(f"{params.dataset}: {len(rows)} images of {len(source.classes)} classes: {counts}")


if __name__ == "__main__":
    entry.run(main)
