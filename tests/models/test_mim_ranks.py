"""Two processes have the gradients and the codebook of one, for every masked-image algorithm."""

import pytest
import torch
import torch.multiprocessing as mp
from mim_two_processes import NAMES, main, step


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(main, args=(2, folder / "rendezvous", folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_what_one_does(name, two):
    one = step(name, 0, 1)
    largest = max(gradient.norm() for gradient in one["gradients"].values())
    for result in (rank[name] for rank in two):
        assert result["gradients"].keys() == one["gradients"].keys()
        for key, gradient in one["gradients"].items():
            assert (result["gradients"][key] - gradient).norm() < 1e-3 * gradient.norm() + 1e-5 * largest, key
        assert result["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            assert torch.allclose(result["state"][key].float(), value.float(), atol=1e-5), key
