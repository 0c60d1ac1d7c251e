"""k-means, whitening and the surgery of small clusters, against scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from tiny_algorithms import SAMPLES, STEPS_PER_EPOCH, build, embed, make_batch, make_optimizer, run

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.clustering import bisect, cluster_sizes, kmeans, members, nearest, pca_whiten, unit_rows


def blobs(clusters=4, each=15, dimension=6, spread=0.2):
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(clusters, dimension, generator=generator)
    truth = torch.arange(clusters).repeat_interleave(each)
    return centres[truth] + spread * torch.randn(len(truth), dimension, generator=generator), truth


def inertia(x, labels):
    return sum(float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in labels.unique())


def test_kmeans_is_lloyds():
    """From the same start, scikit-learn's Lloyd iterations end in the same clusters."""
    x, _ = blobs(spread=1.5)
    labels, centroids = kmeans(x, 4, seed=3, iterations=30)
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(3))[:4]]
    other = KMeans(4, init=start.numpy(), n_init=1, max_iter=30, tol=0).fit(x.numpy())
    assert np.array_equal(labels.numpy(), other.labels_)
    assert np.allclose(centroids.numpy(), other.cluster_centers_, atol=1e-4)


def test_empty_clusters_are_refilled():
    """Most rows are the same point, so most starts are equal and all but one of them lose everything."""
    x = torch.cat([torch.zeros(50, 3), torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * 5 + 20])
    labels, _ = kmeans(x, 8, seed=0)
    assert inertia(x, labels) < 0.35 * float((x[50:] - x[50:].mean(0)).square().sum())
    assert (cluster_sizes(labels, 8) > 0).sum() >= 7


def test_more_clusters_than_images_are_refused():
    with pytest.raises(UserError, match="algorithm.clusters: 9 clusters for 8 images"):
        kmeans(torch.randn(8, 2), 9, seed=0)


def test_whitening_is_sklearns():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(0.5, 4, 12)) + 3
    ours = pca_whiten(x, 5)
    theirs = PCA(5, whiten=True).fit_transform(x.double().numpy()) * np.sqrt(200 / 199)  # theirs divides by n - 1
    assert np.allclose(np.abs(ours.numpy()), np.abs(theirs), atol=1e-3)
    assert torch.allclose(ours.T @ ours / 200, torch.eye(5), atol=1e-4)


def test_whitening_without_variance():
    x = torch.randn(20, 3) @ torch.randn(3, 8)  # three dimensions of variance out of eight
    y = pca_whiten(x, 6)
    assert y.isfinite().all() and y[:, 3:].abs().max() < 1e-3 and y[:, :3].var(0, correction=0).allclose(torch.ones(3))
    with pytest.raises(UserError, match="9 principal components of 8 features"):
        pca_whiten(x, 9)


def test_nearest_by_distance():
    x, c = torch.randn(40, 5), torch.randn(7, 5)
    assert torch.equal(nearest(x, c), torch.cdist(x, c).argmin(1))


def test_unit_rows_leaves_zeros():
    x = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.allclose(x, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_members_have_a_fixed_shape():
    labels = torch.tensor([2, 0, 2, 1, 2, 2])
    ids, real = members(labels, torch.tensor(2), 6)
    assert ids[real].tolist() == [0, 2, 4, 5] and len(ids) == 6
    ids, real = members(labels, torch.tensor(2), 3)
    assert ids[real].tolist() == [0, 2, 4]
    assert not members(labels, torch.tensor(3), 4)[1].any()


def test_bisect_finds_the_two_halves():
    x, truth = blobs(2, 12)
    real = torch.ones(30, dtype=torch.bool)
    real[24:] = False
    side = bisect(torch.cat([x, torch.full((6, 6), 100.0)]), real)
    assert not side[24:].any() and torch.equal(side[:24] ^ side[0], truth.bool())


def test_bisect_of_equal_rows_takes_every_other():
    real = torch.tensor([True] * 6 + [False] * 2)
    assert bisect(torch.ones(8, 3), real).tolist() == [False, True, False, True, False, True, False, False]


def test_deepcluster_epoch():
    """Clusters of well-separated features are found, weighted by size, and the classifier starts anew."""
    algorithm = build("deepcluster", clusters=3, components=2)  # three centres lie in a plane
    sizes = (4, 8, 12)
    truth = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    directions = torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    features = 10 * directions[truth] + 0.1 * torch.randn(SAMPLES, 24, generator=torch.Generator().manual_seed(6))
    asked = []
    before = algorithm.classifier.weight.detach().clone()
    progress = Progress(6, 10, 3)  # epoch 2, whose random start has a row of each cluster
    algorithm.start_epoch(progress, lambda module, view: asked.append((module, view)) or features)
    assert asked[0][0] is algorithm.backbone and asked[0][1].crop == "center" and asked[0][1].size == 32
    pairs = set(zip(truth.tolist(), algorithm.memory.labels.tolist()))
    assert len(pairs) == 3
    assert sorted(algorithm.sizes.tolist()) == sorted(sizes)
    weight = algorithm.classifier.weight
    assert not torch.equal(weight, before) and 0.005 < weight.std() < 0.015 and not algorithm.classifier.bias.any()


def odc_by_hand(rows, labels, centroids, ids, y, *, momentum, min_size, refresh):
    """One ODC step in loops, for a case in which at most one cluster is small."""
    for i, value in zip(ids.tolist(), y):
        mixed = momentum * rows[i] + (1 - momentum) * value
        rows[i] = mixed / (mixed.norm() + 1e-10)
        labels[i] = int((centroids @ rows[i]).argmax())
    clusters = len(centroids)
    if refresh:
        for c in range(clusters):
            if (labels == c).any():
                centroids[c] = rows[labels == c].mean(0)
    counts = torch.bincount(labels, minlength=clusters)
    e = int(counts.argmin())
    if counts[e] < min_size:
        for i in (labels == e).nonzero().flatten().tolist():
            allowed = [c for c in range(clusters) if counts[c] >= min_size]
            labels[i] = max(allowed, key=lambda c: float(centroids[c] @ rows[i]))
        big = int(torch.bincount(labels, minlength=clusters).argmax())
        inside = (labels == big).nonzero().flatten()
        side = bisect(rows[inside], torch.ones(len(inside), dtype=torch.bool))
        labels[inside[side]] = e
        for c in (e, big):
            centroids[c] = rows[labels == c].mean(0)
    return rows, labels, centroids


@pytest.mark.parametrize("step", [0, 1])
def test_odc_step(step):
    """`centroids_every` is 2, so step 1 moves all centroids and step 0 does not."""
    algorithm = build("odc", clusters=3, min_size=5, repairs=1)
    algorithm.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
    labels = torch.tensor([0] * 3 + [1] * 12 + [2] * 9)  # cluster 0 is small
    algorithm.memory.labels.copy_(labels)
    algorithm._update_centroids()
    algorithm(make_batch(algorithm, 0), Progress(step, 10, STEPS_PER_EPOCH))
    ((ids, y),) = algorithm._seen
    state = (algorithm.memory.rows.clone(), algorithm.memory.labels.clone(), algorithm.centroids.clone())
    expected = odc_by_hand(*state, ids, y, momentum=0.5, min_size=5, refresh=step == 1)
    algorithm.after_step(Progress(step, 10, STEPS_PER_EPOCH))
    assert torch.allclose(algorithm.memory.rows, expected[0], atol=1e-6)
    assert torch.equal(algorithm.memory.labels, expected[1])
    assert torch.allclose(algorithm.centroids, expected[2], atol=1e-5)


def test_odc_starts_from_the_heads_output_and_never_again():
    algorithm = build("odc")
    run(algorithm, make_optimizer(algorithm), range(1))
    calls = []
    algorithm.start_epoch(Progress(3, 10, STEPS_PER_EPOCH), lambda *_: calls.append(1))
    assert not calls
    fresh = build("odc")
    fresh.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
    rows = embed(torch.nn.Sequential(fresh.backbone, fresh.head), fresh.config.view)
    assert torch.allclose(fresh.memory.rows, rows / (rows.norm(dim=1, keepdim=True) + 1e-10), atol=1e-6)
    for c in range(5):
        mine = fresh.memory.labels == c
        assert not mine.any() or torch.allclose(fresh.centroids[c], fresh.memory.rows[mine].mean(0), atol=1e-6)


def test_odc_refills_several_small_clusters():
    """Three of six clusters are nearly empty; one step later no cluster is, and no sample got lost."""
    algorithm = build("odc", clusters=6, min_size=3, repairs=4)
    algorithm.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
    algorithm.memory.labels.copy_(torch.tensor([0, 1, 2] + [3] * 7 + [4] * 7 + [5] * 7))
    for _ in range(4):
        algorithm._refill_smallest()
    sizes = cluster_sizes(algorithm.memory.labels, 6)
    assert sizes.sum() == SAMPLES and (sizes == 0).sum() == 0 and (sizes < 3).sum() <= 1, sizes
