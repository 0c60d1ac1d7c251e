"""Whole pre-training methods: what OpenMMLab and the authors call decoders, projectors, teachers and queues.

The encoders in them are found as everywhere; the pairs here are of the rest, by full names. A method's pairs hold the
spellings of all code bases side by side, since none is the beginning of another one's. Wrappers are gone by then.
"""

from __future__ import annotations

import torch

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms import find_algorithm
from ..recipe.recipe import load_recipe
from .convert import Imported, encoder_tensors, one_line, some
from .names import Names, Pair, unwrapped
from .recognise import recognise


def _each(numbers: str, *pairs: tuple[str, str]) -> tuple[Pair, ...]:
    """``_each("0:1 3:4", ("fc.{}", "head.{}"))``: theirs with the first number, ours with the second."""
    given = [part.split(":") for part in numbers.split()]
    return tuple((theirs.format(a), ours.format(b)) for a, b in given for theirs, ours in pairs)


def _block(theirs: str, ours: str) -> tuple[Pair, ...]:
    inner = {
        ("norm1", "ln1"): "norm1",
        ("attn.qkv",): "qkv",
        ("attn.q_bias",): "q_bias",
        ("attn.v_bias",): "v_bias",
        ("attn.q",): "q",
        ("attn.kv",): "kv",
        ("attn.proj",): "proj",
        ("norm2", "ln2"): "norm2",
        ("mlp.fc1", "ffn.layers.0.0"): "fc1",
        ("mlp.fc2", "ffn.layers.1"): "fc2",
        ("gamma_1",): "scale1",
        ("gamma_2",): "scale2",
    }
    return tuple((f"{theirs}.{name}", f"{ours}.{own}") for names, own in inner.items() for name in names)


_DECODER = tuple(
    pair
    for neck in ("", "neck.")
    for pair in (
        (f"{neck}mask_token", "decoder.mask_token"),
        (f"{neck}decoder_embed", "decoder.embed"),
        (f"{neck}decoder_pos_embed", "decoder.positions"),
        *_block(f"{neck}decoder_blocks.{{i}}", "decoder.blocks.{i}"),
        (f"{neck}decoder_norm", "decoder.norm"),
        (f"{neck}ln1", "decoder.norm"),
        (f"{neck}decoder_pred", "decoder.predict"),
    )
)


def _neck(layers: int, theirs: str, ours: str) -> tuple[Pair, ...]:
    """OpenMMLab's fc0, bn0, fc1, ... -> a sequence of linear layer, norm, ReLU."""
    numbers = range(layers)
    return tuple(
        (f"{theirs}.{kind}{n}", f"{ours}.{3 * n + place}") for n in numbers for place, kind in ((0, "fc"), (1, "bn"))
    )


def _same(theirs: str, ours: str) -> tuple[Pair, ...]:
    return ((f"{theirs}.{{i}}", f"{ours}.{{i}}"),)


_MOCO = (
    ("neck.mlp", "head"),
    ("encoder_k.1.mlp", "teacher.head"),
    ("neck.fc", "head"),
    ("encoder_k.1.fc", "teacher.head"),
    ("encoder_q.fc", "head"),
    ("encoder_k.fc", "teacher.head"),
    ("queue", "queue.rows"),
    ("queue_ptr", "queue.next"),
)
_BYOL = (
    *_neck(2, "neck", "head"),
    *_neck(2, "head.predictor", "predictor"),
    *_neck(2, "target_net.1", "teacher.head"),
)
_MASKED_WORDS = (
    ("mask_token", "mask_token"),
    ("backbone.mask_token", "mask_token"),
    ("lm_head", "head"),
    ("head.cls_head", "head"),
)
_CAE = (
    ("neck.mask_token", "mask_token"),
    *(
        (f"neck.regressors.{{i}}.{theirs}", f"regressor.{{i}}.{ours}")
        for theirs, ours in {
            "norm1_q_cross": "norm_q",
            "norm1_k_cross": "norm_k",
            "norm1_v_cross": "norm_v",
            "cross_attn.q.weight": "q.weight",
            "cross_attn.q_bias": "q.bias",
            "cross_attn.k": "k",
            "cross_attn.v.weight": "v.weight",
            "cross_attn.v_bias": "v.bias",
            "cross_attn.proj": "proj",
            "norm2_cross": "norm2",
            "ffn.layers.0.0": "fc1",
            "ffn.layers.1": "fc2",
            "gamma_1_cross": "scale1",
            "gamma_2_cross": "scale2",
        }.items()
    ),
    ("neck.norm_regressor", "regressor_norm"),
    *_block("neck.decoders.{i}", "decoder.{i}"),
    ("neck.norm_decoder", "decoder_norm"),
    ("neck.head", "head"),
)
METHODS: dict[str, tuple[Pair, ...]] = {
    "mae": _DECODER,
    "pixmim": _DECODER,
    "eva": _DECODER,
    "milan": _DECODER,
    "mixmim": _DECODER,
    "mae_hivit": (*_DECODER, ("norm", "norm")),
    "simmim": (
        ("backbone.mask_token", "mask_token"),
        ("encoder.mask_token", "mask_token"),
        ("neck.decoder.0", "head"),
        ("decoder.0", "head"),
    ),
    "maskfeat": (("backbone.mask_token", "mask_token"), ("neck.fc", "head")),
    "beit": _MASKED_WORDS,
    "beitv2": (
        *_MASKED_WORDS,
        *_block("neck.patch_aggregation.{i}", "neck.{i}"),
        *_block("cls_pt_layers.{i}", "neck.{i}"),
    ),
    "cae": _CAE,
    "moco": _MOCO,
    "densecl": (
        ("neck.mlp", "head.whole"),
        ("neck.mlp2", "head.dense"),
        *((f"encoder_k.1.{theirs}", f"teacher.head.{ours}") for theirs, ours in (("mlp", "whole"), ("mlp2", "dense"))),
        ("queue", "queue.rows"),
        ("queue_ptr", "queue.next"),
        ("queue2", "dense_queue.rows"),
        ("queue2_ptr", "dense_queue.next"),
    ),
    "mocov3": (
        *_neck(3, "neck", "head"),
        *_neck(3, "head.predictor", "predictor"),
        *_neck(3, "momentum_encoder.1", "teacher.head"),
        *_same("base_encoder.head", "head"),
        *_same("base_encoder.fc", "head"),
        *_same("predictor", "predictor"),
        *_same("momentum_encoder.head", "teacher.head"),
        *_same("momentum_encoder.fc", "teacher.head"),
    ),
    "simclr": _neck(2, "neck", "head"),
    "byol": _BYOL,
    "simsiam": (
        *_neck(3, "neck", "head"),
        *_neck(2, "head.predictor", "predictor"),
        *_same("encoder.fc", "head"),
        *_same("predictor", "predictor"),
    ),
    "swav": (
        *_same("neck.projection_neck", "head"),
        *_same("projection_head", "head"),
        ("head.loss.prototypes", "prototypes"),
        ("head.loss_module.prototypes", "prototypes"),
        ("prototypes", "prototypes"),
    ),
    "barlowtwins": (*_neck(3, "neck", "head"), *_same("projector", "head")),
    "dino": (
        *_same("neck.mlp", "head.0"),
        *_same("teacher.1.mlp", "teacher.head.0"),
        *_same("student.head.mlp", "head.0"),
        *_same("teacher.head.mlp", "teacher.head.0"),
        ("neck.last_layer.weight_v", "head.1.weight"),
        ("teacher.1.last_layer.weight_v", "teacher.head.1.weight"),
        ("student.head.last_layer.weight_v", "head.1.weight"),
        ("teacher.head.last_layer.weight_v", "teacher.head.1.weight"),
        ("head.center", "center"),
        ("dino_loss.center", "center"),
    ),
    "npid": (("neck.fc", "head"), ("memory_bank.feature_bank", "bank.rows")),
    "odc": (
        *_each("0:0 1:4", ("neck.fc{}", "head.{}")),
        ("neck.bn0", "head.1"),
        ("head.fc_cls", "classifier"),
        ("memory_bank.centroids", "centroids"),
    ),
    "deepcluster": (("head.fc_cls", "classifier"),),
    "rotation_pred": (("head.fc_cls", "head"),),
    "relative_loc": (("neck.fc", "head.0"), ("neck.bn", "head.1"), ("head.fc_cls", "head.4")),
}


def import_method(state: dict[str, torch.Tensor], recipe: str) -> tuple[Algorithm, str]:
    """The algorithm of a recipe with the weights of a checkpoint, teacher, decoder and queues included; and a report.

    Raises `UserError` where a parameter of it is not there or has another shape. Buffers that code bases do not write
    (SwAV's queues, ODC's memory of samples) stay as they start.
    """
    section = load_recipe(recipe, []).algorithm
    pairs = METHODS.get(section.name)
    if pairs is None:
        raise UserError(f"--recipe: whole methods are taken over for {', '.join(METHODS)}; leave --recipe out")
    algorithm = find_algorithm(section.name)(section)
    with one_line(section.name):
        return algorithm, load_method(algorithm, state, pairs)


def load_method(algorithm: Algorithm, state: dict[str, torch.Tensor], pairs: tuple[Pair, ...]) -> str:
    """Loads what `import_method` does, and reports."""
    own, names, found, state = algorithm.state_dict(), Names(pairs), {}, unwrapped(state)
    copies = [(algorithm.encoder, False)]
    for name, module in _children(getattr(algorithm, "teacher", None)):
        if getattr(algorithm, name) is algorithm.encoder:
            copies.append((module, True))
    rest = {name: tensor for name, tensor in state.items() if names.ours(name) is None}
    families, left_over = [], set(rest)
    for module, teacher in copies:
        prefix = next(path for path, other in algorithm.named_modules() if other is module)
        result = Imported(*recognise(rest, teacher=teacher))
        families.append(f"{result.family} under {result.prefix or 'no prefix'}")
        encoder = encoder_tensors(rest, result)
        left_over &= set(result.left_over)
        found |= {f"{prefix}.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in state.items():
        place = names.ours(name)
        if place is not None and place.name in own:
            memory = own[place.name].shape[:1] == (0,)  # of as many samples as there are
            found[place.name] = tensor if memory else _value(place.name, tensor, own[place.name])
            if algorithm.config.name == "simmim" and place.name.startswith("head."):
                found[place.name] = _pixels_last(found[place.name])
    missing = [name for name in own if name not in found]
    parameters = {name for name, _ in algorithm.named_parameters()}
    # the norm that follows an encoder's pooling, which pre-training does without
    optional = [
        name for name in missing if name not in parameters or name.endswith(("hivit.norm.weight", "hivit.norm.bias"))
    ]
    wrong = [f"no {name}" for name in missing if name not in optional]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape and own[name].shape[:1] != (0,)
    ]
    wrong += [f"{name} has no place" for name in found if name not in own]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"{algorithm.config.name}: the checkpoint does not fit the recipe: {'; '.join(wrong[:4])}{more}"
        )
    algorithm.load_state_dict(found, strict=False)
    lines = [f"recognised  {'; '.join(families)}", f"method      {algorithm.config.name}, {len(found)} tensors"]
    return "\n".join([*lines, some("missing", optional), some("left over", sorted(left_over)), "shapes      all fit"])


def _children(module: object):
    return module.named_children() if isinstance(module, torch.nn.Module) else ()


def _value(name: str, tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if name.endswith("queue.rows"):  # columns are theirs
        return tensor.T
    if name == "decoder.positions" and tensor.shape[1] == own.shape[1] + 1:  # a row of zeros for the class token
        return tensor[:, 1:]
    if tensor.dim() == 4 and own.dim() == 2:  # a convolution over single places
        tensor = tensor.flatten(1)
    return tensor.reshape(own.shape) if tensor.numel() == own.numel() else tensor


def _pixels_last(rows: torch.Tensor) -> torch.Tensor:
    """Rows (channel, row, column) of a cell's pixels, as a pixel shuffle takes them -> (row, column, channel)."""
    side = round((len(rows) / 3) ** 0.5)
    return rows.unflatten(0, (3, side, side)).movedim(0, 2).flatten(0, 2)
