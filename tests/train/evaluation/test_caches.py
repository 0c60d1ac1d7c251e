"""Features on disk when several make the same at once, when a foreign hand was there, and when they are damaged."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from headrace.errors import UserError
from headrace.pipelines.sources import open_source
from headrace.train.evaluation import embed_store, evaluate
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.embed_store import stored_features
from headrace.train.evaluation.evaluate import Stopwatch, record

ROUNDS = 8


def test_five_at_once_lose_nothing(photo_folder, tmp_path):
    """Neither a cache nor a row of figures: five make the same cache at the same time, eight times over."""
    encoder, source, together = load_encoder("pixels:4"), open_source(photo_folder), Barrier(5)

    def evaluate_one(number):
        together.wait(60)
        found = stored_features(encoder, source, tmp_path / f"caches-{number}", threads=1, batch_size=8)
        figures = {"sum": found.vectors.sum().item(), "filler": "x" * 20_000}  # more than a buffer holds
        together.wait(60)
        record(tmp_path / "rows.jsonl", "race", encoder, {}, {"round": number}, figures, Stopwatch())

    with ThreadPoolExecutor(5) as five:
        for number in range(ROUNDS):
            list(five.map(evaluate_one, [number] * 5))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["settings"]["round"] for row in rows] == [number for number in range(ROUNDS) for _ in range(5)]
    assert len({row["figures"]["sum"] for row in rows}) == 1
    for number in range(ROUNDS):
        (place,) = (tmp_path / f"caches-{number}").iterdir()  # nothing half-made beside it
        assert np.load(place / "features.npy").shape == (24, 48)


def test_whoever_comes_second_keeps_what_is_there(photo_folder, tmp_path, monkeypatch):
    """Another process puts the same cache there while this one computes: its files, which others read, stay."""
    encoder, source = load_encoder("pixels:4"), open_source(photo_folder)
    place = stored_features(encoder, source, tmp_path / "other", threads=1).place
    embed_batches = embed_store.embed_batches

    def slowly(*arguments, **options):
        yield from embed_batches(*arguments, **options)
        (tmp_path / "own").mkdir(exist_ok=True)
        place.rename(tmp_path / "own" / place.name)

    monkeypatch.setattr(embed_store, "embed_batches", slowly)
    before = (place / "features.npy").stat().st_ino
    found = stored_features(encoder, source, tmp_path / "own", threads=1)
    assert (found.place / "features.npy").stat().st_ino == before and len(list((tmp_path / "own").iterdir())) == 1


def test_what_is_no_cache_makes_room_and_what_is_damaged_is_named(photo_folder, tmp_path):
    encoder, source = load_encoder("pixels:4"), open_source(photo_folder)
    found = stored_features(encoder, source, tmp_path, threads=1)
    expected = torch.clone(found.vectors)
    (found.place / "about.json").unlink()  # of a foreign hand
    assert torch.equal(stored_features(encoder, source, tmp_path, threads=1).vectors, expected)
    assert [path.name for path in tmp_path.iterdir()] == [found.place.name]
    whole = (found.place / "features.npy").read_bytes()
    for damage in (whole[:1000], b"", None):
        (found.place / "features.npy").unlink()
        if damage is not None:
            (found.place / "features.npy").write_bytes(damage)
        with pytest.raises(UserError, match=f"{found.place.name}: damaged .*; delete this folder") as caught:
            stored_features(encoder, source, tmp_path, threads=1)
        assert "\n" not in str(caught.value)
        (found.place / "features.npy").write_bytes(whole)


def test_a_row_that_does_not_fit_leaves_nothing_of_itself(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    evaluate.append(file, "first\n")

    class Full:
        def __init__(self, opened):
            self.opened = opened

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.opened.close()

        def write(self, data):
            if self.opened.tell() > 8:
                raise OSError(28, "No space left on device")
            return self.opened.write(data[:4])

        def __getattr__(self, name):
            return getattr(self.opened, name)

    real = open
    monkeypatch.setattr(evaluate, "open", lambda *a, **o: Full(real(*a, **o)), raising=False)
    with pytest.raises(OSError, match="No space left"):
        evaluate.append(file, "second\n")
    assert file.read_text() == "first\n"
