import numpy as np
import pandas as pd

from deepcv.data.neighbours import agree, describe, p_value, sample


def blobs(count: int, seed: int) -> tuple[np.ndarray, pd.Series]:
    random = np.random.default_rng(seed)
    number = random.integers(0, 4, count)
    features = np.eye(4)[number] + 0.3 * random.normal(size=(count, 4))
    return features.astype(np.float32), pd.Series([f"class {n}" for n in number])


def test_shuffled_labels_are_told_and_a_fresh_draw_is_not() -> None:
    reference = agree(*blobs(3000, 0)).share
    features, labels = blobs(3000, 1)
    assert p_value(reference, agree(features, labels).share) > 1e-3
    wrong = labels.copy()
    chosen = np.random.default_rng(2).permutation(3000)[:150]
    wrong[chosen] = labels[chosen[::-1]].to_numpy()
    assert p_value(reference, agree(features, wrong).share) < 1e-3


def test_a_wrong_label_is_contradicted_by_name() -> None:
    features, labels = blobs(300, 0)
    clean = labels.copy()
    labels[7] = "class 0" if labels[7] != "class 0" else "class 1"
    found = agree(features, labels)
    assert found.contradicted_by[7] == clean[7]
    assert (found.contradicted_by != "").mean() < 0.05


def test_too_few_images_give_no_test() -> None:
    share = agree(*blobs(8, 0)).share
    assert np.isnan(share).all()
    assert np.isnan(p_value(share, share))


def test_a_sample_depends_on_content_and_seed_alone() -> None:
    content = pd.Series([f"{n:064x}" for n in range(100)])
    drawn = set(content.iloc[sample(content, 10, 0)])
    turned = content[::-1].reset_index(drop=True)
    assert set(turned.iloc[sample(turned, 10, 0)]) == drawn
    assert set(content.iloc[sample(content, 10, 1)]) != drawn


def test_grey_and_colour_have_features_of_one_length() -> None:
    images = [np.zeros((8, 9, 1), np.uint8), np.full((40, 50, 3), 200, np.uint8)]
    found = describe(images)
    assert found.shape == (2, 176)
    assert np.isfinite(found).all()
