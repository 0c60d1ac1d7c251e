"""``headrace <command>``: one line a command; each command's module is imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys

from .errors import UserError, run_command

# command -> (module with main(argv), what it does)
COMMANDS = {
    "shard": ("pipelines.shard", "any source of images -> WebDataset tars with an index"),
    "pixels": ("pipelines.pixels.command", "the pixels of shards, decoded once and for all, beside them"),
    "check": ("pipelines.check", "whether a data set is sound: tars, indexes, checksums, images"),
    "know": ("tools.know.know", "what is in a data set: near duplicates, leaks, outliers; columns to filter by"),
    "curate": ("tools.know.curate", "a balanced choice of a data set's images, by an encoder: columns to read them by"),
    "pretrain": ("train.pretrain_command", "a recipe -> a pre-trained encoder"),
    "recipes": ("train.recipe.listing", "what can be trained, one line a recipe"),
    "embed": ("train.evaluation.embed_store", "features of a data set, as numpy arrays"),
    "knn": ("train.evaluation.knn", "k-NN accuracy of an encoder"),
    "linear": ("train.evaluation.linear", "accuracy of a linear classifier on its features"),
    "finetune": ("train.evaluation.finetune", "accuracy after training all of its weights with labels"),
    "detect": ("train.dense.detect", "average precision after training it to find objects"),
    "segment": ("train.dense.segment", "mean intersection over union after training it to segment"),
    "dense-knn": ("train.patches.knn", "mean intersection over union of k-NN on its patches"),
    "dense-linear": ("train.patches.linear", "the same of a linear layer on its patches"),
    "svm": ("train.evaluation.svm", "mean average precision on VOC 2007 of linear SVMs on its features"),
    "tsne": ("tools.look.tsne", "its features in two dimensions, as a picture"),
    "shape-bias": ("tools.look.shape_bias", "whether a classifier goes by shape or by texture"),
    "browse": ("tools.look.browse", "what training will see: images, crops, views, masks"),
    "reconstruct": ("tools.look.reconstruct", "what a masked autoencoder makes of hidden patches, as a picture"),
    "attention": ("tools.look.attention", "where a vision transformer looks: its heads' attention, laid over images"),
    "pca": ("tools.look.pca", "what an encoder's features tell apart: components of patches as colours"),
    "report": ("tools.runs.report", "all of a run as one HTML page: curves, views, configuration, warnings"),
    "compare": ("tools.runs.compare", "runs side by side: settings that differ, figures, curves"),
    "curves": ("tools.runs.curves", "loss, rate or any other figure of runs over time, and their step times"),
    "import": ("tools.exchange.import_weights", "an encoder out of a checkpoint of another code base"),
    "import-config": ("tools.exchange.import_config", "a configuration of MMSelfSup -> a recipe"),
    "export": ("tools.exchange.export", "an encoder the way timm, torchvision, OpenMMLab, ... name it; or as ONNX"),
    "models": ("tools.models_command", "models by name: parameters, multiply-adds, published accuracies"),
    "plan": ("tools.plan", "what a run will read: sets, shares, filters, visits"),
    "params": ("tools.params", "parameters and multiply-adds of a recipe's model, part by part"),
    "predict": ("tools.predict", "classes of photos, by a trained classifier"),
    "doctor": ("tools.doctor.doctor", "where the time goes between disk and model, and what would help"),
    "parity": ("tools.parity", "how far every way of making views is from the definition, as a page"),
    "kernels": ("kernels.commands", "which implementation each operator uses, and checks of your own"),
    "demo": ("tools.demo", "the whole journey on a small set in about two minutes"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: headrace <command> [arguments]; headrace <command> --help", *lines])


def dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"{name}: no such command" + (f"; did you mean {near[0]}?" if near else "") + "\n" + usage())
    return importlib.import_module(f"headrace.{COMMANDS[name][0]}").main(rest)


def main() -> int:
    return run_command(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
