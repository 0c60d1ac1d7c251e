"""Two processes find what one finds: features, k-NN, linear classifiers; SVMs by several processes are those of one."""

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.benchmarks import processes
from headrace.train import pretrain
from headrace.train.evaluation.svm import full, low_shot

WORKER = str(Path(__file__).with_name("evaluation_worker.py"))


def test_two_processes_find_what_one_finds(photo_folder, tmp_path, monkeypatch):
    run, photos = tmp_path / "run", tmp_path / "photos"
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:23]):  # an odd number, and one is broken
        copy = photos / path.relative_to(photo_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[: 200 if index == 13 else None])
    arguments = ["simclr_resnet18", "--smoke", f"data.train={photo_folder}", "data.threads=1", f"train.out={run}"]
    assert pretrain.main([*arguments, "train.max_steps=2"]) == 0
    rows, arrays = {}, {}
    for world in (1, 2):
        place = tmp_path / str(world)
        place.mkdir()
        monkeypatch.chdir(place)
        codes = processes.run([WORKER, str(run), str(photos)], place / "log", world=world)
        assert codes == [0] * world, (place / "log").read_text()
        rows[world] = [json.loads(line) for line in (place / "evaluation.jsonl").read_text().splitlines()]
        (features,) = (place / "embedded").glob("*/features.npy")
        keys, labels = (features.parent / "keys.txt").read_text(), np.load(features.with_name("labels.npy"))
        arrays[world] = np.load(features), labels.tolist(), keys
        about = json.loads((features.parent / "about.json").read_text())
        assert len(about["left_out"]) == 1 and len(arrays[world][0]) == 22
        assert not list(place.rglob("*.tmp"))
    assert np.abs(arrays[1][0] - arrays[2][0]).max() < 1e-5 and arrays[1][1:] == arrays[2][1:]
    assert [row["protocol"] for row in rows[1]] == ["knn", "linear sweep", "linear simclr"]
    for one, two in zip(rows[1], rows[2], strict=True):  # each once, however many processes
        assert one["figures"] == two["figures"] and one["encoder"]["view"] == two["encoder"]["view"]
    assert 0 < rows[1][0]["figures"][1]["top1"] < 1


def test_several_processes_fit_the_same_machines():
    rng = np.random.default_rng(0)
    rows, directions = rng.normal(size=(90, 6)), rng.normal(size=(6, 3))
    targets = (rows @ directions + rng.normal(size=(90, 3)) > 0.5).astype(np.int8)
    given = rows[:60], targets[:60], rows[60:], targets[60:]
    assert full(*given, costs=[0.1, 1.0], jobs=2) == full(*given, costs=[0.1, 1.0], jobs=1)
    options = {"shots": [1, 4], "draws": 2, "costs": [0.1, 1.0]}
    assert low_shot(*given, **options, jobs=2) == low_shot(*given, **options, jobs=1)
    with pytest.raises(ValueError):  # a fault in one of them is not lost
        full(rows[:60], np.ones_like(targets[:60]), *given[2:], costs=[1.0], jobs=2)
