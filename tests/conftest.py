"""Where the tests run kernels: on the GPU, or else in this process under Triton's interpreter."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # Read when a kernel is decorated, so before the first import of triton or signconv.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CUDA:
        return
    reason = f"needs a CUDA device, and torch {torch.__version__} sees none"
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> str:
    """The device kernels run on."""
    from signconv.runtime.compat import HAS_TRITON

    if not HAS_TRITON:
        pytest.skip("needs Triton, which is not installed")
    return "cuda" if CUDA else "cpu"


@pytest.fixture(scope="session")
def tile_rows(device: str) -> Callable[[int], int]:
    """Rows of 32 elements that one program of a test kernel takes, for so many elements.

    The interpreter takes 24 ms per program whatever its size, so it gets few, large ones.
    """

    def rows(numel: int) -> int:
        whole = 1 << (-(-numel // 32) - 1).bit_length()
        return 16 if device == "cuda" else min(whole, 32768)

    return rows


@pytest.fixture(autouse=True)
def runs_of_their_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests compare optimizers beside each other that stand for runs of their own: each draws as
    the first of its process does, unless the test is about several (marker ``several``)."""
    if "several" not in request.keywords:
        from signconv.runtime import seeds

        monkeypatch.setattr(seeds, "smallest", lambda: 0)
        monkeypatch.setattr(seeds, "settle", lambda optimizer: None)


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., object]]:
    """Run ``signconv ARGUMENTS`` in ``cwd`` (default: the checkout)."""
    from tests.support.command import running

    with running() as run:
        yield run
