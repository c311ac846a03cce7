"""Generation against independent answers: the model itself, formulas in numpy, and the arrays of scikit-learn."""

import csv
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

import vaelab
from vaelab import data as datasets
from vaelab import generation, pictures
from vaelab.composition import compose, settle
from vaelab.config import resolve
from vaelab.errors import InputError
from vaelab.evaluation.likelihood import examples_of
from vaelab.generation import common
from vaelab.generation.geometry import closed_walk, linear, spherical
from vaelab.model import VAE
from vaelab.runs import Run, write_tensors

D = 12
SMALL: dict[str, Any] = {"model.latent_dim": D, "network.name": "mlp", "network.hidden": [8]}
LINEAR: dict[str, Any] = {"model.latent_dim": D, "network.name": "linear"}
KINDS: dict[str, dict[str, Any]] = {
    "levels": {},
    "dynamic": {"data.binarize": "dynamic"},
    "threshold": {"data.binarize": "threshold"},
    "real": {"data.values": "real"},
    "autoencoder": {"posterior.name": "deterministic", "objective.name": "distortion"},
}


def make_run(path: Path, keys: dict[str, Any], change: Callable[[VAE], None] | None = None) -> Run:
    """A run with random weights: what generation does with a model does not depend on how good it is."""
    config = resolve("test", {}, keys)
    dataset = datasets.load(config.data)
    config = replace(settle(config, dataset.spec), data=datasets.settled(config.data, dataset))
    model = compose(config, dataset.spec)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("likelihood"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
        if change is not None:
            change(model)
    run = Run.create(path, config, dataset.spec, fingerprint=dataset.fingerprint)
    write_tensors(path / "model.safetensors", model.state_dict())
    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run for each kind of data, one of vectors, one of color pictures."""
    folder = tmp_path_factory.mktemp("generation")
    rng = np.random.default_rng(0)
    np.savez(folder / "table.npz", x=rng.normal(size=(80, 5)).astype(np.float32), y=np.arange(80) % 3)
    np.save(folder / "color.npy", rng.integers(0, 256, (60, 3, 6, 4), dtype=np.uint8))
    made = {kind: make_run(folder / kind, SMALL | keys) for kind, keys in KINDS.items()}
    made["table"] = make_run(folder / "table", SMALL | {"data.source": str(folder / "table.npz")})
    made["color"] = make_run(folder / "color", SMALL | {"data.source": str(folder / "color.npy")})
    return made


@pytest.fixture(params=[*KINDS, "table", "color"])
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def means_of(run: Run, x: Tensor) -> Tensor:
    return vaelab.load(run).encode(x).mean


@torch.no_grad()
def decoded(run: Run, z: Tensor) -> Tensor:
    """The mean of p(x|z), one z at a time."""
    model = vaelab.load(run)
    return torch.stack([model.decode(one[None]).mean[0] for one in z.flatten(0, -2)]).unflatten(0, z.shape[:-1])


# -- sample --------------------------------------------------------------------------------------------------------


def test_samples_are_decoded_from_the_latents_that_come_with_them(run: Run) -> None:
    made = generation.sample(run, 5)
    assert made.x.dtype == made.z.dtype == torch.float32
    close(made.x, decoded(run, made.z))


def test_latents_of_samples_follow_the_prior(runs: dict[str, Run]) -> None:
    z = generation.sample(runs["table"], 2_000).z.double().flatten()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)  # Var z⁴ = 105 − 9


def test_a_seed_replays_and_drawing_does_not_change_the_latents(run: Run) -> None:
    first, again, other = (generation.sample(run, 4, draw=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.z, other.z)
    assert torch.equal(first.z, generation.sample(run, 4, seed=1).z)


def test_a_path_and_a_run_are_the_same(runs: dict[str, Run]) -> None:
    run = runs["levels"]
    wanted = generation.sample(run, 3).x
    assert torch.equal(generation.sample(run.path, 3).x, wanted)
    assert torch.equal(generation.sample(str(run.path), 3).x, wanted)


def test_frequencies_of_draws_are_the_known_probabilities(tmp_path: Path) -> None:
    def know(model: VAE) -> None:
        model.decoder.layers.weight.copy_(torch.linspace(-1.5, 1.5, 64 * D).view(64, D))
        model.decoder.bias.copy_(torch.linspace(-2, 2, 64).view(1, 1, 8, 8))

    run = make_run(tmp_path / "known", LINEAR | {"data.binarize": "dynamic"}, know)
    made = generation.sample(run, 4_000, draw=True)
    weight, bias = np.linspace(-1.5, 1.5, 64 * D).reshape(64, D), np.linspace(-2, 2, 64)
    p = 1 / (1 + np.exp(-(made.z.double().numpy() @ weight.T + bias)))
    x = made.x.double().numpy().reshape(-1, 64)
    assert set(np.unique(x)) == {0, 1}
    # Given z, the sum over examples has mean Σp and variance Σp(1 − p), dimension by dimension.
    deviation = (x - p).sum(0) / np.sqrt((p * (1 - p)).sum(0))
    assert np.abs(deviation).max() < 4.5
    assert 0.5 < (deviation**2).mean() < 1.6  # 64 squares of standard normals: 1 ± 0.18
    close(generation.sample(run, 4_000).x.flatten(1).double(), torch.from_numpy(p))


def test_parts_make_the_same_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generation.sample(run, 7).x
    monkeypatch.setattr(common, "OUTPUT_NUMBERS", 1)
    close(generation.sample(run, 7).x, whole)


# -- reconstruct ---------------------------------------------------------------------------------------------------


def test_reconstructions_are_decoded_from_the_posterior_mean_of_examples_spread_over_the_split(run: Run) -> None:
    made = generation.reconstruct(run, 4)
    examples = examples_of(run, "test")
    n = len(examples)
    assert made.index.tolist() == [0, round((n - 1) / 3), round(2 * (n - 1) / 3), n - 1]
    assert torch.equal(made.original, examples.batch(made.index))
    close(made.z, means_of(run, made.original))
    close(made.x, decoded(run, made.z))


def test_one_reconstruction_and_more_than_there_are(runs: dict[str, Run]) -> None:
    assert generation.reconstruct(runs["table"], 1).index.tolist() == [0]
    assert generation.reconstruct(runs["table"], 99).index.tolist() == list(range(8))


def test_sampled_latents_follow_the_posterior(runs: dict[str, Run]) -> None:
    made = generation.reconstruct(runs["levels"], 180, latent="sample")
    with torch.no_grad():
        q: Any = vaelab.load(runs["levels"]).encode(made.original)
    noise = ((made.z - q.loc) / q.scale).double()
    assert abs(noise.mean()) < 4 / math.sqrt(noise.numel())
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / noise.numel())
    close(made.x, decoded(runs["levels"], made.z))
    again = generation.reconstruct(runs["levels"], 180, latent="sample")
    other = generation.reconstruct(runs["levels"], 180, latent="sample", seed=1)
    assert torch.equal(made.z, again.z)
    assert not torch.equal(made.z, other.z)
    assert torch.equal(made.index, other.index)


def test_another_split_is_another_split(runs: dict[str, Run]) -> None:
    made = generation.reconstruct(runs["levels"], 9_999, split="validation")
    assert torch.equal(made.original, examples_of(runs["levels"], "validation").batch())


# -- paths ---------------------------------------------------------------------------------------------------------


vectors = st.lists(st.floats(-5, 5), min_size=3, max_size=3).map(torch.tensor).filter(lambda v: v.norm() > 0.01)


@given(vectors, vectors, st.floats(0, 1))
def test_a_spherical_path_stays_in_the_plane_and_turns_evenly(a: Tensor, b: Tensor, t: float) -> None:
    a, b = a.double(), b.double()
    cosine = float(a @ b / (a.norm() * b.norm()))
    if abs(cosine) > 0.999:
        return
    z = spherical(a, b, torch.tensor([t]))
    assert z.norm() == pytest.approx(float((1 - t) * a.norm() + t * b.norm()), rel=1e-6)
    normal = torch.linalg.cross(a, b)
    assert abs(z @ normal) / (z.norm() * normal.norm()) < 1e-6
    turned = math.acos(max(-1.0, min(1.0, float(z @ a / (z.norm() * a.norm())))))
    assert turned == pytest.approx(t * math.acos(cosine), abs=1e-5)
    assert z @ b >= -1e-9 or t < 1  # the short way round
    torch.testing.assert_close(spherical(a, b, torch.zeros(1)), a, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(spherical(a, b, torch.ones(1)), b, atol=1e-6, rtol=1e-6)


def test_a_spherical_path_between_equal_norms_keeps_the_norm() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), dim=-1) * 7
    t = torch.linspace(0, 1, 9)[:, None]
    torch.testing.assert_close(spherical(a, b, t).norm(dim=-1), torch.full((9,), 7.0))
    assert linear(a, b, t).norm(dim=-1).min() < 6


@pytest.mark.parametrize(
    ("a", "b", "middle"),
    [
        ([0.0, 0.0], [2.0, 0.0], [1.0, 0.0]),
        ([1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]),
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [3.0, 3.0], [2.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        ([2.0], [-4.0], [-1.0]),
    ],
)
def test_where_there_is_no_one_circle_the_path_is_straight(a: list[float], b: list[float], middle: list[float]) -> None:
    torch.testing.assert_close(spherical(torch.tensor(a), torch.tensor(b), torch.tensor([0.5])), torch.tensor(middle))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_closed_walk_visits_all_stops_without_a_jump(number: int) -> None:
    stops = torch.randn(number, 30, generator=torch.Generator().manual_seed(0))
    walk = closed_walk(stops, 48)
    assert walk.shape == (48, 30)
    torch.testing.assert_close(walk[:: 48 // number], stops)
    steps = (walk - walk.roll(-1, 0)).norm(dim=-1)
    assert steps.max() < 1.5 * math.pi * stops.norm(dim=-1).max() * number / 48
    norms = walk.norm(dim=-1)
    assert norms.min() >= stops.norm(dim=-1).min() - 1e-4
    assert norms.max() <= stops.norm(dim=-1).max() + 1e-4


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_a_path_leads_from_one_reconstruction_to_the_other(run: Run, path: str) -> None:
    made = generation.interpolate(run, pairs=2, steps=5, path=path)
    examples = examples_of(run, "test")
    assert made.x.shape == (2, 5, *run.spec.shape)
    assert len(set(made.index.flatten().tolist())) == 4
    assert torch.equal(made.original.flatten(0, 1), examples.batch(made.index.flatten()))
    means = means_of(run, made.original.flatten(0, 1)).unflatten(0, (2, 2))
    close(made.z[:, [0, -1]], means)
    close(made.x[:, [0, -1]], decoded(run, means))
    close(made.x, decoded(run, made.z))
    if path == "linear":
        close(made.z[:, 1], 0.75 * means[:, 0] + 0.25 * means[:, 1])
    else:
        norms = means.norm(dim=-1)
        close(made.z[:, 2].norm(dim=-1), norms.mean(1))


def test_the_seed_chooses_the_examples(runs: dict[str, Run]) -> None:
    first, again, other = (generation.interpolate(runs["levels"], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.index, other.index)
    drawn = generation.interpolate(runs["levels"], seed=3, draw=True)
    assert torch.equal(first.index, drawn.index)
    assert torch.equal(first.z, drawn.z)


# -- traverse ------------------------------------------------------------------------------------------------------


def test_a_traversal_moves_one_latent_and_holds_the_others(run: Run) -> None:
    made = generation.traverse(run, latents=[3, 0], span=2.0, steps=5)
    assert made.latents.tolist() == [3, 0]
    assert made.values.tolist() == [-2, -1, 0, 1, 2]
    examples = examples_of(run, "test")
    assert torch.equal(made.original, examples.batch()[made.index])
    means = means_of(run, examples.batch())
    for row, latent in enumerate((3, 0)):
        held = [d for d in range(D) if d != latent]
        close(made.z[row][:, held], means[made.index, held].expand(5, -1))
        if vaelab.load(run).has_density:
            assert torch.equal(made.z[row, :, latent], made.values)
        else:
            values = means[:, latent].double().numpy()
            wanted = values.mean() + values.std() * made.values.double().numpy()
            np.testing.assert_allclose(made.z[row, :, latent].numpy(), wanted, rtol=1e-4, atol=1e-5)
    close(made.x, decoded(run, made.z))


@torch.no_grad()
def test_the_most_active_latents_come_first(runs: dict[str, Run]) -> None:
    run = runs["levels"]
    q: Any = vaelab.load(run).encode(examples_of(run, "test").batch())
    loc, scale = q.loc.double().numpy(), q.scale.double().numpy()
    kl = (0.5 * (loc**2 + scale**2 - 1) - np.log(scale)).mean(0)
    made = generation.traverse(run, steps=2)
    assert made.latents.tolist() == np.argsort(-kl)[:10].tolist()
    assert made.kl is not None
    np.testing.assert_allclose(made.kl.numpy(), kl[made.latents], rtol=1e-5)


def test_an_autoencoder_has_no_kl_and_is_ordered_by_variance(runs: dict[str, Run]) -> None:
    made = generation.traverse(runs["autoencoder"], steps=2)
    means = means_of(runs["autoencoder"], examples_of(runs["autoencoder"], "test").batch())
    assert made.kl is None
    assert made.latents.tolist() == means.var(0).argsort(descending=True)[:10].tolist()


# -- encode --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_all_examples_are_encoded_in_the_order_of_the_source(runs: dict[str, Run]) -> None:
    values, labels = load_digits(return_X_y=True)
    level = torch.tensor(values, dtype=torch.float32).view(-1, 1, 8, 8)
    for kind, x in {"levels": level / 16, "real": level / 16, "threshold": (level > 8).float()}.items():
        q: Any = vaelab.load(runs[kind]).encode(x)
        for data in (None, "digits"):
            made = generation.encode(runs[kind], data=data)
            close(made.mean, q.loc)
            assert made.scale is not None
            close(made.scale, q.scale)
            assert made.labels is not None
            assert made.labels.tolist() == labels.tolist()


@torch.no_grad()
def test_a_split_is_encoded_in_its_own_order(runs: dict[str, Run]) -> None:
    examples = examples_of(runs["dynamic"], "validation")
    made = generation.encode(runs["dynamic"], split="validation")
    close(made.mean, vaelab.load(runs["dynamic"]).encode(examples.batch()).mean)
    assert torch.equal(made.labels, examples.labels)  # type: ignore[arg-type]


@torch.no_grad()
def test_dynamic_binarization_is_drawn_once_and_replayed(runs: dict[str, Run]) -> None:
    first, again = (generation.encode(runs["dynamic"]).mean for _ in range(2))
    assert torch.equal(first, again)
    values = torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    # The encoder saw binary pictures, not probabilities.
    assert (first - vaelab.load(runs["dynamic"]).encode(values).mean).abs().mean() > 0.05


def write_digits(path: Path, rows: slice | list[int]) -> None:
    bunch = load_digits()
    np.savez(path, x=bunch.images[rows].astype(np.uint8), y=bunch.target[rows])


def test_a_file_of_integers_counts_the_levels_of_the_run(runs: dict[str, Run], tmp_path: Path) -> None:
    rows = [1700, 3, 5, 40]
    write_digits(tmp_path / "some.npz", rows)
    # As bytes these are 256 levels; only the run knows that they are 17.
    made = generation.encode(runs["levels"], data=tmp_path / "some.npz")
    whole = generation.encode(runs["levels"])
    close(made.mean, whole.mean[rows])
    assert made.labels is not None
    assert whole.labels is not None
    assert torch.equal(made.labels, whole.labels[rows])


def test_levels_that_binarization_hid_are_taken_from_the_record(runs: dict[str, Run], tmp_path: Path) -> None:
    rows = list(range(20))
    write_digits(tmp_path / "some.npz", rows)
    run = make_run(tmp_path / "run", SMALL | {"data.binarize": "threshold"})
    made = generation.encode(run, data="some.npz")
    close(made.mean, generation.encode(run).mean[rows])
    floats = load_digits().images[rows].astype(np.float32) / 16
    np.save(tmp_path / "floats.npy", floats)  # real values are probabilities, not levels
    close(generation.encode(run, data="floats.npy").mean, made.mean)


def test_an_autoencoder_has_no_scale(runs: dict[str, Run]) -> None:
    made = generation.encode(runs["autoencoder"], out="latents.npz")
    assert made.scale is None
    with np.load("latents.npz") as arrays:
        assert set(arrays) == {"mean", "labels"}


@pytest.mark.parametrize("kind", ["levels", "autoencoder", "color"])
def test_files_hold_what_is_returned(runs: dict[str, Run], kind: str) -> None:
    made = generation.encode(runs[kind], out="latents.npz")
    generation.encode(runs[kind], out="latents.csv")
    fields = {name: value.numpy() for name, value in vars(made).items() if value is not None}
    with np.load("latents.npz") as arrays:
        assert set(arrays) == set(fields)
        assert all(np.array_equal(arrays[name], value) for name, value in fields.items())
    with Path("latents.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(made.mean)
    names = [f"{name}_{d}" for name in fields if name != "labels" for d in range(D)] + ["label"] * ("labels" in fields)
    assert list(lines[0]) == names
    for name, value in fields.items():
        columns = ["label"] if name == "labels" else [f"{name}_{d}" for d in range(D)]
        read = np.array([[line[column] for column in columns] for line in lines]).astype(value.dtype)
        assert np.array_equal(read.reshape(value.shape), value)  # to the last bit


def write_pictures(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:03}.png")


@torch.no_grad()
def test_grey_pictures_serve_a_run_of_color_pictures(runs: dict[str, Run], tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    write_pictures(tmp_path / "grey", grey)
    x = torch.from_numpy(grey).float().div(255)[:, None].expand(-1, 3, -1, -1)
    close(generation.encode(runs["color"], data="grey").mean, vaelab.load(runs["color"]).encode(x).mean)


@torch.no_grad()
def test_the_size_of_a_run_holds_for_other_folders_and_not_for_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    write_pictures(tmp_path / "own", rng.integers(0, 256, (20, 9, 7), dtype=np.uint8))
    # Blocks of 3 x 2 equal pixels: brought to 4 x 4 they can only become what they were.
    other = np.kron(np.full((3, 4, 4), 77, np.uint8), np.ones((1, 3, 3), np.uint8))
    write_pictures(tmp_path / "other", other)
    run = make_run(tmp_path / "run", SMALL | {"data.source": str(tmp_path / "own"), "data.size": 4})
    made = generation.encode(run, data="other")
    np.save(tmp_path / "other.npy", np.full((3, 4, 4), 77, np.uint8))
    close(generation.encode(run, data="other.npy").mean, made.mean)
    close(made.mean, vaelab.load(run).encode(torch.full((3, 1, 4, 4), 77 / 255)).mean)


# -- files of pictures and arrays ------------------------------------------------------------------------------------


def write_all(run: Run, out: str, draw: bool = False) -> Iterator[tuple[Any, Path]]:
    """Each command in turn, and its file."""
    path = Path(out)
    yield generation.sample(run, 8, out=out, draw=draw), path
    yield generation.reconstruct(run, 5, out=out, draw=draw), path
    yield generation.interpolate(run, pairs=2, steps=4, out=out, draw=draw), path
    yield generation.traverse(run, latents=[1, 0], steps=4, out=out, draw=draw), path


def test_arrays_of_means_and_draws_are_on_the_scale_of_the_data(run: Run) -> None:
    levels = run.spec.levels
    factor = 1 if levels is None else levels - 1
    for draw in (False, True):
        for made, path in write_all(run, "arrays.npz", draw):
            fields = {name: value.numpy() for name, value in vars(made).items() if value is not None}
            with np.load(path) as file:
                arrays = dict(file)
            assert set(arrays) == set(fields)
            for name in set(fields) - {"x", "original"}:
                assert np.array_equal(arrays[name], fields[name])
            for name in {"x", "original"} & set(fields):
                np.testing.assert_allclose(arrays[name], fields[name] * factor, rtol=1e-6, atol=1e-6 * factor)
                whole = levels is not None and (draw or name == "original")
                assert arrays[name].dtype == (np.uint8 if whole else np.float32)
                if whole:
                    assert arrays[name].max() <= factor
                    assert len(np.unique(arrays[name])) > 1


@pytest.mark.parametrize("levels", [50, 300])
def test_integers_are_rounded_not_cut(levels: int, tmp_path: Path) -> None:
    values = np.arange(levels).repeat(4).reshape(-1, 4)
    np.save("levels.npy", values)
    run = make_run(tmp_path / "run", SMALL | {"data.source": "levels.npy"})
    index = generation.reconstruct(run, 999, split="train", out="arrays.npz").index
    original = values[datasets.load(run.config.data)["train"].raw[index, 0].long()]
    with np.load("arrays.npz") as arrays:
        assert np.array_equal(arrays["original"], original)


def test_draws_saved_as_data_can_be_read_as_data(runs: dict[str, Run]) -> None:
    made = generation.sample(runs["levels"], 20, draw=True, out="new.npz")
    close(generation.encode(runs["levels"], data="new.npz").mean, means_of(runs["levels"], made.x))


def test_a_sheet_shows_what_is_returned(runs: dict[str, Run]) -> None:
    for kind in ("levels", "color"):
        made = generation.sample(runs[kind], 8, out="sheet.png")
        bare = np.asarray(pictures.grid(made.x))
        with Image.open("sheet.png") as sheet:
            assert np.array_equal(np.asarray(sheet)[: len(bare), : bare.shape[1]], bare)


def captions(run: Run, out: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """What stands below the sheets of the four commands."""
    said: list[str] = []
    monkeypatch.setattr(pictures, "_with_caption", lambda sheet, caption: said.append(caption) or sheet)
    for _ in write_all(run, out, **options):
        pass
    return said


def test_captions_say_what_is_shown(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    example = int(generation.traverse(runs["levels"], steps=2).index)
    assert captions(runs["levels"], "a.png", monkeypatch) == [
        "8 samples: mean of p(x|z), z ~ N(0, I), seed 0",
        "5 test examples; reconstruction: mean of p(x|z) at the mean of q(z|x)",
        "2 linear paths between the means of q(z|x) of two test examples: mean of p(x|z), seed 0",
        "2 latents, one at a time from −3 to +3 standard deviations of the prior, the others at the mean of q(z|x) of "
        f"test example {example}: mean of p(x|z)",
    ]
    for caption in captions(runs["levels"], "a.png", monkeypatch, draw=True):
        assert "draw from p(x|z)" in caption
        assert "seed 0" in caption


def test_a_caption_says_that_values_were_clamped(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    made = generation.sample(runs["real"], 8)
    share = ((made.x < -0.5 / 255) | (made.x > 1 + 0.5 / 255)).double().mean()
    assert share > 0.1
    note = f"{100 * share:.1f} % of the values lie outside [0, 1] and are clamped."
    assert captions(runs["real"], "a.png", monkeypatch)[0].endswith(f"seed 0. {note}")
    walk = set(captions(runs["real"], "a.gif", monkeypatch)[:48])
    assert len(walk) == 1  # one caption for all frames, so that it does not flicker
    assert "lie outside" in walk.pop()


def test_an_autoencoder_is_not_said_to_match_the_prior(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    said = captions(runs["autoencoder"], "a.png", monkeypatch)
    assert "an autoencoder is not trained to match it" in said[0]
    assert "standard deviations of its values over the test examples" in said[3]


def film(path: str) -> list[np.ndarray]:
    with Image.open(path) as file:
        frames: list[np.ndarray] = []
        for index in range(file.n_frames):
            file.seek(index)
            frames.append(np.asarray(file.convert("L")))
        return frames


def shows(frame: np.ndarray, x: Tensor, columns: int | None = None) -> bool:
    """Whether a frame begins with the grid of these pictures."""
    bare = np.asarray(pictures.grid(x, columns))
    return np.array_equal(frame[: bare.shape[0], : bare.shape[1]], bare)


@pytest.mark.parametrize("draw", [False, True])
def test_an_animation_of_samples_passes_through_every_sample(runs: dict[str, Run], draw: bool) -> None:
    made = generation.sample(runs["levels"], 8, out="walk.gif", draw=draw)
    frames = film("walk.gif")
    assert len(frames) == 48
    if not draw:
        assert all(shows(frames[12 * stop], made.x[[stop, 4 + stop]]) for stop in range(4))
        assert not shows(frames[6], made.x[[0, 4]])


def test_an_animation_of_reconstructions_alternates(runs: dict[str, Run]) -> None:
    made = generation.reconstruct(runs["levels"], 4, out="both.gif")
    original, reconstruction = film("both.gif")
    assert shows(original, made.original)
    assert shows(reconstruction, made.x)


def test_a_draw_in_an_animation_changes_with_its_latents_alone(runs: dict[str, Run]) -> None:
    generation.sample(runs["levels"], 1, draw=True, out="still.gif")  # a walk that stays at its one stop
    assert len(film("still.gif")) == 1


def test_animations_of_paths_go_there_and_back(runs: dict[str, Run]) -> None:
    between = generation.interpolate(runs["levels"], pairs=2, steps=5, out="path.gif")
    ends = between.original
    along = generation.traverse(runs["levels"], latents=[0, 1, 2], steps=5, out="latents.gif")
    wanted = {
        "path.gif": [torch.stack((ends[:, 0], between.x[:, step], ends[:, 1]), 1).flatten(0, 1) for step in range(5)],
        "latents.gif": [along.x[:, step] for step in range(5)],
    }
    for path, pictures_of_step in wanted.items():
        frames = film(path)
        assert len(frames) == 8
        for step, x in enumerate(pictures_of_step):
            bare = np.asarray(pictures.grid(x, 3))[pictures.MARGIN :]
            below_labels = frames[step][pictures.MARGIN + pictures.LINE :]
            assert np.array_equal(
                below_labels[: len(bare) - pictures.MARGIN, : bare.shape[1]], bare[: -pictures.MARGIN]
            )
        assert all(np.array_equal(frames[i], frames[-i]) for i in range(1, 4))


@pytest.mark.parametrize("ending", ["png", "gif", "npz"])
def test_a_file_is_replayed_to_the_byte(runs: dict[str, Run], ending: str) -> None:
    for name in ("first", "again"):
        for _, path in write_all(runs["color"], f"a.{ending}", draw=True):
            path.rename(f"{name}-{len(list(Path().glob(f'{name}*')))}.{ending}")
    firsts = sorted(Path().glob("first*"))
    assert len(firsts) == 4
    for first in firsts:
        assert first.read_bytes() == Path(first.name.replace("first", "again")).read_bytes()


def test_vectors_are_drawn_as_heat_maps(runs: dict[str, Run]) -> None:
    for _, path in write_all(runs["table"], "heat.png"):
        with Image.open(path) as sheet:
            assert sheet.width == 760
        path.unlink()


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("sample", "levels", {"n": 0}, ["n=0", "at least 1"]),
    ("sample", "levels", {"out": "a.jpeg"}, ["a.jpeg", ".png, .gif or .npz"]),
    ("sample", "levels", {"out": "no/a.png"}, ["no/a.png", "no folder no"]),
    ("sample", "levels", {"out": "."}, [".:", "is a folder"]),
    ("sample", "table", {"out": "a.gif"}, ["a.gif", "only pictures are animated", "vectors of 5", ".npz"]),
    ("sample", "levels", {"n": 40_000, "out": "a.png"}, ["40000 pictures", ".npz"]),
    ("reconstruct", "levels", {"n": -1}, ["n=-1", "at least 1"]),
    ("reconstruct", "levels", {"latent": "mode"}, ["latent=mode", "mean or sample"]),
    ("reconstruct", "levels", {"split": "tset"}, ["tset"]),
    ("interpolate", "levels", {"steps": 1}, ["steps=1", "at least 2"]),
    ("interpolate", "levels", {"pairs": 0}, ["pairs=0", "at least 1"]),
    ("interpolate", "table", {"pairs": 5}, ["pairs=5", "at most 4", "test has 8"]),
    ("interpolate", "levels", {"path": "curved"}, ["path=curved", "linear or spherical"]),
    ("traverse", "levels", {"latents": [2, 12]}, ["latents=12", "12 latents count from 0 to 11"]),
    ("traverse", "levels", {"latents": [-1]}, ["latents=-1", "from 0 to 11"]),
    ("traverse", "levels", {"latents": []}, ["latents=", "from 0 to 11"]),
    ("traverse", "levels", {"span": 0.0}, ["span=0.0", "above 0"]),
    ("traverse", "levels", {"span": math.nan}, ["span=nan", "above 0"]),
    ("traverse", "levels", {"steps": 1}, ["steps=1", "at least 2"]),
    ("encode", "levels", {"out": "a.png"}, ["a.png", ".npz or .csv"]),
    ("encode", "levels", {"data": "digits", "split": "test"}, ["split=test", "leave out"]),
    ("encode", "levels", {"data": "digit"}, ["digit", "digits"]),
    ("encode", "levels", {"data": ""}, ["data.source"]),
    ("encode", "levels", {"data": "wide.npy"}, ["wide.npy", "1×8×9 pictures, 17 levels", "1×8×8 pictures, 17 levels"]),
    ("encode", "levels", {"data": "float.npy"}, ["float.npy", "real values", "17 levels"]),
    ("encode", "levels", {"data": "bytes.npy"}, ["bytes.npy", "256 levels", "17 levels"]),
    ("encode", "threshold", {"data": "signed.npy"}, ["signed.npy", "-1"]),
    ("encode", "table", {"data": "wide.npy"}, ["wide.npy", "1×8×9 pictures", "vectors of 5 dimensions, real values"]),
    ("encode", "levels", {"data": "color.npy"}, ["color.npy", "3×8×8", "1×8×8"]),
]


@pytest.mark.parametrize(("command", "kind", "arguments", "words"), REFUSED)
def test_bad_input_gets_one_line_and_leaves_nothing(
    runs: dict[str, Run], command: str, kind: str, arguments: dict[str, Any], words: list[str]
) -> None:
    np.save("wide.npy", np.zeros((3, 8, 9), np.uint8) + 3)
    np.save("float.npy", np.zeros((3, 8, 8), np.float32) + 0.5)
    np.save("signed.npy", np.zeros((3, 8, 8), np.float32) - 1)
    np.save("bytes.npy", np.zeros((3, 8, 8), np.uint8) + 255)
    np.save("color.npy", np.zeros((3, 3, 8, 8), np.uint8) + 3)
    before = set(Path().iterdir())
    with pytest.raises(InputError) as caught:
        getattr(generation, command)(runs[kind], **({"out": "a.npz"} | arguments))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert set(Path().iterdir()) == before


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        generation.sample(tmp_path / "none")


def test_changed_data_are_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    config = tomllib.loads((runs["levels"].path / "config.toml").read_text())
    config["about"]["fingerprint"] = "0"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(tomli_w.dumps(config))
    (tmp_path / "run" / "model.safetensors").write_bytes((runs["levels"].path / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="the data have changed"):
        generation.reconstruct(tmp_path / "run")
    generation.sample(tmp_path / "run")  # needs no data


@pytest.mark.parametrize("binarize", ["static", "dynamic", "threshold"])
def test_held_out_pictures_are_encoded_as_they_are_evaluated(tmp_path: Path, binarize: str) -> None:
    """A picture's binary draw belongs to the picture: it does not change with the division."""
    run = make_run(tmp_path / "run", SMALL | {"data.binarize": binarize})
    held_out = generation.encode(run, split="test")
    every = generation.encode(run)
    distances = torch.cdist(held_out.mean, every.mean, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    assert distances.max() < 1e-4
