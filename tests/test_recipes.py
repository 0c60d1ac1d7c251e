"""Every packaged recipe is complete, builds, and trains for twenty steps; published sizes are the published ones."""

import json

import pytest
import torch

from headrace.models.algorithms import find_algorithm, inputs_of
from headrace.models.targets.frozen import without_weights
from headrace.train import pretrain
from headrace.train.recipe.config import RECIPES
from headrace.train.recipe.recipe import load_recipe

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, monkeypatch):
    """`headrace pretrain <recipe> --smoke`: twenty steps whose losses are numbers and change, and an encoder."""
    monkeypatch.chdir(tmp_path)
    assert pretrain.main([name, "--smoke", f"train.out={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert rows[-1]["step"] == 20 and len(set(losses)) > 1
    assert all(abs(loss) < 100 for loss in losses)
    assert (tmp_path / "encoder.safetensors").stat().st_size > 0


# Published totals: parameters with momentum copies and frozen tensors, without buffers. Differences in brackets are
# what others count as parameters and we keep as buffers, or do without.
PUBLISHED = {
    "relative-loc_resnet50_8xb64-steplr-70e_in1k": 40_330_312,
    "rotation-pred_resnet50_8xb16-steplr-70e_in1k": 23_516_228,
    "deepcluster_resnet50_8xb64-steplr-200e_in1k": 43_998_032,
    "deepcluster-sobel_resnet50_8xb64-steplr-200e_in1k": 43_994_920 - 24,  # Sobel's fixed filters
    "npid_resnet50_8xb32-steplr-200e_in1k": 23_770_304,
    "odc_resnet50_8xb64-steplr-440e_in1k": 27_258_448,
    "mocov1_resnet50_8xb32-steplr-200e_in1k": 47_540_608,
    "mocov2_resnet50_8xb32-coslr-200e_in1k": 55_933_312,
    "densecl_resnet50_8xb32-coslr-200e_in1k": 64_850_560,
    "mocov3_resnet50_8xb512-amp-coslr-100e_in1k": 68_012_160,
    # fixed positions of 197 tokens, of student and teacher
    "mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k": 84_266_752 - 2 * 197 * 384,
    "mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k": 215_678_464 - 2 * 197 * 768,
    "mocov3_vit-large-p16_64xb64-amp-coslr-300e_in1k": 652_781_568 - 2 * 197 * 1024,
    "simclr_resnet50_8xb32-coslr-200e_in1k": 27_968_832,
    "byol_resnet50_16xb256-coslr-200e_in1k": 68_024_448,
    "swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96": 28_354_752,
    "simsiam_resnet50_8xb32-coslr-100e_in1k": 38_199_360,
    "barlowtwins_resnet50_8xb256-coslr-300e_in1k": 174_535_744,
    # the published count is the student's; gains fixed at 1, a position of the class token
    "dino_vit-base-p16_8xb64-amp-coslr-100e_in1k": 2 * (108_937_216 - 65_536 - 768),
    # fixed positions of encoder and decoder
    "mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k": 111_907_840 - 197 * (768 + 512),
    "mae_vit-large-p16_8xb512-amp-coslr-1600e_in1k": 329_541_888 - 197 * (1024 + 512),
    "mae_vit-huge-p14_8xb512-amp-coslr-1600e_in1k": 657_074_508 - 257 * (1280 + 512),
    "simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px": 89_874_104,
    "simmim_swin-large-w12_16xb128-amp-coslr-800e_in1k-192px": 199_920_372,
    "mixmim_mixmim-base_16xb128-coslr-300e_in1k": 114_665_784 - 3136 * 128 - 49 * 512,
    "mixmim_mixmim-large_16xb128-amp-coslr-600e_in1k": 223_468_244 - 3136 * 192 - 49 * 512,
    "mixmim_mixmim-huge_16xb128-amp-coslr-600e_in1k": 684_709_594 - 3136 * 352 - 49 * 512,
    # both with DALL-E's encoder; of CAE, fixed positions of encoder and teacher
    "beit_beit-base-p16_8xb256-amp-coslr-300e_in1k": 91_965_776 + 53_786_240,
    "cae_beit-base-p16_8xb256-amp-coslr-300e_in1k": 234_640_640 + 53_786_240 - 2 * 197 * 768,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config = load_recipe(name, []).algorithm
    with torch.device("meta"), without_weights():
        algorithm = find_algorithm(config.name)(config)
    assert sum(p.numel() for p in algorithm.parameters()) == PUBLISHED[name]


def test_views_can_be_looked_at_without_networks():
    """`inputs_of` says what the built algorithm says, and needs no weights of target networks."""
    for name in NAMES:
        config = load_recipe(name, []).algorithm
        assert len(inputs_of(config).views) == len(inputs_of(config.smoke()).views)
        assert inputs_of(config.smoke()) == find_algorithm(config.name)(config.smoke()).inputs()
