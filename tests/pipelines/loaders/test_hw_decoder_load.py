"""data.hw_decoder_load reaches DALI's decoder on a GPU, and is refused where nothing would come of it."""

import pytest

from headrace.errors import UserError
from headrace.pipelines.loaders import dali as dali_loader
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.train.recipe.settings import DataSettings

INPUTS = InputSpec((ViewSpec(size=32),))


@pytest.mark.parametrize("load", [None, 0.0, 0.9])
def test_on_a_gpu_it_reaches_the_decoder(load, photo_folder, monkeypatch):
    class Pipeline:
        def __init__(self, feed, views, **options):
            made.append(options)

        def build(self):
            pass

    made, decoded = [], []
    monkeypatch.setattr(dali_loader, "_crop_pipeline", Pipeline)
    monkeypatch.setattr(dali_loader.fn.decoders, "image", lambda encoded, **options: decoded.append(options))
    source = open_source(photo_folder)
    order = Order(len(source), 4)
    loader = make_loader(source, INPUTS, order, kind="dali", device="cuda:0", hw_decoder_load=load)
    loader.close()
    dali_loader._decode(None, made[0]["decoder"])
    assert decoded[0]["device"] == "mixed" and made[0]["device_id"] == 0
    assert decoded[0].get("hw_decoder_load") == load and ("hw_decoder_load" in decoded[0]) == (load is not None)


@pytest.mark.parametrize("kind, words", [("cpu", "the cpu loader decodes on CPU cores"), ("dali", "there is no GPU")])
def test_without_a_gpu_it_is_refused(kind, words, photo_folder):
    source = open_source(photo_folder)
    with pytest.raises(UserError, match=f"data.hw_decoder_load: {words}"):
        make_loader(source, INPUTS, Order(len(source), 4), kind=kind, hw_decoder_load=0.5)


@pytest.mark.parametrize("load", [-0.1, 1.5])
def test_a_share_lies_between_0_and_1(load):
    with pytest.raises(ValueError, match="hw_decoder_load: a share lies in"):
        DataSettings(hw_decoder_load=load)
