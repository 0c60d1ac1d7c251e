"""Loss and gradient of every algorithm's step against the paper's formula, written out in float64."""

import copy
import math

import pytest
import torch
from tiny_algorithms import OPTIONS, STEPS_PER_EPOCH, build, make_batch, make_optimizer, run

from headrace.models.algorithm import Progress
from headrace.models.algorithms.lejepa import unit_directions
from headrace.models.clustering import cluster_sizes


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(logits, right):
    """Mean of -log(exp(logit of the right class) / sum of exp)."""
    picked = logits[torch.arange(len(logits)), right]
    return (logits.exp().sum(1).log() - picked).mean()


def encode(model, x):
    return model.head(model.backbone(x))


def teach(model, x):
    return model.teacher.head(model.teacher.backbone(x)).detach()


def relative_loc(m, v, ids, progress):
    total, patches = 0.0, v["image"]
    neighbours = m.backbone(patches[1:].flatten(0, 1)).unflatten(0, (8, -1))
    centres = m.backbone(patches[0])
    logits = m.head(torch.cat([torch.cat([neighbours[k], centres], 1) for k in range(8)])).unflatten(0, (8, -1))
    for k in range(8):
        total = total + cross_entropy(logits[k], torch.full((len(ids),), k))
    return total / 8


def rotation_pred(m, v, ids, progress):
    turned = [v["image"][0].rot90(-k, (2, 3)) for k in range(4)]
    assert all((a - b).abs().max() == 0 for a, b in zip(turned, v["image"]))
    return sum(cross_entropy(encode(m, x), torch.full((len(ids),), k)) for k, x in enumerate(turned)) / 4


def npid(m, v, ids, progress):
    z, bank = unit(encode(m, v["image"][0])), m.bank.rows
    torch.manual_seed(progress.step)
    negatives = m.draw_negatives(ids)
    logits = torch.stack([torch.stack([z[i] @ bank[j] for j in (ids[i], *negatives[i])]) for i in range(len(ids))])
    return cross_entropy(logits / m.config.temperature, torch.zeros(len(ids), dtype=torch.int64))


def by_cluster(m, features, ids, weight_of_size):
    labels = m.memory.labels
    sizes = torch.bincount(labels, minlength=m.config.clusters)
    weights = [weight_of_size(int(sizes[labels[i]])) for i in ids]
    logits = m.classifier(features)
    losses = [cross_entropy(logits[i : i + 1], labels[ids[i : i + 1]]) for i in range(len(ids))]
    return sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)


def deepcluster(m, v, ids, progress):
    return by_cluster(m, m.backbone(v["image"][0]), ids, lambda size: 1 / size)


def odc(m, v, ids, progress):
    return by_cluster(m, encode(m, v["image"][0]), ids, lambda size: size**-0.5)


def info_nce(q, k, queue, temperature):
    losses = []
    for i in range(len(q)):
        positive = (q[i] @ k[i] / temperature).exp()
        losses.append(-(positive / (positive + (queue @ q[i] / temperature).exp().sum())).log())
    return sum(losses) / len(losses)


def moco(m, v, ids, progress):
    first, second = v["image"]
    return info_nce(unit(encode(m, first)), unit(teach(m, second)), m.queue.rows, m.config.temperature)


def densecl(m, v, ids, progress):
    first, second = v["image"]
    b, c = m.backbone.stages(first)[-1], m.teacher.backbone.stages(second)[-1].detach()
    q, k = m.head.whole(b.mean((2, 3))), m.teacher.head.whole(c.mean((2, 3))).detach()
    whole = info_nce(unit(q), unit(k), m.queue.rows, m.config.temperature)
    rows, positives = [], []
    for image in range(len(ids)):
        places = [(y, x) for y in range(b.shape[2]) for x in range(b.shape[3])]
        for y, x in places:
            here = unit(b[image, :, y, x].detach())
            match = max(places, key=lambda p: float(here @ unit(c[image, :, p[0], p[1]])))
            rows.append(unit(m.head.dense(b[image, :, y, x])))
            positives.append(unit(m.teacher.head.dense(c[image, :, match[0], match[1]]).detach()))
    dense = info_nce(torch.stack(rows), torch.stack(positives), m.dense_queue.rows, m.config.temperature)
    return 0.5 * whole + 0.5 * dense


def mocov3(m, v, ids, progress):
    x = (v["first"][0], v["second"][0])
    q = [unit(m.predictor(encode(m, image))) for image in x]
    k = [unit(teach(m, image)) for image in x]
    t, right = m.config.temperature, torch.arange(len(ids))
    return 2 * t * (cross_entropy(q[0] @ k[1].T / t, right) + cross_entropy(q[1] @ k[0].T / t, right))


def simclr(m, v, ids, progress):
    z, n = unit(encode(m, v["image"].flatten(0, 1))), len(ids)
    losses = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        similarity = torch.stack([(z[i] @ z[j] / m.config.temperature).exp() for j in others])
        losses.append(-(similarity[others.index((i + n) % (2 * n))] / similarity.sum()).log())
    return sum(losses) / len(losses)


def byol(m, v, ids, progress):
    x1, x2 = v["first"][0], v["second"][0]
    p1, p2 = m.predictor(encode(m, x1)), m.predictor(encode(m, x2))
    squares = (unit(p1) - unit(teach(m, x2))).square().sum(1) + (unit(p2) - unit(teach(m, x1))).square().sum(1)
    return squares.mean() - 4


def simsiam(m, v, ids, progress):
    z = [encode(m, x) for x in v["image"]]
    p = [m.predictor(x) for x in z]
    return -((unit(p[0]) * unit(z[1].detach())).sum(1) + (unit(p[1]) * unit(z[0].detach())).sum(1)).mean() / 2


def barlowtwins(m, v, ids, progress):
    z = [encode(m, v[name][0]) for name in ("first", "second")]
    z = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z]
    loss = 0.0
    for i in range(z[0].shape[1]):
        for j in range(z[0].shape[1]):
            c = (z[0][:, i] * z[1][:, j]).mean()
            loss = loss + ((c - 1) ** 2 if i == j else m.config.off_diagonal * c**2)
    return loss


def swav(m, v, ids, progress):
    """The authors' pseudo-code: Q is (prototypes, samples)."""
    crops = [*v["large"], *v["small"]]
    features = [m.backbone(v["large"].flatten(0, 1)), m.backbone(v["small"].flatten(0, 1))]
    z = unit(m.head(torch.cat(features))).unflatten(0, (len(crops), -1))
    prototypes = unit(m.prototypes.weight)
    loss = 0.0
    for a in range(2):
        with torch.no_grad():
            rows = torch.cat([m.queues[a].rows, z[a]])
            Q = (prototypes @ rows.T / 0.05).exp()
            Q /= Q.sum()
            for _ in range(3):
                Q = Q / Q.sum(1, keepdim=True) / Q.shape[0]
                Q = Q / Q.sum(0, keepdim=True) / Q.shape[1]
            q = (Q * Q.shape[1]).T[-len(ids) :]
        for b in range(len(crops)):
            if b != a:
                p = ((z[b] @ prototypes.T) / 0.1).softmax(1)
                loss = loss - (q * p.log()).sum(1).mean() / (len(crops) - 1) / 2
    return loss


def dino(m, v, ids, progress):
    large, small = torch.cat([v["first"], v["second"]]), v["small"]
    s = [encode(m, x) for x in (*large, *small)]
    temperature = (0.03, 0.04, 0.05)[progress.epoch]
    t = [((teach(m, x) - m.center) / temperature).softmax(1) for x in large]
    terms = [
        -(t[a] * (s[b] / m.config.temperature).softmax(1).log()).sum(1).mean()
        for a in range(2)
        for b in range(len(s))
        if a != b
    ]
    return sum(terms) / len(terms)


def lejepa(m, v, ids, progress):
    """Distances to the mean of the global views, and the integral of the authors' pseudo-code."""
    views = [*v["large"], *v["small"]]
    features = [m.backbone(v["large"].flatten(0, 1)), m.backbone(v["small"].flatten(0, 1))]
    z = m.head(torch.cat(features)).unflatten(0, (len(views), -1))
    centre = (z[0] + z[1]) / 2
    distance = sum((x - centre).square().mean() for x in z) / len(views)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    phi, total = (-t.square() / 2).exp(), 0.0
    directions = unit_directions(12, 40, progress, z.device)
    for x in z:
        for a in directions.T:
            ecf = torch.exp(1j * t * (x @ a)[:, None]).mean(0)
            total = total + len(x) * 2 * torch.trapezoid((ecf - phi).abs().square() * phi, t)
    return 0.9 * distance + 0.1 * total / len(views) / 40


def seen(m, v, mask, progress):
    """Image by image: class tokens of all crops and patches of the large ones, of student and teacher."""
    student, patches, known, known_patches = [], [], [], []
    crops = [v["first"][0], v["second"][0], *v["small"]]
    for number, images in enumerate(crops):
        extra = {}
        if m.config.name == "dinov3":
            extra["rotary_scales"] = m.rotary_scales(progress, "large" if number < 2 else "small", images.device)
        rows = []
        for i in range(len(images)):
            if number < 2:
                extra |= {"hidden": mask.hidden[i : i + 1, number], "mask_token": m.mask_token}
            (x,) = m.backbone.outputs(images[i : i + 1], (len(m.backbone.blocks) - 1,), **extra)
            norm = m.small_norm if number >= 2 and m.config.name == "dinov3" else m.backbone.norm
            rows.append(torch.cat([norm(x[0, :1]), m.backbone.norm(x[0, 1:])]))
        student.append([row[0] for row in rows])
        if number < 2:
            patches.append([row[1:] for row in rows])
            tokens = [m.teacher.backbone.tokens(images[i : i + 1])[0].detach() for i in range(len(images))]
            known.append([x[0] for x in tokens])
            known_patches.append([x[1:] for x in tokens])
    return student, patches, known, known_patches


def assigned(logits, temperature):
    """Rows -> distributions, as in the authors' loop."""
    Q = (logits / temperature).exp().T
    Q = Q / Q.sum()
    for _ in range(3):
        Q = Q / Q.sum(1, keepdim=True) / Q.shape[0]
        Q = Q / Q.sum(0, keepdim=True) / Q.shape[1]
    return (Q * Q.shape[1]).T


def self_distillation(m, v, mask, progress, by_sinkhorn):
    student, patches, known, known_patches = seen(m, v, mask, progress)
    batch, hidden = len(student[0]), mask.hidden
    heads = m.head, m.patch_head if m.patch_head is not None else m.head
    own = m.teacher.head, m.teacher.patch_head if m.patch_head is not None else m.teacher.head
    with torch.no_grad():
        t = own[0](torch.stack([x for crop in known for x in crop]))
        places = [(c, i, j) for c in range(2) for i in range(batch) for j in hidden[i, c].nonzero()[:, 0].tolist()]
        t_patch = own[1](torch.stack([known_patches[c][i][j] for c, i, j in places]))
        if by_sinkhorn:
            q, q_patch = assigned(t, 0.07), assigned(t_patch, 0.07)
        else:
            q, q_patch = (((x - c.mean) / 0.07).softmax(1) for x, c in ((t, m.center), (t_patch, m.patch_center)))
        q = q.unflatten(0, (2, batch))
    s = [(heads[0](torch.stack(crop)) / 0.1).log_softmax(1) for crop in student]
    pairs = [(a, b) for a in range(2) for b in range(len(s)) if a != b]
    of_crops = sum(-(q[a] * s[b]).sum(1).mean() for a, b in pairs) / len(pairs)
    of_patches = 0.0
    for (c, i, j), target in zip(places, q_patch):
        log_p = (heads[1](patches[c][i][j][None])[0] / 0.1).log_softmax(0)
        of_patches = of_patches - (target * log_p).sum() / hidden[i, c].sum() / batch / 2
    return of_crops + of_patches, student


def koleo(student, group):
    total = 0.0
    for crop in student[:2]:
        x = unit(torch.stack(crop))
        for i in range(len(x)):
            others = [j for j in range(i // group * group, i // group * group + group) if j != i]
            nearest = max(others, key=lambda j: (x[i] @ x[j]).item())
            total = total - ((x[i] - x[nearest] + 1e-8).norm() + 1e-8).log() / len(x)
    return total


def ibot(m, v, ids, progress, mask):
    return self_distillation(m, v, mask, progress, by_sinkhorn=False)[0]


def dinov2(m, v, ids, progress, mask):
    loss, student = self_distillation(m, v, mask, progress, by_sinkhorn=False)
    return loss + 0.1 * koleo(student, 8)


def dinov3(m, v, ids, progress, mask):
    loss, student = self_distillation(m, v, mask, progress, by_sinkhorn=True)
    return loss + 0.1 * koleo(student, 4)


def distill(m, v, ids, progress):
    """lightly-train's two parts, one image and one patch at a time."""
    images, total = v["image"][0], 0.0
    tokens = [network.tokens(images)[:, 1:] for network in (m.teacher.module, m.backbone)]
    t, s = unit(tokens[0].mean(1).detach()), unit(m.head(tokens[1].mean(1)))
    others = torch.cat([t, m.queue.rows])
    student = unit(m.local_head(tokens[1]))
    teacher = unit(tokens[0].detach())
    for i in range(len(ids)):
        rows = [(others @ t[i], others @ s[i], 1.0)]
        for n in range(student.shape[1]):
            rows.append((teacher[i] @ teacher[i, n], student[i] @ student[i, n], 1 / student.shape[1]))
        for a, b, weight in rows:
            p, q = (a / 0.07).softmax(0), (b / 0.07).softmax(0)
            total = total + weight * (p * (p / q).log()).sum()
    return total / len(ids)


PAPER = {name: globals()[name] for name in OPTIONS}


@pytest.mark.parametrize("name", PAPER)
def test_step_is_the_papers(name):
    changes = {"swav": dict(freeze_prototypes=0)}
    algorithm = build(name, **changes.get(name, {}))
    run(algorithm, make_optimizer(algorithm, lr=0.01), range(4))  # teachers, queues and centres have moved
    algorithm.zero_grad()
    step = 4
    batch, progress = make_batch(algorithm, step), Progress(step, 10, STEPS_PER_EPOCH)
    if name == "swav":  # the formula takes prototypes of unit length as the parameter, so the projection is done before
        algorithm.prototypes.weight.data = unit(algorithm.prototypes.weight.data)
    exact = copy.deepcopy(algorithm).double()
    torch.manual_seed(step)
    loss = algorithm(batch, progress).loss
    loss.backward()
    masked = {} if batch.mask is None else {"mask": batch.mask}
    expected = PAPER[name](exact, {key: x.double() for key, x in batch.views.items()}, batch.ids, progress, **masked)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    compared = 0
    gradients = {key: p.grad for key, p in exact.named_parameters() if p.grad is not None}
    largest = max(g.norm() for g in gradients.values())
    for key, p in algorithm.named_parameters():
        if key == "prototypes.weight":  # its gradient along the row is removed by the formula's normalisation
            w, g = p.detach(), p.grad
            p.grad = g - (g * w).sum(1, keepdim=True) * w
        if p.grad is not None:
            error = (p.grad.double() - gradients[key]).norm()
            assert error < 1e-3 * max(gradients[key].norm(), 1e-2 * largest), key
            compared += 1
    assert compared == len(gradients) > 5


def test_odc_weights_are_of_the_current_sizes():
    algorithm = build("odc")
    run(algorithm, make_optimizer(algorithm), range(3))
    assert torch.equal(algorithm.sizes, cluster_sizes(algorithm.memory.labels, algorithm.config.clusters))
    assert algorithm.sizes.sum() == len(algorithm.memory.labels)


@pytest.mark.parametrize(
    "name, chance",
    [("relative_loc", math.log(8)), ("rotation_pred", math.log(4)), ("deepcluster", math.log(5)), ("odc", math.log(5))],
)
def test_loss_at_the_start_is_that_of_guessing(name, chance):
    algorithm = build(name)
    loss = run(algorithm, make_optimizer(algorithm), range(1))[0]
    assert loss == pytest.approx(chance, rel=0.02)
