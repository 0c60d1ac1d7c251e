"""``headrace svm``: linear SVMs on frozen features of PASCAL VOC 2007, on all of it and on a few images a class.

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning", arXiv 1905.01235.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...cores import cores
from ...errors import UserError
from ...pipelines.rng import stream_key
from ...pipelines.sources.voc import CATEGORIES, VocSource
from ..engine.distributed import Launch, launch, pick_device
from .embed import Features
from .embed_store import stored_features
from .evaluate import Stopwatch, add_encoder, add_outputs, encoder_of, options_of, positive, record, table

COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
_FOLDS = 3


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under precision over recall, in [0, 1], of targets (N,) in {0, 1} ranked by scores (N,).

    Precision is made to fall: at each recall it is the best that any larger recall has (VOC's from 2010 on). What has
    equal scores comes all at once, so the order of images is worth nothing: scores that are all equal give the share of
    positives.
    """
    order = np.argsort(-scores, kind="stable")
    hits = targets[order] == 1
    if not hits.any():
        return 0.0
    upto = np.searchsorted(-scores[order], -scores[order], side="right")  # how many come with it or before
    precision = hits.cumsum()[upto - 1] / upto
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hits].mean())  # recall rises by the same step at each hit, and nowhere else


def unit_rows(features: Features) -> np.ndarray:
    """(N, D) float64 rows divided by their Euclidean norm + 1e-5."""
    rows = features.vectors.numpy().astype(np.float64)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5)


def fit_svm(rows: np.ndarray, wanted: np.ndarray, cost: float, seed: int):
    """Squared hinge, L2 penalty, positives twice as heavy: the published setting. `wanted` (N,) bool."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC
    except ImportError:
        raise UserError("headrace svm: needs scikit-learn; pip install headrace[eval]") from None
    options = {"class_weight": {True: 2, False: 1}, "tol": 1e-4, "max_iter": 2000, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 2,000 iterations are part of the protocol
        return LinearSVC(C=cost, penalty="l2", loss="squared_hinge", dual=True, **options).fit(rows, wanted)


def choose_cost(rows: np.ndarray, wanted: np.ndarray, costs: Sequence[float], seed: int) -> float:
    """The cost with the best mean average precision over three folds, each with its share of positives."""
    from sklearn.model_selection import StratifiedKFold

    folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(rows, wanted))

    def score(cost: float) -> float:
        found = []
        for inside, outside in folds:
            machine = fit_svm(rows[inside], wanted[inside], cost, seed)
            found.append(average_precision(wanted[outside], machine.decision_function(rows[outside])))
        return float(np.mean(found))

    return max(costs, key=score)


def _in_parallel(function: Callable, tasks: list[tuple], jobs: int) -> list:
    """What the function makes of each task, by `jobs` processes: the solver's random numbers are one sequence for all
    threads of a process, so threads would not repeat."""
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs)(delayed(function)(*task) for task in tasks)


def full(
    train, train_targets, test, test_targets, *, costs: Sequence[float] = COSTS, seed: int = 0, jobs: int = 1
) -> list[dict]:
    """A row for each class with its cost and AP. rows (N, D); targets (N, C) in {1, 0, -1}.

    -1, difficult, counts as absent in training and is left out of the test. `jobs` processes take a class each.
    """
    tasks = [(train, own, test, asked, costs, seed) for own, asked in zip(train_targets.T, test_targets.T)]
    return [{"class": column, **row} for column, row in enumerate(_in_parallel(_one_class, tasks, jobs))]


def _one_class(train, own, test, asked, costs: Sequence[float], seed: int) -> dict:
    cost = choose_cost(train, own == 1, costs, seed)
    scores = fit_svm(train, own == 1, cost, seed).decision_function(test)
    counts = asked >= 0
    return {"cost": cost, "AP": average_precision(asked[counts], scores[counts])}


def few_rows(targets: np.ndarray, shots: int, seed: int) -> list[np.ndarray]:
    """For each class the rows of `shots` positives and (classes - 1) x `shots` negatives, without replacement."""
    rng = np.random.Generator(np.random.Philox(key=stream_key(seed, "low shot", shots) % 2**64))
    chosen = []
    for own in targets.T:
        positives, negatives = np.flatnonzero(own == 1), np.flatnonzero(own == 0)
        wanted = min(shots, len(positives)), min(shots * (targets.shape[1] - 1), len(negatives))
        picked = [rng.choice(rows, count, replace=False) for rows, count in zip((positives, negatives), wanted)]
        chosen.append(np.concatenate(picked))
    return chosen


def low_shot(
    train,
    train_targets,
    test,
    test_targets,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    costs=COSTS,
    seed: int = 0,
    jobs: int = 1,
) -> list[dict]:
    """A row for each number of shots: mean and deviation of the mAP over draws, at the cost whose mean is best.

    As published, that cost is chosen on the test set. `jobs` processes take a draw each.
    """
    data = train, train_targets, test, test_targets
    tasks = [(*data, costs, few_rows(train_targets, n, seed + draw), seed) for n in shots for draw in range(draws)]
    drawn = np.array(_in_parallel(_one_draw, tasks, jobs)).reshape(len(shots), draws, len(costs))
    rows = []
    for count, figures in zip(shots, drawn):
        best = int(figures.mean(0).argmax())
        spread = float(figures[:, best].std())
        rows.append({"shots": count, "cost": costs[best], "mAP": float(figures[:, best].mean()), "spread": spread})
    return rows


def _one_draw(train, train_targets, test, test_targets, costs, picked: list[np.ndarray], seed: int) -> list[float]:
    """The mAP for each cost."""
    figures = []
    for cost in costs:
        found = []
        for column, own in enumerate(picked):
            machine = fit_svm(train[own], train_targets[own, column] == 1, cost, seed)
            counts = test_targets[:, column] >= 0
            found.append(average_precision(test_targets[counts, column], machine.decision_function(test[counts])))
        figures.append(float(np.mean(found)))
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace svm", description="Mean average precision on PASCAL VOC 2007 of linear SVMs on frozen features."
    )
    add_encoder(parser)
    parser.add_argument("data", help="the folder VOCdevkit, or the one that holds it")
    parser.add_argument("--low-shot", action="store_true", help="a few images a class instead of all")
    parser.add_argument("--shots", type=positive, nargs="+", default=SHOTS)
    parser.add_argument("--draws", type=positive, default=5)
    parser.add_argument("--cost", type=float, nargs="+", default=COSTS, help="default: the nineteen published ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=positive, default=cores(), help="processes that fit SVMs (all cores)")
    add_outputs(parser)
    arguments = parser.parse_args(argv)
    if min(arguments.cost) <= 0:
        raise UserError("--cost: must be positive")

    watch, encoder, costs = Stopwatch(), encoder_of(arguments), sorted(set(arguments.cost))
    if arguments.view is None:  # the whole image, squashed
        encoder.view = replace(encoder.view, crop="window", resize=encoder.view.size, squash=True)
    with launch(pick_device(arguments.device)) as process:
        parts = [_part(encoder, arguments, split, process) for split in ("trainval", "test")]
    if not process.is_main:
        return 0
    given = [array for part in parts for array in part]
    if arguments.low_shot:
        settings = {"shots": arguments.shots, "draws": arguments.draws, "costs": costs, "seed": arguments.seed}
        figures = low_shot(*given, **settings, jobs=arguments.jobs)
    else:
        settings = {"costs": costs, "seed": arguments.seed}
        rows = full(*given, **settings, jobs=arguments.jobs)
        classes = {CATEGORIES[row["class"]]: {"cost": row["cost"], "AP": row["AP"]} for row in rows}
        figures = [{"mAP": float(np.mean([row["AP"] for row in rows]))}]
    protocol = "VOC07 low-shot SVM" if arguments.low_shot else "VOC07 SVM"
    stored = figures if arguments.low_shot else figures[0] | {"classes": classes}
    record(arguments.results, protocol, encoder, {"voc": arguments.data}, settings, stored, watch)
    table(f"{protocol}, {encoder.name}", figures)
    return 0


def _part(encoder, arguments: argparse.Namespace, split: str, process: Launch) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows and targets of a split."""
    source = VocSource(arguments.data, split=split)
    features = stored_features(encoder, source, arguments.features, **options_of(arguments, process))
    if features.left_out:
        raise UserError(
            f"{source.name}: {features.left_out[0]}; unpack its archive again, the protocol takes all images"
        )
    return unit_rows(features), np.stack([source.target(i) for i in range(len(source))])
