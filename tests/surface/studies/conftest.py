"""Five tiny proteins, opened."""

from __future__ import annotations

import pytest
from tests.toy_proteins import toy_datasets

from undula.io.datasets import Dataset, open_dataset


@pytest.fixture(scope="session")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("proteins")
    return {path.name: open_dataset(path) for path in toy_datasets(folder)}
