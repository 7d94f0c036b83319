"""The project that tests of the stage `train` share."""

from pathlib import Path

import pytest
import toys

from deepcv.stages import train


@pytest.fixture
def project(store: Path, tmp_path: Path) -> Path:
    """A project whose stage `train` takes a moment: its folder of state."""
    toys.write_shards(train.SHARDS)
    toys.network(tmp_path)
    toys.no_weights(tmp_path)
    Path("versions.yaml").write_text('torch: "1"\n')
    Path("params.yaml").write_text(
        "train: {network: network.yaml, epochs: 3, batch_size: 8, device: cpu, precision: fp32}\n"
    )
    return store
