from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when a test first imports the library: no test needs a hub


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """On a busy machine a second thread makes such small models slower, not faster."""
    import torch  # here, so that the other unit tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint, by the name of its builder in `tests.checkpoints`; not to be changed."""
    from tests import checkpoints

    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: getattr(checkpoints, name)(root / name))
