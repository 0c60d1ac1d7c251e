"""MMPretrain's whole methods with random weights, imported: the same features, loss and gradient, for the same mask.

What is defective or different there on purpose is in `test_openmmlab_defects.py`, with how much it changes.
"""

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra [parity]")

from openmmlab_methods import METHOD_CASES, SAMPLES, batch_of, imported, near, of_order, samples_of, views_of  # noqa: E402

from headrace.models.algorithm import Progress  # noqa: E402
from headrace.pipelines.spec import Mask  # noqa: E402
from headrace.pipelines.views.masks import draw_mask  # noqa: E402

WITH_MASK = [name for name in METHOD_CASES if name not in ("mae", "mae_hivit", "mixmim")]  # these draw one themselves


def compare(theirs, ours, images, mask, samples):
    """Loss, and the gradient of the patch embedding, through which all of the encoder's passes."""
    torch.manual_seed(2)
    losses = theirs.loss(images if len(images) > 1 else images[0], samples)
    expected = sum(value for name, value in losses.items() if name.startswith("loss"))
    expected.backward()
    output = ours(batch_of(ours, images, mask), Progress(0, 1, 1))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    name = "proj" if hasattr(theirs.backbone.patch_embed, "proj") else "projection"
    gradient = getattr(theirs.backbone.patch_embed, name).weight.grad
    own = ours.encoder.patch_embed
    near(getattr(own, "conv", own).weight.grad, gradient, tolerance=1e-4)


def test_mae(tmp_path):
    theirs, ours = imported("mae", tmp_path)
    images = views_of(ours)
    with torch.no_grad():
        near(ours.vit.tokens(images[0]), theirs.extract_feat(images[0])[-1])
        torch.manual_seed(2)
        latent, hidden, restore = theirs.backbone(images[0])
        mask = of_order(restore, latent.shape[1] - 1)
        assert torch.equal(mask.hidden.float(), hidden)
        near(ours.vit.tokens(images[0], mask.keep), latent)
        near(ours.predict(images[0], mask)[0], theirs.neck(latent, restore))
    compare(theirs, ours, images, mask, None)


def test_mixmim(tmp_path):
    theirs, ours = imported("mixmim", tmp_path)
    images = views_of(ours)
    with torch.no_grad():
        near(ours.encoder(images[0]), theirs.extract_feat(images[0])[-1])
        torch.manual_seed(2)
        tokens, mask = theirs.backbone(images[0])
        hidden = mask[:, :, 0] > 0
        near(ours.backbone.tokens(images[0], hidden.unflatten(1, (3, 3))), tokens)
    compare(theirs, ours, images, Mask(hidden), None)


@pytest.mark.parametrize("name", WITH_MASK)
def test_methods_whose_loader_draws_the_mask(name, tmp_path):
    theirs, ours = imported(name, tmp_path)
    images = views_of(ours)
    mask = draw_mask(ours.inputs().mask, 0, 0, torch.arange(SAMPLES))
    with torch.no_grad():
        features = theirs.extract_feat(images[0])[-1]
        masked = {"hidden": mask.hidden, "mask_token": getattr(ours, "mask_token", None)}
        if name == "simmim":
            near(ours.encoder.feature_maps(images[0])[-1], features)
            own = ours.backbone.norm(ours.backbone.maps(images[0], **masked)[-1]).permute(0, 3, 1, 2)
            near(own, theirs.backbone(images[0], mask.hidden.unflatten(1, (32, 32)))[-1])
        elif name == "beitv2":  # whose last norm is the neck's
            near(ours.vit.tokens(images[0]), theirs.neck.norm(features))
        elif name == "cae":
            near(ours.vit.tokens(images[0]), features)
            near(ours.vit.tokens(images[0], mask.keep), theirs.backbone(images[0], mask.hidden))
        else:
            near(ours.vit.tokens(images[0]), features)
            found = theirs.backbone(images[0], mask.hidden)
            near(ours.vit.tokens(images[0], **masked), found if name == "maskfeat" else found[-1])
    compare(theirs, ours, images, mask, samples_of(ours, mask))
