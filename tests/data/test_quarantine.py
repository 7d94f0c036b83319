from collections import Counter
from pathlib import Path

import pytest
import toys

from deepcv.data import manifest, packing
from deepcv.data.quarantine import check_enough_is_left, digest_of_kept_test_images, read
from deepcv.data.samples import DataError, Sample
from deepcv.data.splits import SplitRule
from deepcv.images import encode_png


def test_every_id_of_the_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.csv"
    path.write_text("id,check,reason\n3.png,uniform,black\n3.png,blurred,x\nNA,blurred,x\n")
    assert read(path) == {"3.png", "NA"}
    with pytest.raises(DataError, match="run `dvc repro validate`"):
        read(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("lost", "said"), [(("val", "a"), "split val"), (("train", "b"), "class b of train"), (("test", "b"), "")]
)
def test_a_split_or_a_class_to_train_must_not_end_empty(lost: tuple[str, str], said: str) -> None:
    before = Counter({("train", "a"): 3, ("train", "b"): 2, ("val", "a"): 1, ("test", "a"): 1, ("test", "b"): 1})
    after = before.copy()
    del after[lost]
    if not said:
        check_enough_is_left(before, after)
        return
    with pytest.raises(DataError, match=f"nothing is left of {said} after quarantine"):
        check_enough_is_left(before, after)


def test_the_digest_is_that_of_a_dataset_without_the_images(tmp_path: Path) -> None:
    def pack(folder: Path, without: tuple[str, ...] = ()) -> str:
        folder.mkdir()
        samples = [
            Sample(f"{n}.png", ("train", "val", "test")[n % 3], "ab"[n % 2], encode_png(toys.picture(n, 8, 8)))
            for n in range(24)
        ]
        kept = [sample for sample in samples if sample.id not in without]
        packing.pack(kept, ("a", "b"), folder, name="toy", source="s", rule=SplitRule(0.2, 0.2, 0))
        return manifest.read_info(folder).test_digest

    whole = pack(tmp_path / "whole")
    assert digest_of_kept_test_images(tmp_path / "whole", frozenset()) == whole
    assert digest_of_kept_test_images(tmp_path / "whole", frozenset(["3.png"])) == whole  # of train
    assert (
        digest_of_kept_test_images(tmp_path / "whole", frozenset(["5.png"]))
        == pack(tmp_path / "less", ("5.png",))
        != whole
    )
