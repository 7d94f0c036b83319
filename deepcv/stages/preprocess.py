"""Stage `preprocess`: decode and resize with OpenCV into memory-mapped shards; statistics of the train split."""

from pathlib import Path

from tqdm import tqdm

from deepcv.data import manifest, shards
from deepcv.data.quarantine import without_quarantine
from deepcv.files import atomic_folder
from deepcv.images import ImageRecipe, prepare
from deepcv.params.base import load_section
from deepcv.params.preprocess import PreprocessParams
from deepcv.stages import entry

RAW = Path("data/raw")
QUARANTINE = Path("data/validation/quarantine.csv")
SHARDS = Path("data/shards")


def main() -> None:
    """Read data/raw without what `validate` quarantined, write data/shards."""
    params = load_section(PreprocessParams)
    recipe = ImageRecipe(params.height, params.width, params.channels, params.resize)
    rows, info = manifest.read(RAW)
    rows = without_quarantine(rows, QUARANTINE)
    number_of = {label: number for number, label in enumerate(info.classes)}
    with (
        atomic_folder(SHARDS) as folder,
        tqdm(total=len(rows), desc="preprocess", unit="image", mininterval=0.5) as bar,
    ):
        for split in shards.SPLITS:
            part = rows[rows["split"] == split]
            images = (prepare(content, recipe) for content in manifest.encoded_images(RAW, part))
            shape = (len(part), recipe.height, recipe.width, recipe.channels)
            shards.write_split(folder, split, images, (number_of[label] for label in part["label"]), shape)
            bar.update(len(part))
        shards.write_description(
            folder,
            name=info.name,
            classes=info.classes,
            test_digest=manifest.digest_of_test_split(rows),
            recipe=vars(recipe),
        )


if __name__ == "__main__":
    entry.run(main)
