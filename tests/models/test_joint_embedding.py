"""What must hold for every joint-embedding and pretext-task algorithm: ranks, resuming, precision, no waiting."""

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_algorithms import (
    OPTIONS,
    SAMPLES,
    STEPS_PER_EPOCH,
    VARIANTS,
    build,
    embed,
    make_batch,
    make_optimizer,
    pictures,
    run,
)
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import blobs, main, train

from headrace.models.algorithm import Progress
from headrace.models.clustering import kmeans

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
ALL = pytest.mark.parametrize("name", OPTIONS)
AND_VARIANTS = pytest.mark.parametrize("name", [*OPTIONS, *VARIANTS])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes: [rank 0's, rank 1's]."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(main, args=(2, folder / "rendezvous", folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@ALL
def test_golden_steps(name):
    """Losses of ten steps as recorded (see tiny_algorithms.py); the platform may change the last digits."""
    algorithm = build(name)
    losses = run(algorithm, make_optimizer(algorithm), range(10))
    assert losses == pytest.approx(GOLDEN[name], rel=5e-3, abs=5e-3)


@AND_VARIANTS
def test_two_processes_have_the_gradients_of_one(name, two):
    one = train(name, 0, 1)["gradients"]
    largest = max(g.norm() for g in one.values())
    assert one.keys() == two[0][name]["gradients"].keys()
    for key, gradient in one.items():
        for rank in range(2):
            error = (two[rank][name]["gradients"][key] - gradient).norm()
            assert error < 1e-3 * max(gradient.norm(), 5e-2 * largest), (key, rank)


@AND_VARIANTS
def test_two_processes_remember_what_one_does(name, two):
    """Teachers, queues, banks, labels, centroids, centres after four steps."""
    one = train(name, 0, 1)["state"]
    for key, value in one.items():
        for rank in range(2):
            other = two[rank][name]["state"][key]
            if value.is_floating_point():
                assert torch.allclose(other, value, rtol=1e-3, atol=2e-4), (key, rank)
            else:
                assert torch.equal(other, value), (key, rank)


def test_keys_are_computed_in_other_company(two):
    """The shuffle can be undone exactly, moves samples between ranks, and changes what the keys' statistics see."""
    for result in (rank["shuffle"] for rank in two):
        assert result["round trip"] and result["channels last"] and 0 < result["stayed"] < 4
        assert (result["keys"] - result["plain"]).abs().max() > 1e-3
        assert torch.allclose(result["keys"].norm(dim=1), torch.ones(4), atol=1e-5)


def test_kmeans_of_two_processes(two):
    labels, centroids = kmeans(blobs(), 4, seed=1)
    for rank in range(2):
        assert torch.allclose(two[rank]["kmeans"]["centroids"], centroids, atol=1e-5)
        assert torch.equal(two[rank]["kmeans"]["labels"], labels[rank::2])


@AND_VARIANTS
def test_resumed_equals_undisturbed(name):
    whole = build(name)
    optimizer = make_optimizer(whole)
    expected = run(whole, optimizer, range(7))
    broken = build(name)
    optimizer = make_optimizer(broken)
    losses = run(broken, optimizer, range(4))
    resumed = build(name, seed=5)
    later = make_optimizer(resumed)
    resumed.load_state_dict(broken.state_dict())
    later.load_state_dict(optimizer.state_dict())
    assert losses + run(resumed, later, range(4, 7)) == expected
    kept, state = whole.state_dict(), resumed.state_dict()
    assert kept.keys() == state.keys() and all(torch.equal(kept[key], state[key]) for key in kept)


@pytest.mark.parametrize("name", ["npid", "odc", "deepcluster"])
def test_a_checkpoint_brings_its_memory_along(name):
    """An algorithm that was never told the number of samples loads one that was (evaluation, export)."""
    trained = build(name)
    trained.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
    fresh = type(trained)(trained.config)
    fresh.load_state_dict(trained.state_dict())
    memory = fresh.bank.rows if name == "npid" else fresh.memory.labels
    assert len(memory) == SAMPLES


@AND_VARIANTS
def test_bfloat16(name):
    """Under autocast: finite, and close to single precision."""
    losses = []
    for bf16 in (False, True):
        algorithm = build(name)
        losses.append(run(algorithm, make_optimizer(algorithm, lr=0.01), range(2), bf16=bf16))
        assert all(p.isfinite().all() for p in algorithm.state_dict().values() if p.is_floating_point())
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05, abs=0.05)


class Waits(TorchDispatchMode):
    """Notes operations whose result the host, or the shape of another tensor, has to wait for."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "_unique", "bincount", "masked_select", "equal.default")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        indices = args[1] if str(function).startswith(("aten.index.", "aten.index_put")) else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or any(name in str(function) for name in self.NAMES):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_waits_are_noticed():
    x = torch.randn(3)
    with Waits() as waits:
        x.sum().item(), x[x > 0], x.nonzero()
    assert len(waits.found) >= 3


@AND_VARIANTS
def test_a_step_never_waits_for_the_device(name):
    algorithm = build(name)
    optimizer = make_optimizer(algorithm)
    run(algorithm, optimizer, range(3))
    progress = Progress(3, 10, STEPS_PER_EPOCH)
    batch = make_batch(algorithm, 3)
    with Waits() as waits:
        output = algorithm(batch, progress)
    optimizer.zero_grad()
    output.loss.backward()
    with waits:
        algorithm.after_backward(progress)
        algorithm.after_step(progress)
    assert waits.found == []


@ALL
def test_learns_without_collapsing(name):
    """The loss of the first epoch is undercut, and embeddings of different images stay different."""
    changes = {"dino": dict(momentum=0.99, center_momentum=0.5)}  # the centre must follow within 45 steps
    changes |= {"ibot": changes["dino"], "dinov2": changes["dino"], "dinov3": dict(momentum=0.99)}
    algorithm = build(name, **changes.get(name, {}))
    if name in ("deepcluster", "rotation_pred", "odc"):
        optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=2e-3)
    elif name in changes:
        optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=3e-4)
    else:
        optimizer = make_optimizer(algorithm, lr=0.02)
    losses = run(algorithm, optimizer, range(45), total=45)
    warm = slice(6, 12) if name in ("moco", "densecl", "npid", "swav", *changes) else slice(0, 3)  # memory, centre
    assert sum(losses[-6:]) / 6 < sum(losses[warm]) / len(losses[warm]), losses
    with torch.no_grad():
        z = algorithm.eval().encoder(pictures(SAMPLES, algorithm.inputs().views[0].side, 7))
    assert torch.nn.functional.normalize(z, dim=1).std(0).mean() * z.shape[1] ** 0.5 > 0.05
