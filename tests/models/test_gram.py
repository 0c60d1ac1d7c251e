"""Gram anchoring in a method: when it counts and for how much, what its teacher sees and when it changes."""

from dataclasses import replace

import pytest
import torch
from tiny_algorithms import BACKBONE, STEPS_PER_EPOCH, build, make_batch

from headrace.errors import UserError
from headrace.kernels.gram_loss.reference import gram_loss
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm, inputs_of
from headrace.models.self_distillation.gram import Gram
from headrace.models.self_distillation.schedules import half_cosine, ramp
from headrace.pipelines.views.draw import draw_views
from headrace.train.engine import checkpoint
from headrace.train.pretrain import main
from headrace.train.recipe.recipe import load_recipe
from headrace.train.recipe.sizes import inputs_of_run


def at(step, total=20):
    return Progress(step, total, 5)


def test_its_weight_rises_as_the_authors_schedule():
    whole = ramp(0, 0, 1, 12, cosine=5)
    assert [half_cosine(5, step) for step in range(12)] == pytest.approx(list(whole))
    assert half_cosine(0, 0) == half_cosine(1, 0) == 1.0
    gram = build("dinov3", gram=Gram("3 steps", warmup="5 steps", local_weight=0.5)).gram
    assert [gram.share(at(step)) for step in range(3)] == [None] * 3
    assert [gram.share(at(3 + step)) for step in range(12)] == pytest.approx(list(whole))
    assert [gram.local_weight(at(step)) for step in (0, 3, 5, 7, 9)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])


@pytest.mark.parametrize("name", ["ibot", "dinov2", "dinov3"])
def test_the_loss_is_the_formula(name):
    """Of the student's patches where patches are hidden, with those of the Gram teacher on the student's grid."""
    config = Gram("2 steps", weight=1.5, enlarge=2.0, features=0.3, local_weight=0.25)
    algorithm, progress = build(name, gram=config).eval(), at(2)
    with torch.no_grad():
        for parameter in algorithm.gram.backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        batch = make_batch(algorithm, 0)
        found = algorithm(batch, progress)
        images = torch.cat([batch.views["first"], batch.views["second"]]).flatten(0, 1)
        hidden, _, _ = algorithm.masked(batch.mask)
        own = algorithm.backbone.tokens(images, hidden=hidden, mask_token=algorithm.mask_token)[:, 1:]
        large = torch.cat([batch.views["first_gram"], batch.views["second_gram"]]).flatten(0, 1)
        assert large.shape[-1] == 64
        theirs = algorithm.gram.backbone.tokens(large)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        theirs = torch.nn.functional.interpolate(theirs, (4, 4), mode="bicubic").flatten(2).transpose(1, 2)
        angles = 1 - torch.cosine_similarity(own, theirs, dim=2).mean()
        plain = build(name).eval()
        plain.load_state_dict({k: v for k, v in algorithm.state_dict().items() if not k.startswith("gram.")})
        without, earlier = plain(batch, progress).metrics, plain(batch, at(1)).metrics
    assert found.metrics["loss_gram"].item() == pytest.approx(1.5 * gram_loss(own, theirs).item(), rel=1e-4)
    assert found.metrics["loss_features"].item() == pytest.approx(0.3 * angles.item(), rel=1e-4)
    assert found.loss.item() == pytest.approx(sum(v.item() for k, v in found.metrics.items() if k[:5] == "loss_"))
    assert found.metrics["loss_patch"].item() == pytest.approx(without["loss_patch"].item(), rel=1e-5)
    before = algorithm(batch, at(1)).metrics
    assert before["loss_gram"] == 0 and before["loss_cls"].item() == pytest.approx(earlier["loss_cls"].item(), rel=1e-5)
    assert found.metrics["loss_cls"] < 0.7 * without["loss_cls"]  # of 3 small crops each counts for a quarter


def test_when_its_teacher_changes():
    """At `from`, then every two steps, at most twice; it takes no gradient, and what it is lies in the checkpoint."""
    algorithm = build("dinov2", gram=Gram("2 steps", update_every="2 steps", updates=2))
    changed, before = [], algorithm.gram.backbone.blocks[0].qkv.weight.clone()
    for step in range(10):
        with torch.no_grad():
            for parameter in algorithm.backbone.parameters():
                parameter.add_(0.01)
        algorithm.after_step(at(step))
        now = algorithm.gram.backbone.blocks[0].qkv.weight
        if not torch.equal(now, before):
            changed.append(step + 1)
            assert torch.equal(now, algorithm.teacher.backbone.blocks[0].qkv.weight)
        before = now.clone()
    assert changed == [2, 4, 6]
    assert not any(p.requires_grad for p in algorithm.gram.parameters())
    assert any(key.startswith("gram.backbone.") for key in algorithm.state_dict())


def test_it_sees_the_same_crops_undistorted():
    config = build("dinov3", gram=Gram(enlarge=1.5)).config
    colours = {"jitter": 0.8, "brightness": 0.4, "gray": 0.5, "blur": 0.5, "solarize": 0.5}
    config = replace(config, **{name: replace(getattr(config, name), **colours) for name in ("first", "second")})
    inputs = inputs_of(config)
    assert [view.name for view in inputs.views] == ["first", "second", "small", "first_gram", "second_gram"]
    drawn = draw_views(inputs, 3, 1, torch.arange(40), torch.tensor([[300, 400]]).expand(40, 2))
    for name in ("first", "second"):
        own, plain = drawn[name], drawn[f"{name}_gram"]
        assert torch.equal(own.crop, plain.crop) and torch.equal(own.flip, plain.flip)
        assert (plain.resized == 48).all() and (own.resized == 32).all()
        assert not plain.gray.any() and not plain.sigma.any() and not plain.solarize.any() and (plain.order < 0).all()
        assert own.gray.any() and own.sigma.any() and own.solarize.any() and (own.order >= 0).any()


def test_its_crops_are_cut_from_the_step_on_that_wants_them():
    config = build("dinov3", gram=Gram(0.5)).config
    inputs = inputs_of_run(config, 10, 5, seed=0)
    assert [len(inputs.at(step).views) for step in range(10)] == [3] * 5 + [5] * 5
    sized = {name: replace(getattr(config, name), sizes={"0": (16,), "40%": (16, 32)}) for name in ("first", "second")}
    inputs = inputs_of_run(replace(config, **sized), 200, 5, seed=0)
    for step in range(200):
        sides = {view.name: view.size for view in inputs.at(step).views}
        assert ("first_gram" in sides) == (step >= 100) and sides["first"] == sides["second"]
        assert sides["first"] == 16 or step >= 80
        assert step < 100 or sides["first_gram"] == sides["second_gram"] == 2 * sides["first"]
    assert len({inputs.at(step).views for step in range(100, 200)}) == 2


def test_sizes_of_the_high_resolution_recipe():
    """The five kinds of steps of the 7B, (global, local, Gram); 160 px for 168, which are no whole patches."""
    config = load_recipe("dinov3_vit-7b-p16_highres", []).algorithm
    inputs = inputs_of_run(config, 30_000, 1000, seed=0)
    count = {}
    for step in range(0, 30_000, 3):
        sides = {view.name: view.size for view in inputs.at(step).views}
        key = (sides["first"], sides["small"], sides["first_gram"])
        count[key] = count.get(key, 0) + 1
    wanted = {(512, 112, 768): 0.3, (768, 112, 1152): 0.3, (768, 160, 1152): 0.3}
    wanted |= {(768, 224, 1152): 0.05, (768, 336, 1152): 0.05}
    assert {key: value / 10_000 for key, value in count.items()} == pytest.approx(wanted, abs=0.02)


def test_a_gram_teacher_of_its_own(tmp_path):
    """A run's encoder, whatever train.init puts elsewhere; one of another width is refused in a line."""
    small = ["dinov3_vit-tiny_cifar10", "--smoke", "train.max_steps=2"]
    assert main([*small, f"train.out={tmp_path / 'first'}"]) == 0
    algorithm = checkpoint.load_algorithm(tmp_path / "first")[1]
    own = build("dinov3", backbone=algorithm.config.backbone, gram=Gram(teacher=str(tmp_path / "first")))
    assert own.wants == str(tmp_path / "first")
    own.take_teacher(algorithm.encoder, None, "")
    state = algorithm.encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.gram.backbone.state_dict().items())
    wider = build("dinov3", gram=Gram(teacher="elsewhere"), backbone=replace(BACKBONE, width=32, positions="rotary"))
    with pytest.raises(UserError, match="algorithm.gram.teacher: elsewhere has 24 features, and the run's encoder 32"):
        wider.take_teacher(algorithm.encoder, None, "")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"enlarge": 1.1}, "gram: 32 px enlarged by 1.1 are no whole pixels"),
        ({"enlarge": 1.125}, "gram: 36 px, 1.125 times 32, are not whole patches of 8"),
        ({"begin": "soon"}, 'from: needs "10 epochs"'),
        ({"update_every": "0 steps"}, "update_every: must be longer"),
        ({"updates": 3}, "updates: has an effect with update_every only"),
    ],
)
def test_values_that_do_not_go_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        build("dinov3", gram=Gram(**values))


def test_keys_of_a_recipe(tmp_path):
    """`from` is a key, and comes back from what a run writes."""
    recipe = load_recipe("dinov3_vit-tiny_cifar10", ["algorithm.gram={from: 10 steps, updates: 2, update_every: 0.1}"])
    assert recipe.algorithm.gram == Gram("10 steps", updates=2, update_every=0.1)
    assert recipe.plain()["algorithm"]["gram"]["from"] == "10 steps"
    with pytest.raises(UserError, match="algorithm.gram: 32 px enlarged by 1.1 are no whole pixels") as error:
        main(["dinov3_vit-tiny_cifar10", "algorithm.gram={enlarge: 1.1}", f"train.out={tmp_path}"])
    assert "\n" not in str(error.value)


def test_a_method_without_it_wants_nothing_more():
    for name in ("ibot", "dinov2", "dinov3"):
        config = find_algorithm(name).Config()
        assert config.begins(10, STEPS_PER_EPOCH) == {} and len(inputs_of(config).views) == 3
