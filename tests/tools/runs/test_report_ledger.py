"""The hardest and the easiest samples of a run on its page."""

import re
import shutil

import pytest
from html_pages import assert_stands_alone, picture
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.sources import open_source
from headrace.tools.runs import report
from headrace.train import pretrain
from headrace.train.ledger import read_ledger


@pytest.fixture(scope="module")
def run_with_ledger(photo_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ledger"
    options = [f"data.train={photo_folder}", "train.max_steps=6", "train.ledger=true", f"train.out={out}"]
    assert pretrain.main(["mae_vit-tiny", "--smoke", *options]) == 0
    return out


def ledger_of(page):
    """Of its two halves: (key, average, visits, side of the picture or None) of each sample."""
    section = re.search(r"<h2>Ledger</h2>(.*?)</article>", page, re.S)[1]
    found = {}
    for half in section.split("<h3>")[1:]:
        figures = re.findall(r"<figure>(.*?)<figcaption>(.*?)<div>([\d.]+), (\d+) visits?<", half)
        pictures = [re.search('src="(.*?)"', image) for image, *_ in figures]
        sides = [max(picture(uri[1]).shape) if uri else None for uri in pictures]
        rows = [(key, float(average), int(visits)) for _, key, average, visits in figures]
        found[half.partition("<")[0]] = [(*row, side) for row, side in zip(rows, sides)]
    return section, found


def test_the_hardest_and_the_easiest(run_with_ledger, photo_folder, tmp_path, capsys):
    arguments = [str(run_with_ledger), "--out", str(tmp_path / "page.html"), "--hardest", "3", "--easiest", "5"]
    assert report.main(arguments) == 0
    page = (tmp_path / "page.html").read_text()
    assert_stands_alone(page)
    section, halves = ledger_of(page)
    columns, source = read_ledger(run_with_ledger), open_source(str(photo_folder))
    expected = sorted(
        (float(f"{average:.4f}"), source.key(i), int(columns["visits"][i]))
        for i, average in enumerate(columns["average"])
        if columns["visits"][i]
    )
    assert f"{len(expected)} of {len(source)} samples were seen" in section
    assert "mean squared error over its hidden patches" in section
    assert [(a, k, v) for k, a, v, _ in halves["Easiest"]] == expected[:5]
    assert [(a, k, v) for k, a, v, _ in halves["Hardest"]] == expected[:-4:-1]
    assert all(side is not None and side <= 128 for half in halves.values() for *_, side in half)
    assert report.main([*arguments, "--samples", "0"]) == 0
    without = ledger_of((tmp_path / "page.html").read_text())[1]
    assert [row[:3] for row in without["Easiest"]] == [row[:3] for row in halves["Easiest"]]
    assert all(side is None for half in without.values() for *_, side in half)
    with pytest.raises(UserError, match="--hardest: from 0 to 1000, not -1"):
        report.main([*arguments, "--hardest", "-1"])


def test_a_ledger_without_its_images(run_with_ledger, tmp_path):
    """Of others, and damaged."""
    out, fewer = tmp_path / "page.html", tmp_path / "fewer"
    fewer.mkdir()
    Image.new("RGB", (32, 32)).save(fewer / "one.png")
    report.report(run_with_ledger, out, data=str(fewer), hardest=2, easiest=0)
    section, halves = ledger_of(out.read_text())
    assert "The data has 1 images now, the ledger" in section and list(halves) == ["Hardest"]
    assert all(key.startswith("sample ") and side is None for key, *_, side in halves["Hardest"])
    shutil.copytree(run_with_ledger, tmp_path / "torn")
    (tmp_path / "torn" / "ledger" / "loss.npy").write_bytes(b"torn")
    report.report(tmp_path / "torn", out)
    assert "It cannot be read: " in ledger_of(out.read_text())[0]


def test_without_a_ledger_one_line_says_so(run, tmp_path, capsys):
    assert report.main([str(run), "--out", str(tmp_path / "page.html"), "--samples", "0", "--hardest", "5"]) == 0
    line = "No ledger was kept: train.ledger=true keeps the losses of single samples."
    assert (
        line in capsys.readouterr().out
        and ledger_of((tmp_path / "page.html").read_text())[0].strip() == f"<p>{line}</p>"
    )
