"""``headrace finetune``: train a classifier on a pre-trained encoder, weights and all, and test it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import UserError
from ...models.algorithms.classifier import Classifier
from ...models.algorithms.multihead import MultiHead
from ...pipelines.images.rules import use_rules
from ...pipelines.spec import ByteSource, ViewSpec
from ..engine import checkpoint
from ..engine.distributed import Launch, launch, pick_device
from ..engine.run_directory import has_ended
from ..pretrain import pretrain
from ..recipe.recipe import Recipe, load_recipe
from .embed import Features, embed, evaluation_view
from .embed_encoder import Encoder, digest, inherited, started_with
from .evaluate import Stopwatch, accuracies, add_results, record, say_left_out, table
from .labels import labelled, labelled_sets, remarks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace finetune",
        description="Fine-tune a pre-trained encoder as a classifier. Everything that headrace pretrain does with a "
        "recipe holds: several processes, checkpoints, exact resume.",
    )
    parser.add_argument("recipe", help="a YAML file, or a packaged recipe such as finetune/vit-tiny_cifar10")
    parser.add_argument("encoder", help="a run directory, a checkpoint or an encoder.safetensors; scratch: none")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="data.train=..., data.val=..., ...")
    add_results(parser)
    arguments = parser.parse_intermixed_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not isinstance(recipe.algorithm, Classifier.Config):
        raise UserError(f"{arguments.recipe}: trains no classifier but {recipe.algorithm.name}; see configs/finetune")
    if recipe.data.train is None or recipe.data.val is None:
        raise UserError("data.train, data.val: fine-tuning needs both, labelled images to learn from and to classify")
    use_rules(recipe.data.rules)  # which files are images depends on them
    sources = labelled_sets(recipe.data.train, recipe.data.val, ("data.train", "data.val"))
    first, given = [], [f"algorithm.classes={len(sources[0].classes)}"]
    with started_with(arguments.encoder, recipe.out) as weights:
        if weights is not None:
            first = inherited(weights)
            given.append(("algorithm.weights", str(weights)))
        recipe = load_recipe(arguments.recipe, [*first, *arguments.overrides, *given])
        return run_classifier(recipe, f"finetune {recipe.name}", arguments.encoder, sources, arguments.results)


def run_classifier(
    recipe: Recipe, protocol: str, start: str, sources: tuple[ByteSource, ByteSource], results: Path
) -> int:
    """Trains (or resumes) a recipe whose algorithm is the classifier on the first of `labelled_sets`; tests it on the
    second when it is finished. Images without a label take part in neither."""
    watch = Stopwatch()
    train, val = map(labelled, sources)
    with launch(pick_device(recipe.train.device), recipe.train.timeout) as process:
        if process.is_main:
            for line in remarks(*sources):
                print(line, flush=True)
        out = pretrain(recipe, process, train)
        process.barrier()  # until then the first may still write
        if not has_ended(out):
            if process.is_main:
                print(f"{out}: stopped before its end; the same command continues, and tests the classifier then")
            return 0
        path, state = checkpoint.find(out)
        classifier = checkpoint.algorithm_of(state, path)
        found, view = tested(classifier, recipe, val, process)
    if not process.is_main:
        return 0
    say_left_out(found.left_out)
    figures = _figures(classifier, found)
    encoder = Encoder(start, classifier, view, digest(classifier, str(classifier.config)))
    table(f"{protocol}, {start}", figures if isinstance(figures, list) else [figures])
    data = {"train": state["config"]["data"]["train"], "val": recipe.data.val}
    data["unlabelled"] = [len(source) - len(own) for source, own in zip(sources, (train, val))]
    record(results, protocol, encoder, data, state["config"], figures, watch)  # of the run that these weights come from
    return 0


def _figures(classifier: Classifier | MultiHead, found: Features) -> dict | list[dict]:
    """Accuracies; of a classifier with several heads a row for each."""
    if isinstance(classifier, Classifier):
        return accuracies(found.vectors, found.labels)
    heads = zip(classifier.scorer.heads, found.vectors.unbind(1))
    return [{"layer": layer, **accuracies(scores, found.labels)} for layer, scores in heads]


def tested(
    classifier: Classifier | MultiHead, recipe: Recipe, source: ByteSource, process: Launch
) -> tuple[Features, ViewSpec]:
    """Scores of the images of a source, (N, classes) or (N, heads, classes), on every process; and the view of them."""
    view = evaluation_view(classifier.config.view)
    threads = recipe.data.threads or process.cores
    options = {"loader": recipe.data.loader, "threads": threads, "process": process}
    options |= {"max_bad": recipe.data.max_bad, "setting": "data.max_bad"}
    return embed(classifier.scorer, source, view, **options), view
