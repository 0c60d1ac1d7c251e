"""lightly's modules, losses and transforms in a plain loop, as its examples have it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import timm
import torch
import torchvision
from torch import nn

from headrace.pipelines.spec import ViewSpec

from .heat import Heat, Racer, as_authors, optimizer, trained


def batches(heat: Heat, transform) -> Iterator:
    from lightly.data import LightlyDataset

    torch.set_num_threads(heat.workers)
    dataset = LightlyDataset.from_torch_dataset(torchvision.datasets.ImageFolder(heat.data), transform=transform)
    options = {"batch_size": heat.job.batch, "shuffle": True, "drop_last": True, "num_workers": heat.workers}
    loader = torch.utils.data.DataLoader(dataset, **options, persistent_workers=heat.workers > 0)
    while True:
        for views, *_ in loader:
            yield views


def simclr(heat: Heat) -> Racer:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    own, view = heat.algorithm, heat.algorithm.view
    backbone, width = encoder(heat)
    model = nn.Sequential(backbone, nn.Flatten(), SimCLRProjectionHead(width, own.hidden, own.projection))
    criterion = NTXentLoss(temperature=own.temperature)
    transform = SimCLRTransform(input_size=view.size, **_strengths(view))
    loss = lambda views: criterion(model(views[0]), model(views[1]))  # noqa: E731
    return trained(model, batches(heat, transform), loss, optimizer(heat, model), list)


class BYOL(nn.Module):
    """After lightly's example: student, predictor, teacher."""

    def __init__(self, heat: Heat) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__()
        own = heat.algorithm
        backbone, width = encoder(heat)
        self.student = nn.Sequential(backbone, nn.Flatten(), BYOLProjectionHead(width, own.hidden, own.projection))
        self.predictor = BYOLPredictionHead(own.projection, own.hidden, own.projection)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion, self.momentum = NegativeCosineSimilarity(), own.momentum

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            first, second = (self.teacher(view) for view in views)
        p1, p2 = (self.predictor(self.student(view)) for view in views)
        return 0.5 * (self.criterion(p1, second) + self.criterion(p2, first))

    def update(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.student, self.teacher, self.momentum)


def byol(heat: Heat) -> Racer:
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    own, model = heat.algorithm, BYOL(heat)
    first, second = (
        made(input_size=view.size, solarization_prob=view.solarize, **_strengths(view))
        for made, view in ((BYOLView1Transform, own.first), (BYOLView2Transform, own.second))
    )
    transform = BYOLTransform(view_1_transform=first, view_2_transform=second)
    return trained(model, batches(heat, transform), model, optimizer(heat, model), list, model.update)


def encoder(heat: Heat) -> tuple[nn.Module, int]:
    """The encoder to train, and how wide its features are."""
    if heat.encoder is not None:
        return heat.encoder, heat.encoder.features
    return resnet18(heat.algorithm.backbone.small_image_stem), 512


def _strengths(view: ViewSpec) -> dict:
    return dict(
        cj_prob=view.jitter,
        cj_bright=view.brightness,
        cj_contrast=view.contrast,
        cj_sat=view.saturation,
        cj_hue=view.hue,
        min_scale=view.scale[0],
        random_gray_scale=view.gray,
        gaussian_blur=view.blur,
        sigmas=view.blur_sigma,
    )


def resnet18(small: bool) -> nn.Module:
    """torchvision's, without its classifier; with a stride of one and no pooling in the stem for small images."""
    model = torchvision.models.resnet18(zero_init_residual=True)
    model.fc = nn.Identity()
    if small:
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    return model


def vit_tiny(patch: int, size: int, **options) -> nn.Module:
    common = {"patch_size": patch, "embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 0}
    return timm.models.vision_transformer.VisionTransformer(size, **common, **options)


class MAE(nn.Module):
    """After lightly's example for timm: encoder, decoder and prediction."""

    def __init__(self, heat: Heat) -> None:
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM

        super().__init__()
        own = heat.algorithm
        self.patch, self.ratio = own.backbone.patch_size, own.mask_ratio
        self.encoder = MaskedVisionTransformerTIMM(vit=vit_tiny(self.patch, own.view.size))
        self.embed = nn.Linear(192, own.decoder.width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.encoder.vit.patch_embed.num_patches,
            embed_dim=own.decoder.width,
            depth=own.decoder.depth,
            num_heads=own.decoder.heads,
        )
        self.predict = nn.Linear(own.decoder.width, 3 * self.patch**2)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        from lightly.models import utils

        images, count = views[0], self.encoder.sequence_length
        keep, masked = utils.random_token_mask((len(images), count), mask_ratio=self.ratio)
        encoded = self.embed(self.encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), count))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.predict(utils.get_at_index(self.decoder(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)  # without the class token
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target))


def mae(heat: Heat) -> Racer:
    from lightly.transforms import MAETransform

    model, view = MAE(heat), heat.algorithm.view
    as_authors(model)
    transform = MAETransform(input_size=view.size, min_scale=view.scale[0])
    return trained(model, batches(heat, transform), model, optimizer(heat, model), list)


class DINO(nn.Module):
    """After lightly's example: student, teacher, one head each."""

    def __init__(self, heat: Heat) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        super().__init__()
        own = heat.algorithm
        widths = {"hidden_dim": own.hidden, "bottleneck_dim": own.bottleneck, "output_dim": own.prototypes}
        student, teacher = (  # weight normalisation by hooks, as lightly's head has it, cannot be deep-copied
            nn.Sequential(
                vit_tiny(own.backbone.patch_size, own.first.size, dynamic_img_size=True, drop_path_rate=0.1),
                DINOProjectionHead(192, **widths, freeze_last_layer=1),
            )
            for _ in range(2)
        )
        teacher.load_state_dict(student.state_dict())
        self.student, self.teacher = student, teacher.requires_grad_(False)
        for module in self.teacher.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        self.criterion = DINOLoss(own.prototypes, warmup_teacher_temp_epochs=1)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            teacher = [self.teacher(view) for view in views[:2]]
        return self.criterion(teacher, [self.student(view) for view in views], epoch=1)

    def update(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.student, self.teacher, 0.996)


def dino(heat: Heat) -> Racer:
    from lightly.transforms import DINOTransform

    model, own = DINO(heat), heat.algorithm
    first, second, small = own.first, own.second, own.small
    strength = {"cj_bright": first.brightness, "cj_contrast": first.contrast, "cj_sat": first.saturation}
    transform = DINOTransform(
        global_crop_size=first.size,
        global_crop_scale=first.scale,
        local_crop_size=small.size,
        local_crop_scale=small.scale,
        n_local_views=small.count,
        cj_prob=first.jitter,
        cj_strength=1.0,
        cj_hue=first.hue,
        random_gray_scale=first.gray,
        gaussian_blur=(first.blur, second.blur, small.blur),
        solarization_prob=second.solarize,
        **strength,
    )
    optimized = optimizer(heat, model)

    def loss(views: list[torch.Tensor]) -> torch.Tensor:
        return model(views)

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.student.parameters(), heat.recipe.optim.clip_grad)

    optimized.register_step_pre_hook(lambda *_: clip())
    return trained(model, batches(heat, transform), loss, optimized, list, model.update)
