"""`headrace reconstruct`: visible patches are the input's, hidden ones the algorithm's, errors those of its loss."""

import matplotlib
import matplotlib.image
import pytest
import torch

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.reconstruct import AS_PREDICTED, UP_TO_CONTRAST
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec
from headrace.tools.look.reconstruct import main, restore
from headrace.tools.look.samples import first_batch, to_pixels
from headrace.train import pretrain
from headrace.train.evaluation.embed import evaluation_view
from headrace.train.recipe.recipe import load_recipe

PICTURES = {  # recipe of each method that predicts pictures -> whether patches are predicted normalised
    "mae_vit-tiny": True,
    "pixmim_vit-base-p16_8xb512-amp-coslr-300e_in1k": True,
    "mae-hivit_hivit-base-p16_8xb512-amp-coslr-400e_in1k": True,
    "mixmim_mixmim-small-128px": True,
    "mixmim_mixmim-small-160px": False,
    "simmim_vit-small-64px": False,
    "simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px": False,
    "maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k": False,
}
NONE = {
    "beit_beit-base-p16_8xb256-amp-coslr-300e_in1k": "tokens of a visual vocabulary",
    "beitv2_beit-base-p16_8xb256-amp-coslr-300e_in1k": "tokens of a visual vocabulary",
    "cae_beit-base-p16_8xb256-amp-coslr-300e_in1k": "tokens of a visual vocabulary",
    "milan_vit-base-p16_16xb256-amp-coslr-400e_in1k": "features of CLIP",
    "eva-mae-style_vit-base-p16_16xb256-amp-coslr-400e_in1k": "features of CLIP",
    "simclr_resnet18_cifar10": "predicts no pictures",
}


def build(recipe, **changes):
    if recipe.startswith("pixmim"):
        changes["radius"] = 4  # of 16 at 32 px: its own 40 would keep all that such images hold
    overrides = [f"algorithm.{key}={value}" for key, value in changes.items()]
    section = load_recipe(recipe, ["train.max_steps=1", *overrides]).algorithm.smoke()
    torch.manual_seed(0)
    algorithm = find_algorithm(section.name)(section).eval()
    for parameter in algorithm.parameters():  # heads that start at zero would predict nothing
        parameter.data += 0.05 * torch.randn_like(parameter)
    return algorithm


@pytest.mark.parametrize("recipe", PICTURES)
def test_rows_of_the_picture(recipe, photo_folder):
    algorithm, source = build(recipe), open_source(photo_folder)
    found = restore(algorithm, source, samples=4)
    image, masked, restored, heat = found.rows.values()
    hidden = (masked == 128).all(-1) & (image != 128).any(-1)
    assert 0.2 < hidden.float().mean() < 0.85
    assert torch.equal(restored[~hidden], image[~hidden])
    assert (restored[hidden] != image[hidden]).any(-1).float().mean() > 0.8
    visible = (heat == 232).all(-1)
    assert (visible & hidden).sum() == 0 and ((~visible) & (masked != 128).any(-1)).sum() == 0
    assert (UP_TO_CONTRAST in found.note) == PICTURES[recipe] and "pasted from the input" in found.note


@pytest.mark.parametrize("recipe", PICTURES)
def test_errors_are_those_of_the_loss(recipe, photo_folder):
    """Their mean over the patches that count is what `forward` returns; the picture shows them in proportion."""
    algorithm, source = build(recipe), open_source(photo_folder)
    batch = first_batch(source, algorithm.inputs(), 4, seed=0)
    images = batch.views[algorithm.inputs().views[0].name][0]
    restored = algorithm.reconstruct(images, batch.mask)
    counted = torch.ones_like(restored.hidden) if algorithm.config.name == "mixmim" else restored.hidden
    with torch.no_grad():
        loss = algorithm(batch, Progress(0, 1, 1)).loss.item()
    assert restored.error[counted].mean().item() == pytest.approx(loss, rel=1e-4)

    found = restore(algorithm, source, samples=4)
    images = first_batch(
        source, InputSpec((evaluation_view(algorithm.inputs().views[0]),), algorithm.inputs().mask), 4, seed=0
    )
    restored = algorithm.reconstruct(images.views["evaluation"][0], images.mask)
    expected = [row[hidden].mean().item() for row, hidden in zip(restored.error, restored.hidden)]
    assert found.errors == pytest.approx(expected)
    brightest = restored.error[restored.hidden].max()
    assert f"bright {brightest:.3g};" in found.note
    side, size = round(restored.error.shape[1] ** 0.5), found.rows["image"].shape[1]
    middle = size // side // 2 + torch.arange(side) * (size // side)
    shown = found.rows["error of each patch"][:, middle][:, :, middle].flatten(1, 2)
    scale = matplotlib.colormaps["inferno"]((restored.error / brightest).numpy(), bytes=True)[..., :3]
    assert (shown[restored.hidden] == torch.from_numpy(scale)[restored.hidden]).all()


def test_patches_predicted_normalised_shown_both_ways(photo_folder):
    """Undone: each hidden patch has the mean of the input's; raw: none of the input is in them."""
    algorithm, source = build("mae_vit-tiny"), open_source(photo_folder)
    algorithm.predict = lambda images, mask: (torch.zeros(len(images), 16, 3 * 8**2), None)
    size = algorithm.config.view.size
    assert size == 32 and algorithm.config.backbone.patch_size == 8
    undone, raw = (restore(algorithm, source, samples=4, norm_pix=how) for how in ("undo", "raw"))
    hidden = (undone.rows["masked"] == 128).all(-1)
    assert hidden.any()
    patches = undone.rows["image"].float().unflatten(1, (4, 8)).unflatten(3, (4, 8))
    view = evaluation_view(algorithm.config.view)
    mean, std = torch.tensor(view.mean), torch.tensor(view.std)
    constant = ((patches / 255 - mean) / std).mean((2, 4, 5))  # one number a patch, of all its normalised values
    picture = ((constant[..., None] * std + mean) * 255).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert (undone.rows["reconstruction"].float() - picture)[hidden].abs().max() <= 1
    grey = to_pixels(torch.zeros(3, 1, 1), view)[0, 0]
    assert (raw.rows["reconstruction"][hidden] == grey).all()
    assert torch.equal(raw.rows["reconstruction"][~hidden], raw.rows["image"][~hidden])
    assert raw.errors == undone.errors and AS_PREDICTED in raw.note and UP_TO_CONTRAST in undone.note
    with pytest.raises(UserError, match="--norm-pix: the patches that simmim predicts here are not normalised"):
        restore(build("simmim_vit-small-64px"), source, norm_pix="raw")
    with pytest.raises(UserError, match="mae predicts here are not normalised"):
        restore(build("mae_vit-tiny", normalize_pixels="false"), source, norm_pix="undo")


@pytest.mark.parametrize("recipe", NONE)
def test_methods_without_pictures_say_what_they_predict(recipe, photo_folder):
    with pytest.raises(UserError, match=NONE[recipe]) as caught:
        restore(build(recipe), open_source(photo_folder))
    assert "\n" not in str(caught.value) and "nothing to reconstruct" in str(caught.value)


def test_a_picture_is_written_and_wrong_uses_are_named(photo_folder, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert pretrain.main(["simmim_vit-small-64px", "--smoke", f"data.train={photo_folder}", f"train.out={run}"]) == 0
    assert main([run, str(photo_folder), "--out", str(tmp_path / "r.png"), "--samples", "2"]) == 0
    assert matplotlib.image.imread(tmp_path / "r.png").std() > 0.05
    assert f"simmim of {run}/step-00000020.pt" in capsys.readouterr().out
    for arguments, words in (
        (["--samples", "3"], "--samples: must be 2, 4, 6"),
        (["--out", "r.jpg"], "is no .png"),
        (["--out", f"{run}/config.yaml/r.png"], "cannot be written"),
        (["--norm-pix", "raw"], "not normalised"),
    ):
        with pytest.raises(UserError, match=words):
            main([run, str(photo_folder), *arguments])
