"""Networks that targets come from: CLIP, the codebook of VQ-KD, and how frozen ones are kept and checked."""

import pytest
import torch
import torch.nn.functional as F
from mim_samples import RANDOM, START, batch_of, build

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.targets.clip import CLIPShape, CLIPVision
from headrace.models.targets.dalle import DalleEncoder
from headrace.models.targets.frozen import Frozen, Weights
from headrace.models.targets.vqkd import Codebook, VQKDTokenizer
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.recipe.config import RECIPES


def test_clip_attention_is_that_of_the_class_token():
    torch.manual_seed(0)
    clip = CLIPVision(RANDOM, CLIPShape(32, 8, 32, 2, 4, 24))
    seen = {}
    clip.vit.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: seen.update(x=output))
    features, attention = clip(torch.randn(2, 3, 32, 32))
    q, k, _ = clip.vit.blocks[-1].qkv(seen["x"]).chunk(3, -1)
    total = torch.zeros(2, 17)
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        total += (q[:, :1, own] @ k[..., own].transpose(1, 2) / 8**0.5).softmax(-1)[:, 0] / 4
    assert features.shape == (2, 17, 24) and torch.allclose(attention, total[:, 1:], atol=1e-6)


def test_clip_reads_openai_names(tmp_path):
    """A tower of torch's own layers under OpenAI's names gives the same features."""
    torch.manual_seed(0)
    width, heads = 32, 4
    layers = torch.nn.ModuleList(torch.nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
    state = {
        "visual.conv1.weight": torch.randn(width, 3, 8, 8) * 0.1,
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(17, width),
        "visual.proj": torch.randn(width, 24),
        "text_projection": torch.randn(3, 3),
    }
    for name in ("ln_pre", "ln_post"):
        state |= {f"visual.{name}.weight": torch.rand(width) + 0.5, f"visual.{name}.bias": torch.randn(width)}
    for i, layer in enumerate(layers):
        inner = {f"attn.{key}": value for key, value in layer.state_dict().items()}
        for name in ("ln_1", "ln_2"):
            inner |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}
        inner |= {"mlp.c_fc.weight": torch.randn(128, width) * 0.1, "mlp.c_fc.bias": torch.randn(128)}
        inner |= {"mlp.c_proj.weight": torch.randn(width, 128) * 0.1, "mlp.c_proj.bias": torch.randn(width)}
        state |= {f"visual.transformer.resblocks.{i}.{key}": value for key, value in inner.items()}
    torch.save(state, tmp_path / "clip.pt")
    clip = CLIPVision(Weights(str(tmp_path / "clip.pt")), CLIPShape(32, 8, width, 2, heads, 24))
    images = torch.randn(2, 3, 32, 32)

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"visual.{name}.weight"], state[f"visual.{name}.bias"])

    with torch.no_grad():
        x = F.conv2d(images, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
        x = torch.cat([state["visual.class_embedding"].expand(2, 1, -1), x], 1) + state["visual.positional_embedding"]
        x = norm(x, "ln_pre")
        for i, layer in enumerate(layers):
            block = f"transformer.resblocks.{i}"
            h = norm(x, f"{block}.ln_1")
            x = x + layer(h, h, h, need_weights=False)[0]
            h = norm(x, f"{block}.ln_2") @ state[f"visual.{block}.mlp.c_fc.weight"].T
            h = h + state[f"visual.{block}.mlp.c_fc.bias"]
            h = h * torch.sigmoid(1.702 * h)
            x = x + h @ state[f"visual.{block}.mlp.c_proj.weight"].T + state[f"visual.{block}.mlp.c_proj.bias"]
        expected = norm(x, "ln_post") @ state["visual.proj"]
    assert torch.allclose(clip(images)[0], expected, atol=1e-4)


def test_codebook_moves_by_its_formula_and_leaves_unused_codes():
    torch.manual_seed(0)
    book = Codebook(codes=6, width=4)
    z = F.normalize(torch.randn(20, 4), dim=-1)
    before, codes = book.vectors.clone(), book(z)
    assert torch.equal(codes, torch.cdist(z, before).argmin(1))
    codes[codes == 2] = 3
    book.update(z, codes)
    for code in range(6):
        expected = before[code]
        if (codes == code).any():
            expected = F.normalize(0.99 * before[code] + 0.01 * F.normalize(z[codes == code].sum(0), dim=0), dim=0)
        assert torch.allclose(book.vectors[code], expected, atol=1e-6)
    assert torch.equal(book.vectors[2], before[2])


def test_vqkd_learns_codes_that_tell_clip_features():
    algorithm = build("vqkd")
    batch = batch_of(algorithm, n=8)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(25):
        progress = Progress(step, 25, 25)
        output = algorithm(batch, progress)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        algorithm.after_step(progress)
        losses.append(output.metrics["cosine_distance"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_frozen_networks_stay_as_they_are_and_out_of_checkpoints(tmp_path):
    algorithm = build("beitv2").train()
    tokenizer = algorithm.tokenizer
    before = {name: value.clone() for name, value in tokenizer.named_parameters()}
    before |= {name: value.clone() for name, value in tokenizer.named_buffers()}
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    algorithm(batch_of(algorithm), START).loss.backward()
    after = dict(tokenizer.named_parameters()) | dict(tokenizer.named_buffers())
    assert all(torch.equal(after[name], before[name]) for name in before)
    state = algorithm.state_dict()
    assert not any(name.startswith("tokenizer.") for name in state)
    other = build("beitv2")
    other.load_state_dict(state)  # strict
    assert torch.equal(other.head.weight, algorithm.head.weight)


def test_frozen_weights_are_checked(tmp_path):
    tiny = dict(weights=Weights(str(tmp_path / "w.pth")), width=8)
    with pytest.raises(UserError, match="no such file; .*openai/DALL-E"):
        DalleEncoder(**tiny)
    with pytest.raises(UserError, match="weights.path: missing; .*random"):
        DalleEncoder(Weights(), width=8)
    source = DalleEncoder(RANDOM, width=8)
    theirs = {}
    for name, value in source.named_parameters():
        *path, kind = name.split(".")
        kind = {"weight": "w", "bias": "b"}[kind]
        if path[0] == "blocks":
            inner = "id_path" if path[2] == "id" else f"res_path.conv_{int(path[3]) + 1}"
            name = f"blocks.group_{int(path[1]) // 2 + 1}.block_{int(path[1]) % 2 + 1}.{inner}.{kind}"
        else:
            name = f"blocks.{path[0]}{'.conv' if path[0] == 'output' else ''}.{kind}"
        theirs[name] = value
    torch.save({"state_dict": theirs}, tmp_path / "w.pth")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(DalleEncoder(**tiny).words(images), source.words(images))
    with pytest.raises(UserError, match="sha256"):
        DalleEncoder(Weights(str(tmp_path / "w.pth"), sha256="00ff"), width=8)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not the weights of DalleEncoder"):
        DalleEncoder(**tiny)
    torch.save(Frozen, tmp_path / "w.pth")  # a pickle of something else is not executed
    with pytest.raises(UserError, match="cannot be read"):
        DalleEncoder(**tiny)


@pytest.mark.parametrize("name", ["beit", "milan", "vqkd"])
def test_what_was_trained_is_evaluated_without_the_targets_file(name, tmp_path):
    """Its encoder comes with its weights from a checkpoint and an encoder.safetensors; whoever trains is told."""
    recipe = next(path.stem for path in sorted(RECIPES.glob(f"{name}_*.yaml")))
    assert pretrain.main([recipe, "--smoke", "train.max_steps=1", f"train.out={tmp_path}"]) == 0
    state = checkpoint.load(next(tmp_path.glob("step-*.pt")))
    state["config"]["algorithm"]["weights"]["path"] = "gone.pth"
    torch.save(state, tmp_path / "step-00000009.pt")
    _, algorithm = checkpoint.load_algorithm(tmp_path)
    assert algorithm.config.weights.path == "gone.pth"
    loaded = algorithm.state_dict()
    assert loaded.keys() == state["model"].keys() and all(torch.equal(loaded[k], v) for k, v in state["model"].items())
    images = torch.randn(2, 3, algorithm.inputs().views[0].size, algorithm.inputs().views[0].size)
    with torch.no_grad():
        found = load_encoder(str(tmp_path / "encoder.safetensors")).module(images)
        assert torch.equal(found, algorithm.encoder.eval()(images))
    with pytest.raises(UserError, match="gone.pth: no such file"):
        type(algorithm)(algorithm.config)


def test_target_networks_have_the_published_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in DalleEncoder(RANDOM).parameters()) == 53_786_240
        tokenizer = VQKDTokenizer(RANDOM)
    tensors = (*tokenizer.parameters(), tokenizer.codebook.vectors)
    # published with a row of positions for the class token
    assert sum(t.numel() for t in tensors) == 86_666_784 - 768
