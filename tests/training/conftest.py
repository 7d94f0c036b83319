"""The toy data and network that most tests of trainings share."""

import pytest
import toys

from deepcv.data.shards import Dataset
from deepcv.nn.spec import NetworkSpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return toys.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> NetworkSpec:
    """With batch norm and dropout: both keep state that a resume could lose, or a short run leave changed."""
    return toys.network(tmp_path_factory.mktemp("network"))
