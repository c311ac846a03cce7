"""The report says what is so: its numbers, curves, bars, map and pictures against independent computations."""

import base64
import io
import itertools
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vaelab
from vaelab import data, film, plots, report
from vaelab.config import DataConfig
from vaelab.data import Dataset, DataSpec, Split
from vaelab.diagnosis import Diagnosis, check_curves, look, run_checks
from vaelab.diagnosis import case as diagnosed
from vaelab.runs import Run, load, write_tensors
from vaelab.training import Interrupted, job
from vaelab.training.processes import Processes
from vaelab.words import rounded

# -- runs to report on ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three epochs of a small VAE on digits: 10 labels, 5 latents, 180 validation examples."""
    return quick(tmp_path_factory.mktemp("report") / "run", **{"model.latent_dim": 5, "training.epochs": 3})


def quick(path: Path, recipe: str = "vae", **overrides: Any) -> Run:
    overrides = {"network.hidden": [32], "training.epochs": 1, "training.batch_size": 256, **overrides}
    return vaelab.train(recipe, out=path, overrides=overrides, progress=False)


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """The same run in a folder that a test may change."""
    return Run.open(shutil.copytree(run.path, tmp_path / "copy"))


def dataset_of(run: Run) -> Dataset:
    return data.load(run.config.data)


# -- reading the page ----------------------------------------------------------------------------------------------

BOLD = "font-weight: 700"
VOID = {"meta", "link", "img", "input", "br"}


class Element:
    """A node of the page."""

    def __init__(self, tag: str, attributes: dict[str, str], parent: "Element | None") -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element] = []
        self.texts: list[str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def all(self, *tags: str) -> "Iterator[Element]":
        for child in self.children:
            if not tags or child.tag in tags:
                yield child
            yield from child.all(*tags)

    @property
    def text(self) -> str:
        parts = [*self.texts, *(child.text for child in self.children)]
        return " ".join(" ".join(parts).split())


class Parser(HTMLParser):
    """Builds the tree, and fails on a tag that is not closed or not opened."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.texts.append(data)


def parse(html: str) -> Element:
    parser = Parser()
    parser.feed(html)
    assert parser.at is parser.root
    return parser.root


def page_of(run: Run) -> Element:
    return parse((run.path / "report.html").read_text(encoding="utf-8"))


def drawing(page: Element, alt: str) -> Element:
    """The figure whose text alternative begins with `alt`."""
    found = [element for element in page.all("div") if element.attributes.get("aria-label", "").startswith(alt)]
    assert len(found) == 1
    return found[0]


def numbers_in(page: Element) -> dict[str, float]:
    return {element["id"]: float(element["value"]) for element in page.all("data")}


def picture(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def path_points(element: Element) -> np.ndarray:
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", element["d"])])


def axis(figure: Element, direction: int) -> Callable[[np.ndarray], np.ndarray]:
    """From places in a drawing to values, by its grid lines and tick labels. Direction 0 is x, 1 is y."""
    ends = [path_points(e) for e in figure.all("path") if "stroke-opacity: 0.15" in e.attributes.get("style", "")]
    lines = sorted(points[0, direction] for points in ends if points[0, direction] == points[1, direction])
    anchor = ("middle", "end")[direction]
    texts = [e for e in figure.all("text") if f"text-anchor: {anchor}" in e["style"] and BOLD not in e["style"]]
    values = sorted(float(e.text.replace("−", "-")) for e in texts if re.fullmatch(r"[−\d.]+", e.text))
    assert len(lines) == len(values) >= 2
    slope, start = np.polyfit(lines, values if direction == 0 else values[::-1], 1)
    return lambda places: slope * places + start


def curve_in(figure: Element, series: int) -> np.ndarray:
    """(epoch, value) of a curve, [N, 2]; the longest line of that color, for the legend has a short one."""
    style = f"stroke: var(--series-{series})"
    lines = [path_points(e) for e in figure.all("path") if style in e.attributes.get("style", "")]
    points = max(lines, key=lambda line: np.ptp(line[:, 0]))
    return np.stack([axis(figure, 0)(points[:, 0]), axis(figure, 1)(points[:, 1])], 1)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_evaluate(run: Run) -> None:
    expected = vaelab.evaluate(run, importance_samples=100, split="validation", limit=2_000)
    found = numbers_in(page_of(run))
    names = [name + end for name in ("elbo", "rate", "distortion", "log_px") for end in ("", "_stderr")]
    for name in [*names, "active_units"]:
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert expected.log_px is not None and expected.log_px_stderr is not None
    assert found["bits_per_dim"] == pytest.approx(-expected.log_px / 64 / math.log(2), rel=1e-6)
    assert found["bits_per_dim_stderr"] == pytest.approx(expected.log_px_stderr / 64 / math.log(2), rel=1e-6)
    written = json.loads((run.path / "numbers.json").read_text())
    assert written["split"] == "validation" and written["elbo"] == pytest.approx(expected.elbo, rel=1e-6)


def test_shown_numbers_and_card_are_the_same_numbers_rounded(run: Run) -> None:
    page, card = page_of(run), (run.path / "README.md").read_text(encoding="utf-8")
    found = numbers_in(page)
    shown = {element["id"]: float(element.text.replace("−", "-").replace(",", "")) for element in page.all("data")}
    for name in ("elbo", "rate", "distortion", "log_px", "bits_per_dim"):
        error = found[f"{name}_stderr"]
        unit = 10 ** (math.floor(math.log10(error)) - 1)  # of the error's second digit
        assert abs(shown[name] - found[name]) <= 0.51 * unit
        assert abs(shown[f"{name}_stderr"] - error) <= 0.51 * unit
    log_px = next(element for element in page.all("data") if element["id"] == "log_px").text
    assert f"| Log-likelihood log p(x) | {log_px} ± " in card
    assert f"log-likelihood log p(x) is {log_px}\u00a0±" in card
    assert f"log-likelihood log p(x) is {log_px} ±" in page.text


def test_only_the_first_examples_are_measured_and_that_is_said(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosed, "EXAMPLES", 50)
    report.publish(copy, dataset_of(copy), [])
    page = page_of(copy)
    expected = vaelab.evaluate(copy, importance_samples=100, split="validation", limit=50)
    assert numbers_in(page)["log_px"] == pytest.approx(expected.log_px, rel=1e-6)
    assert "the first 50 of 180 validation examples" in page.text
    assert "Each dot is one of 50 validation examples" in page.text


def test_training_data_stand_in_for_validation_and_it_is_said(tmp_path: Path) -> None:
    none = {"data.validation": 0.0, "data.test": 0.0, "data.binarize": "dynamic"}
    run = quick(tmp_path / "run", **none)
    page, card = page_of(run), (run.path / "README.md").read_text()
    expected = vaelab.evaluate(run, importance_samples=100, split="train", limit=2_000)
    assert numbers_in(page)["log_px"] == pytest.approx(expected.log_px, rel=1e-6)
    for text in (page.text, card):
        assert "There are no validation examples. All numbers are of training examples" in text
        assert "all 1,797 training examples" in text
        assert "test examples" not in text
    assert "best: epoch" not in page.text


class Untouchable(Split):
    """A split that must not be read."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was read: {name}")


def test_the_test_split_is_never_read(copy: Run) -> None:
    whole = dataset_of(copy)
    guarded = replace(whole, splits={**whole.splits, "test": Untouchable(torch.zeros(1))})
    with pytest.raises(AssertionError, match="the test split was read"):
        len(guarded["test"])
    before = (copy.path / "report.html").read_text()
    report.publish(copy, guarded, [])
    assert numbers_in(parse(before)) == numbers_in(page_of(copy))
    assert "The 180 test examples were not looked at" in page_of(copy).text  # their number is in the run's config.toml


# -- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["elbo", "rate", "distortion"])
@pytest.mark.parametrize(("part", "series"), [("train", 1), ("validation", 0)])
def test_curves_are_the_metrics(run: Run, metric: str, part: str, series: int) -> None:
    title = {"elbo": "ELBO", "rate": "Rate", "distortion": "Distortion"}[metric]
    found = curve_in(drawing(page_of(run), f"Line plot of the {title}"), series)
    lines = run.metrics()
    expected = np.array([[line["epoch"], line[part][metric]] for line in lines])
    spread = np.ptp([line[p][metric] for line in lines for p in ("train", "validation")])
    np.testing.assert_allclose(found, expected, atol=1e-3 * spread + 0.01)


def test_the_best_epoch_is_marked(copy: Run) -> None:
    lines = [
        {"epoch": epoch, "step": epoch, "seconds": 1.0, "train": dict.fromkeys(KEYS, 9.0 - epoch)}
        | {"validation": {"loss": loss, "elbo": -loss, "rate": 1.0, "distortion": loss - 1}}
        for epoch, loss in enumerate([9.0, 4.0, 5.0, 6.5], start=1)
    ]
    write_metrics(copy, lines)
    report.publish(copy, dataset_of(copy), [])
    page = page_of(copy)
    figure = drawing(page, "Line plot of the ELBO")
    dotted = [e for e in figure.all("path") if "stroke-dasharray: 1.5" in e.attributes.get("style", "")]
    upright = [path_points(e) for e in dotted if np.ptp(path_points(e)[:, 0]) == 0]
    assert len(upright) == 1
    assert axis(figure, 0)(upright[0][:, 0]) == pytest.approx(2, abs=0.01)
    assert "The dotted line marks epoch 2" in page.text
    assert "best: epoch 2" in figure.text
    assert "epoch 2 of 4, and 2.50 nats higher at the end" in page.text
    assert "over-fitting" in page.text


KEYS = ("loss", "elbo", "rate", "distortion")


def write_metrics(run: Run, lines: list[dict[str, Any]]) -> None:
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def latents_of(run: Run) -> tuple[Tensor, Tensor]:
    """Posterior means and KL by latent, [180, D], through torch.distributions."""
    model = load(run)
    with torch.no_grad():
        loc, log_variance = model.posterior.head(model.encoder(dataset_of(run)["validation"].batch())).chunk(2, -1)
    q = Normal(loc.double(), (0.5 * log_variance.double()).exp())
    return loc, kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc)))


def bars_in(figure: Element) -> list[tuple[float, bool]]:
    """(height in nats, hatched) of every bar from left to right."""
    value = axis(figure, 1)
    found = []
    for element in figure.all("path"):
        style = element.attributes.get("style", "")
        points = path_points(element) if "clip-path" in element.attributes else np.zeros((0, 2))
        if len(points) == 4 and ("fill: var(--series-0)" in style or "fill: url(#" in style):
            base, top = value(points[:, 1].max()), value(points[:, 1].min())
            found.append((points[0, 0], float(top - base), "fill: url(#" in style))
    return [(height, hatched) for _, height, hatched in sorted(found)]


def test_kl_bars_are_the_kl_of_each_latent(run: Run) -> None:
    means, kl = latents_of(run)
    expected = kl.mean(0).sort(descending=True)
    active = means.var(0, correction=0) > 0.01
    figure = drawing(page_of(run), "Bar chart of the mean KL")
    bars = bars_in(figure)
    np.testing.assert_allclose([height for height, _ in bars], expected.values, atol=0.003 * float(expected.values[0]))
    assert [not hatched for _, hatched in bars] == active[expected.indices].tolist()
    order = [e.text for e in figure.all("text") if e.text.isdigit() and "text-anchor: middle" in e["style"]]
    assert order == [str(int(latent)) for latent in expected.indices]
    assert float(kl.mean(0).sum()) == pytest.approx(numbers_in(page_of(run))["rate"], abs=1e-4)


def test_inactive_latents_are_hatched_and_counted() -> None:
    figure = parse(plots.kl_bars(torch.tensor([0.5, 2.0, 0.25, 1.0]), torch.tensor([False, True, False, True])))
    bars = bars_in(figure)
    np.testing.assert_allclose([height for height, _ in bars], [2, 1, 0.5, 0.25], atol=0.01)
    assert [hatched for _, hatched in bars] == [False, False, True, True]
    assert "active (2)" in figure.text and "inactive (2)" in figure.text


def test_principal_components_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    found, shares, origin = plots.principal_components(points)
    pca = PCA(2).fit(points.numpy())
    expected, zero = pca.transform(points.numpy()), pca.transform(np.zeros((1, 6)))[0]
    signs = np.sign(pca.components_[range(2), np.abs(pca.components_).argmax(1)])
    np.testing.assert_allclose(found, expected * signs, atol=1e-4)
    np.testing.assert_allclose(origin, zero * signs, atol=1e-4)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-5)


def test_principal_components_of_what_does_not_vary() -> None:
    points, shares, origin = plots.principal_components(torch.full((7, 3), 2.0))
    assert points.abs().max() < 1e-9 and shares.tolist() == [0, 0] and origin.isfinite().all()


def test_map_shows_every_example_where_its_mean_is(run: Run) -> None:
    means, _ = latents_of(run)
    labels = dataset_of(run)["validation"].labels
    assert labels is not None
    pca = PCA(2).fit(means.numpy())
    expected = pca.transform(means.numpy()) * np.sign(pca.components_[range(2), np.abs(pca.components_).argmax(1)])
    figure = drawing(page_of(run), "Scatter plot of the posterior means of 180 validation examples, by label")
    dots = [e for e in figure.all("use") if "var(--series-" in e["style"]]
    assert len(dots) == 180
    places = np.array([[float(e["x"]), float(e["y"])] for e in dots])
    found = np.stack([axis(figure, 0)(places[:, 0]), axis(figure, 1)(places[:, 1])], 1)
    order = labels.argsort(stable=True)  # the dots come label by label
    np.testing.assert_allclose(found, expected[order], atol=0.01 * np.ptp(expected))
    looks = [(re.search(r"--series-\d", e["style"]), e["href"]) for e in dots]
    pairs = Counter((color[0] if color else "", shape) for color, shape in looks)
    assert sorted(pairs.values()) == sorted(labels.bincount().tolist())  # ten labels, ten looks
    shares = [f"({100 * share:.0f} % of variance)" for share in pca.explained_variance_ratio_]
    assert all(share in figure.text for share in shares)
    bold = [e.text for e in figure.all("text") if BOLD in e["style"]]
    assert bold == list("0123456789")


def test_names_are_pushed_apart_and_distant_ones_stay() -> None:
    places = np.array([[0.0, 0.0], [0.0, 0.0], [0.05, 0.0], [3.0, 1.0]])
    moved = plots.push_apart(places, 0.5)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(moved, 2)) > 0.49
    assert np.abs(moved[3] - places[3]).max() < 0.01
    assert np.abs(moved - places).max() < 1


def test_looks_differ_for_as_many_labels_as_are_shown() -> None:
    looks = list(plots._looks(100))
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks) == plots.MAX_LABELS


def test_too_many_labels_are_not_colored() -> None:
    assert len(plots.label_groups(torch.arange(20), None)) == 20
    assert plots.label_groups(torch.arange(21), None) == []
    assert plots.label_groups(None, ("a",)) == []
    names = [name for name, _ in plots.label_groups(torch.tensor([7, 0, 1]), ("zero", "a\nvery long name for a label"))]
    assert names == ["zero", "a?very long nam…", "7"]


# -- pictures ------------------------------------------------------------------------------------------------------


def tiles(image: np.ndarray, columns: int, rows: int, repeat: int) -> np.ndarray:
    """[rows, columns, H, W] of a sprite: a frame of one pixel around each tile, pixels repeated."""
    height, width = image.shape[0] // rows, image.shape[1] // columns
    split = image.reshape(rows, height, columns, width).transpose(0, 2, 1, 3)
    return split[:, :, 1:-1:repeat, 1:-1:repeat].copy()


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_animation_shows_the_frames_of_training(binarize: str, tmp_path: Path) -> None:
    """Without validation the last weights are kept: the last frame is what the saved model makes of the originals."""
    run = quick(tmp_path / "run", **{"data.validation": 0.0, "data.binarize": binarize, "training.epochs": 3})
    strips = {e["alt"].partition(":")[0]: e for e in page_of(run).all("img") if e["class"] == "strip"}
    originals = tiles(picture(strips["Originals"]["src"]), 8, 1, 4)[0]
    first = dataset_of(run)["train"].head(8).raw[:, 0] / 16
    if binarize == "none":
        np.testing.assert_array_equal(originals, (first * 255).round())
    else:  # one draw of them
        assert set(np.unique(originals)) == {0, 255} and not originals[first == 0].any() and originals[first == 1].all()
    last = tiles(picture(strips["Reconstructions"]["src"]), 8, 3, 4)[-1]
    x = torch.from_numpy(originals).unsqueeze(1) / 255 if binarize == "dynamic" else first.unsqueeze(1)
    assert np.abs(last - load(run).reconstruct(x)[:, 0].numpy() * 255).max() <= 0.51
    figure = next(e for e in page_of(run).all("figure") if "data-epochs" in e.attributes)
    assert figure["data-epochs"] == "1,2,3"
    assert "data-strip" in strips["Samples"].attributes and "data-strip" not in strips["Originals"].attributes


@pytest.mark.parametrize("most", [4, 40])
def test_frames_know_their_epochs(most: int) -> None:
    """Against the rule of training: at `most` frames every second is dropped, and half as many are taken."""
    kept: list[int] = []
    stride = 1
    for epoch in range(1, 1_500):
        if epoch % stride == 0:
            kept.append(epoch)
            if len(kept) == most:
                kept, stride = kept[1::2], 2 * stride
        assert plots.frame_epochs(len(kept), epoch) == kept


def test_frames_of_a_real_run_know_their_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "MOST", 4)
    run = quick(tmp_path / "run", **{"training.epochs": 9})
    counters = json.loads((run.path / "checkpoint" / "latest.json").read_text())["counters"]
    figure = next(e for e in page_of(run).all("figure") if "data-epochs" in e.attributes)
    epochs = [int(epoch) for epoch in figure["data-epochs"].split(",")]
    assert epochs == list(range(counters["frame_stride"], 10, counters["frame_stride"]))


def test_large_pictures_are_shrunk_and_small_ones_enlarged() -> None:
    small = torch.arange(2 * 8 * 5, dtype=torch.uint8).view(2, 1, 8, 5)
    np.testing.assert_array_equal(plots.to_tile(small)[..., ::4, ::4], small)
    assert plots.to_tile(small).shape == (2, 1, 32, 20)
    large = torch.zeros(1, 3, 128, 64, dtype=torch.uint8)
    large[..., ::2, ::2] = 200  # every 2 × 2 block has one such pixel
    assert plots.to_tile(large).shape == (1, 3, 64, 32) and plots.to_tile(large).unique().tolist() == [50]
    same = torch.randint(0, 255, (1, 1, 40, 50), dtype=torch.uint8)
    assert torch.equal(plots.to_tile(same), same)


def test_a_long_animation_of_large_pictures_is_thinned(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before compression stay below the limit; the last frame is kept."""
    frames = [torch.full((16, 1, 8, 8), epoch, dtype=torch.uint8) for epoch in range(1, 12)]
    line = copy.metrics()[-1]
    write_metrics(copy, [{**line, "epoch": epoch} for epoch in range(1, 12)])
    monkeypatch.setattr(report, "SPRITE_BYTES", 4 * 16 * 32 * 32)
    report.publish(copy, dataset_of(copy), frames)
    figure = next(e for e in page_of(copy).all("figure") if "data-epochs" in e.attributes)
    assert figure["data-epochs"] == "2,5,8,11"
    samples = next(e for e in figure.all("img") if e["alt"].startswith("Samples"))
    shown = tiles(picture(samples["src"]), 8, 4, 4)
    assert [np.unique(row).tolist() for row in shown] == [[2], [5], [8], [11]]


def test_color_sprite_keeps_its_pixels() -> None:
    frames = torch.randint(0, 255, (2, 3, 3, 4, 5), dtype=torch.uint8)
    image = np.asarray(plots.sprite(frames))
    assert image.shape == (2 * 6, 3 * 7, 3)
    for t, n in itertools.product(range(2), range(3)):
        tile = image[6 * t + 1 : 6 * t + 5, 7 * n + 1 : 7 * n + 6]
        np.testing.assert_array_equal(tile, frames[t, n].permute(1, 2, 0))


# -- the page as a page --------------------------------------------------------------------------------------------


def check_page(page: Element) -> None:
    """What holds for every report: nothing from outside, every figure explained, sound structure."""
    for element in page.all():
        for name, value in element.attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), f"{element.tag} loads {value[:60]}"
            for target in re.findall(r"url\(([^)]*)\)", value):
                assert target.startswith("#"), target
    for element in page.all("style", "script"):
        assert not re.search(r"https?:|//\w|@import|url\(|fetch|XMLHttp|import\(", " ".join(element.texts))
    figures = list(page.all("figure"))
    assert figures
    for figure in figures:
        captions = list(figure.all("figcaption"))
        assert len(captions) == 1 and len(captions[0].text) > 20
        described = [e for e in figure.all("img", "div") if e.tag == "img" or e.attributes.get("role") == "img"]
        assert described
        for element in described:
            alt = element["alt"] if element.tag == "img" else element["aria-label"]
            assert len(alt) > 10 and "{" not in alt and "None" not in alt
    for svg in page.all("svg"):
        assert not list(svg.all("style", "metadata", "script"))  # a style in a drawing would hold for the whole page
        assert svg.parent is not None and svg.parent.attributes.get("role") == "img"
    ids = [e["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    used = {e["href"][1:] for e in page.all("use")}
    used |= {t for e in page.all() for v in e.attributes.values() for t in re.findall(r"url\(#([^)]*)\)", v)}
    used |= {e["aria-labelledby"] for e in page.all("section")}
    assert used <= set(ids) and used
    levels = [int(e.tag[1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    colors = {c for e in page.all() for c in re.findall(r"#[0-9a-f]{6}\b", e.attributes.get("style", ""))}
    assert not colors, "a drawing has a color of its own"
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def inside(element: Element, name: str) -> bool:
    """Whether an element stands in one of this class."""
    return element.parent is not None and (
        name in element.parent.attributes.get("class", "").split() or inside(element.parent, name)
    )


def test_the_page_shows_what_the_doctor_found(copy: Run) -> None:
    """Three epochs are too few: severity, message, cause, remedy and curve, as the doctor tells them."""
    report.publish(copy, dataset_of(copy), [])
    findings = vaelab.doctor(copy).findings
    assert "under-training" in {finding.name for finding in findings}
    page = page_of(copy)
    check_page(page)
    articles = list(page.all("article"))
    assert len(articles) == len(findings)
    for article, finding in zip(articles, findings, strict=True):
        assert article["class"] == f"finding {finding.severity}"
        (heading,) = article.all("h3")
        assert heading.text == f"{finding.severity.capitalize()}: {finding.name.replace('-', ' ')}"
        for text in (finding.message, f"Likely cause: {finding.cause}."):
            assert text in [paragraph.text for paragraph in article.all("p")]
        if finding.remedy.startswith("vaelab "):
            (command,) = article.all("pre")
            (button,) = article.all("button")
            assert command.text == finding.remedy and button["data-copy"] == command["id"]
        assert len(list(article.all("svg"))) == (finding.plot is not None)
    (curve,) = [e for e in page.all("div") if e.attributes.get("aria-label", "").startswith("Figure on under training")]
    expected = [[line["epoch"], line["validation"]["loss"]] for line in copy.metrics()]
    np.testing.assert_allclose(curve_in(curve, 0), expected, rtol=2e-3)
    card = (copy.path / "README.md").read_text()
    assert all(report.markdown(finding.message) in card for finding in findings)


def test_a_page_without_findings_says_so(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "examine", lambda case: [])
    report.publish(copy, dataset_of(copy), [])
    page = page_of(copy)
    assert not list(page.all("article"))
    assert f"Nothing: it looked for {len(run_checks.ILLNESSES)} illnesses." in page.text


def test_page_is_sound(run: Run) -> None:
    page = page_of(run)
    check_page(page)
    assert len([svg for svg in page.all("svg") if not inside(svg, "finding")]) == 5
    axis_labels = " ".join(e.text for e in page.all("text"))
    for label in ("epoch", "nats per example", "mean KL (nats per example)", "principal component 1"):
        assert label in axis_labels
    assert (run.path / "report.html").stat().st_size < 500_000
    for button in page.all("button"):
        assert button["type"] == "button"


def test_names_from_users_are_text(copy: Run) -> None:
    nasty = "<script>alert(1)</script>"
    names = tuple(nasty[:16] if label == 3 else f'"{label}"&$x_{label}$' for label in range(10))
    about = {**copy.about, "command": f"vaelab train '{nasty}' --out \"<b>&amp;\""}
    config = replace(copy.config, recipe=f"{nasty}.toml", data=copy.config.data.model_copy(update={"source": nasty}))
    told = replace(copy, about=about, config=config)
    report.publish(told, replace(dataset_of(copy), label_names=names), [])
    page = page_of(copy)
    check_page(page)
    scripts = list(page.all("script"))
    assert len(scripts) == 1 and "alert" not in " ".join(scripts[0].texts)
    assert not list(page.all("b"))
    command = next(e for e in page.all("pre") if e.attributes.get("id") == "command")
    assert command.texts == [about["command"]]
    bold = [e.text for e in page.all("text") if BOLD in e["style"]]
    assert bold == [*(name[:16] for name in names)]
    card = (copy.path / "README.md").read_text(encoding="utf-8")
    outside = [line for line in card.splitlines() if not line.startswith("    ")]
    assert "<script" not in re.sub(r"\\<", "", "\n".join(outside))
    assert f"    {about['command']}" in card.splitlines()


def test_page_shows_configuration_command_and_data(run: Run) -> None:
    page = page_of(run)
    rows = {row.children[0].text: row.children[1].text for row in page.all("tr")}
    assert rows["model.latent_dim"] == "5" and rows["network.hidden"] == "32" and rows["training.seed"] == "0"
    given = {f"{group}.{key}" for group, keys in run.config.to_dict().items() if group != "recipe" for key in keys}
    assert given < set(rows)
    assert rows["data"] == "digits: grey pictures of 8 × 8 pixels with 17 levels"
    assert rows["examples"] == "1,437 training, 180 validation, 180 test"
    assert (
        rows["epochs"] == f"3; weights kept: epoch {min(run.metrics(), key=lambda m: m['validation']['loss'])['epoch']}"
    )
    assert torch.__version__ in rows["versions"] and vaelab.__version__ in rows["versions"]
    assert run.about["fingerprint"].startswith(rows["fingerprint of the data"])
    assert any(pre.text == run.about["command"] for pre in page.all("pre"))


def test_card_is_a_model_card_that_works(run: Run) -> None:
    card = (run.path / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert card.startswith("---\n") and "library_name: vaelab\n" in front and "\n- vae\n" in front
    assert "license:" not in re.sub(r"#.*", "", front)  # the user's to choose
    code = [line.strip() for line in body.split("## Use")[1].split("\n\n")[1].splitlines()]
    assert len(code) == 3
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    assert names["x"].shape == (16, 1, 8, 8)
    assert torch.equal(names["model"].state_dict()["decoder.bias"], load(run).state_dict()["decoder.bias"])
    assert "{{" not in card and "None" not in card


def test_colors_can_be_seen_on_both_backgrounds() -> None:
    """WCAG 2.1: text has a contrast of at least 4.5, lines and dots of at least 3."""
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for scheme in (light[: light.index("@media")], dark[: dark.index("body {")]):
        color = {name: luminance(value) for name, value in re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme)}
        for ground in ("paper", "card"):
            for text in ("ink", "soft", "accent"):
                assert contrast(color[text], color[ground]) >= 4.5, (text, ground)
            for index in range(len(plots.SERIES)):
                assert contrast(color[f"series-{index}"], color[ground]) >= 3, (index, ground)
        for grave in ("warn", "error"):
            for text in (grave, "ink", "soft"):
                assert contrast(color[text], color[f"{grave}-card"]) >= 4.5, (text, grave)


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_matplotlib_is_left_as_it_was(run: Run) -> None:
    """Reports were made before this, and one drawing is made here."""
    before = dict(mpl.rcParams)
    plots.curve(run.metrics(), "elbo", "ELBO", 1)
    assert dict(mpl.rcParams) == before
    assert before["text.color"] != plots.INK


def test_drawings_stay_small() -> None:
    means = torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0))
    groups = plots.label_groups(torch.arange(2_000) % 10, None)
    assert len(plots.latent_map(means, groups, True)) < 400_000


# -- all or nothing ------------------------------------------------------------------------------------------------


def contents(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_a_failure_while_composing_changes_nothing(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    monkeypatch.setattr(report, "_made", lambda found: [("key", 1 / 0)])
    with pytest.raises(ZeroDivisionError):
        report.publish(copy, dataset_of(copy), [])
    assert contents(copy) == before


def test_a_full_disk_leaves_the_old_report_whole(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    write = Path.write_text

    def full(path: Path, text: str, **keys: Any) -> int:
        if "report.html" in path.name:
            write(path, text[: len(text) // 2], **keys)
            raise OSError(28, "No space left on device")
        return write(path, text, **keys)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        report.publish(copy, dataset_of(copy), [])
    after = contents(copy)
    assert after["report.html"] == before["report.html"]
    assert after.keys() == before.keys()


# -- every kind of run ---------------------------------------------------------------------------------------------


def test_vectors_have_heat_maps_and_no_animation(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    np.save("table.npy", values)
    run = quick(tmp_path / "run", **{"data.source": "table.npy", "model.latent_dim": 3})
    page = page_of(run)
    check_page(page)
    assert "vectors of 6 numbers with real values" in page.text
    assert "Each row is an example, each column one of its values" in page.text
    assert not [e for e in page.all("figure") if "data-epochs" in e.attributes]
    assert "bits_per_dim" not in numbers_in(page)  # a density is no code length
    assert "may be above 0" in page.text
    for name in ("samples.png", "reconstructions.png"):
        with Image.open(run.path / name) as image:
            assert image.mode == "RGB"


def test_an_autoencoder_has_distortion_alone(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", "autoencoder")
    page = page_of(run)
    check_page(page)
    assert set(numbers_in(page)) == {"distortion", "distortion_stderr"}
    expected = vaelab.evaluate(run, split="validation")
    assert numbers_in(page)["distortion"] == pytest.approx(expected.distortion, rel=1e-6)
    figures = [e for e in page.all("div") if e.attributes.get("role") == "img" and not inside(e, "finding")]
    assert [e["aria-label"][:22] for e in figures] == [
        "Line plot of the Disto",
        "Scatter plot of the po",
    ]
    assert "has no density" in page.text and "% of the prior" not in page.text
    assert "An autoencoder with 20 latents" in (run.path / "README.md").read_text()


def test_a_quantized_model_has_a_bound_of_one_term(tmp_path: Path) -> None:
    """Its encoder gives one z, so no draws are weighed; and a latent is one code, however many numbers stand for it."""
    page = page_of(quick(tmp_path / "run", "fsq-vae", **{"network.hidden": 32}))
    check_page(page)
    assert "the encoder gives each example one z" in page.text
    assert "perfect ones" not in page.text and "not exact" not in page.text
    assert numbers_in(page)["elbo"] == pytest.approx(numbers_in(page)["log_px"], rel=1e-6)


def test_a_run_that_was_stopped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.training.interrupt.StopRequest.requested", True)
    with pytest.raises(Interrupted):
        quick(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.metrics() == []
    page = page_of(run)
    check_page(page)
    assert "Training stopped before its first epoch was complete" in page.text
    expected = vaelab.evaluate(run, split="validation")
    assert numbers_in(page)["elbo"] == pytest.approx(expected.elbo, rel=1e-6)
    assert not [e for e in page.all("div") if e.attributes.get("aria-label", "").startswith("Line plot")]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
def test_small_latent_spaces_are_shown_as_they_are(dims: int, labels: bool, tmp_path: Path) -> None:
    digits = data.load(DataConfig())
    split = digits["train"].head(300)
    assert split.labels is not None
    given = {"y": split.labels.numpy()} if labels else {}
    np.savez("digits.npz", x=split.raw.numpy(), **given)
    run = quick(tmp_path / "run", **{"model.latent_dim": dims, "data.source": "digits.npz"})
    page = page_of(run)
    check_page(page)
    figure = drawing(page, "Scatter plot of the posterior means")
    held_out = dataset_of(run)["validation"]
    with torch.no_grad():
        means = load(run).encode(held_out.batch()).mean.numpy()
    order = np.arange(len(means)) if held_out.labels is None else held_out.labels.argsort(stable=True).numpy()
    dots = [e for e in figure.all("use") if "var(--series-" in e["style"]]
    for direction in range(dims):
        found = axis(figure, direction)(np.array([float(e["xy"[direction]]) for e in dots]))
        np.testing.assert_allclose(found, means[order, direction], atol=0.01 * float(np.ptp(means)) + 1e-3)
    assert "% of variance" not in page.text
    if labels:
        names = {str(int(label)) for label in held_out.labels.unique()} if held_out.labels is not None else set()
        assert names <= {e.text for e in figure.all("text")}
        assert ("by label" in figure["aria-label"]) and "Color and shape tell the label" in page.text
    else:
        assert "by label" not in figure["aria-label"] and "label" not in figure.text
    assert (
        f"95 % of the prior lies {'between the dashed lines' if dims == 1 else 'inside the dashed circle'}" in page.text
    )


def test_prior_is_drawn_where_it_lies() -> None:
    """95 % of a standard normal: between ±1.96 in one dimension, within 2.448 of the origin in two."""
    generator = torch.Generator().manual_seed(1)
    figure = parse(plots.latent_map(torch.randn(50, 1, generator=generator), [], True))
    dashed = [path_points(e) for e in figure.all("path") if "stroke-dasharray" in e.attributes.get("style", "")]
    edges = sorted(float(axis(figure, 0)(line[:, 0]).mean()) for line in dashed)
    assert edges == pytest.approx([-1.95996, 1.95996], abs=0.01)
    for means in (torch.randn(50, 2, generator=generator), torch.randn(50, 4, generator=generator) + 1):
        figure = parse(plots.latent_map(means, [], True))
        (circle,) = [e for e in figure.all("path") if "stroke-dasharray" in e.attributes.get("style", "")]
        corners = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", circle["d"]), float)
        x, y = axis(figure, 0)(corners[:, 0]), axis(figure, 1)(corners[:, 1])
        origin = np.zeros(2) if means.shape[1] == 2 else plots.principal_components(means)[2].numpy()
        assert ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2) == pytest.approx(tuple(origin), abs=0.02)
        assert np.ptp(x) / 2 == pytest.approx(2.4477, abs=0.02)


def test_color_pictures_and_few_validation_examples(tmp_path: Path) -> None:
    """Three validation examples: three reconstructions a frame, but still eight samples."""
    np.save("color.npy", np.random.default_rng(0).integers(0, 256, (30, 3, 6, 4), dtype=np.uint8))
    run = quick(tmp_path / "run", **{"data.source": "color.npy", "training.epochs": 2})
    page = page_of(run)
    check_page(page)
    assert "color pictures of 6 × 4 pixels with 256 levels" in page.text
    strips = {e["alt"]: e for e in page.all("img") if e["class"] == "strip"}
    assert list(strips) == [
        "Originals: 3 pictures",
        "Reconstructions: 3 pictures, epoch by epoch",
        "Samples: 8 pictures, epoch by epoch",
    ]
    image = picture(strips["Originals: 3 pictures"]["src"])
    held_out = dataset_of(run)["validation"].raw
    first = image[1 : 1 + 30 : 5, 1 : 1 + 20 : 5]  # each pixel repeated 5 times
    np.testing.assert_array_equal(first, held_out[0].permute(1, 2, 0))


def test_one_validation_example(tmp_path: Path) -> None:
    """No error bars from a single example, no spread in the map; and neither stops the report."""
    np.save("few.npy", np.random.default_rng(0).integers(0, 2, (10, 1, 4, 4), dtype=np.uint8))
    run = quick(tmp_path / "run", **{"data.source": "few.npy"})
    page = page_of(run)
    check_page(page)
    assert "elbo" in numbers_in(page) and "elbo_stderr" not in numbers_in(page)
    assert "all 1 validation example." in page.text


def test_weights_that_are_no_numbers(copy: Run) -> None:
    state = load(copy).state_dict()
    write_tensors(copy.path / "model.safetensors", {name: torch.full_like(v, math.nan) for name, v in state.items()})
    report.publish(copy, dataset_of(copy), [])
    page = page_of(copy)
    assert "training has diverged" in page.text
    assert "posterior means are not finite" in page.text
    assert "not finite" in next(e for e in page.all("data") if e["id"] == "elbo").text
    written = json.loads((copy.path / "numbers.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert written["elbo"] is None and written["n"] == 180


# -- words ---------------------------------------------------------------------------------------------------------


def test_planned_epochs_are_those_of_training(copy: Run) -> None:
    """With `training.epochs=auto`, they follow from the number of examples."""
    automatic = replace(copy.config, training=copy.config.training.model_copy(update={"epochs": "auto"}))
    planned = job.make_job(automatic, dataset_of(copy), Processes()).epochs
    found = look(replace(copy, config=automatic), dataset_of(copy))
    assert found.planned == planned > 3
    findings = Diagnosis("", run_checks.examine(found))
    assert f"stopped after 3 of {planned} epochs" in findings["unfinished"].message


def test_early_stopping_is_no_interruption(tmp_path: Path) -> None:
    keys = {"data.validation": 0.45, "data.test": 0.45, "data.binarize": "threshold", "training.learning_rate": 0.02}
    keys |= {"training.schedule": "constant", "training.patience": 4, "network.hidden": [16]}
    run = vaelab.train("vae", data="digits", epochs=400, out=tmp_path / "run", progress=False, overrides=keys)
    best = run.best()
    assert best is not None
    text = page_of(run).text
    assert f"Early stopping: after epoch {best['epoch']} the validation loss did not fall for 4 epochs" in text
    assert f"training ended after {best['epoch'] + 4} of 400." in text
    assert "unfinished" not in text


@pytest.mark.parametrize(
    ("validation", "train", "expected"),
    [
        ([9, 5, 6, 7, 8.0], [9, 8, 7, 6, 5.0], "over-fitting"),
        ([9, 5, 6, 7, 8.0], [9, 5, 6, 7, 8.0], "unstable"),
        ([9, 8, 7, 6, 5.0], [9, 8, 7, 6, 5.0], None),
        ([9, 5, 5, 5, 5.05], [9, 8, 7, 6, 5.0], None),  # too little to speak of
        ([9, 8, 7, 5, 6.0], [9, 8, 7, 6, 5.0], None),  # too late to speak of
        ([9e3, 5e3, 5e3, 5e3, 5e3 + 4], [9e3, 8e3, 7e3, 6e3, 5e3], None),  # less than a thousandth
    ],
)
def test_over_fitting_is_told_from_other_things(
    copy: Run, validation: list[float], train: list[float], expected: str | None
) -> None:
    pairs = zip(validation, train, strict=True)
    lines = [
        {"epoch": epoch, "step": epoch, "seconds": 1.0}
        | {"train": dict.fromkeys(KEYS, t), "validation": dict.fromkeys(KEYS, v)}
        for epoch, (v, t) in enumerate(pairs, start=1)
    ]
    found = list(check_curves.over_fitting(replace(look(copy, dataset_of(copy)), lines=lines)))
    assert [finding.name for finding in found] == ([expected] if expected else [])
    if expected:
        assert "after epoch 2 of 5, and 3.00 nats higher" in found[0].message


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (-93.7249, 0.7182, "−93.72"),
        (-93.7249, 0.07182, "−93.725"),
        (-17665.3, 198.2, "−17,665"),
        (2.11312, 0.0162, "2.113"),
        (12.0, 0.0, "12.00"),
        (3.14159, None, "3.14"),
        (float("nan"), None, "not finite"),
        (1.0, float("nan"), "1.00"),
        (1797, None, "1,797"),
        (1e-9, 1e-9, "0.000000"),
    ],
)
def test_rounding_follows_the_error(value: float, error: float | None, expected: str) -> None:
    assert rounded(value, error) == expected


def test_small_words() -> None:
    assert [report.duration(s).replace("\u00a0", " ") for s in (0.04, 59.94, 59.96, 245, 7380)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 03 min",
    ]
    assert report.count(1, "epoch") == "1 epoch" and report.count(1400, "epoch") == "1,400 epochs"
    assert report.markdown("a_b <i> [x](y)\n|c|") == r"a\_b \<i\> \[x\](y) \|c\|"
    assert report.describe(DataSpec((21,), "real", None)) == "vectors of 21 numbers with real values"
    assert report.describe(DataSpec((3, 5, 4), "levels", 256)) == "color pictures of 5 × 4 pixels with 256 levels"
    assert report.describe(DataSpec((1, 5, 4), "binary", 2)) == "grey pictures of 5 × 4 pixels with values 0 or 1"
