"""One source of keys: what is accepted, what is refused, and how the message reads."""

from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from vaelab import config, recipes
from vaelab.config import parse_override, register, resolve, section
from vaelab.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=10", 10),
        ("k=1e-3", 1e-3),
        ("k=true", True),
        ("k=dynamic", "dynamic"),
        ("k=400,400", [400, 400]),
        ("k=[400, 400]", [400, 400]),
        ('k="quoted"', "quoted"),
        ('k="quoted, with a comma"', "quoted, with a comma"),
        ("k=", ""),
        ("k=2024-01-01", "2024-01-01"),
        ("k=a=b", "a=b"),
        ("k=path/with,comma", "path/with,comma"),
        ("k=inf", float("inf")),
    ],
)
def test_an_override_is_read_as_toml_or_as_text(text: str, value: Any) -> None:
    assert parse_override(text) == ("k", value)


def test_a_source_is_text_whatever_it_looks_like() -> None:
    assert [parse_override(f"data.source={text}") for text in ("123", "true", "1,2")] == [
        ("data.source", text) for text in ("123", "true", "1,2")
    ]


def test_several_trackers_may_stand_between_commas() -> None:
    config = resolve("test", {}, dict([parse_override("training.log_with=tensorboard,wandb")]))
    assert config.training.log_with == ("tensorboard", "wandb")


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"mnist: not KEY=VALUE"):
        parse_override("mnist")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.latent_dim", 0, "model.latent_dim=0: must be greater than 0"),
        ("model.latent_dim", "ten", "model.latent_dim=ten: must be a valid integer"),
        ("model.latent_dim", 2.5, "model.latent_dim=2.5: must be a valid integer"),
        ("model.latentdim", 3, "unknown key model.latentdim; did you mean model.latent_dim?"),
        ("modle.latent_dim", 3, "did you mean model?"),
        ("latent_dim", 3, "keys look like model.latent_dim=10"),
        ("objective.name", "elb", "objective.name=elb: unknown; did you mean elbo?"),
        ("objective.beta", -1, "objective.beta=-1: must be greater than or equal to 0"),
        ("objective.beta", float("nan"), "objective.beta=nan: must be"),
        ("network.name", "transformer", "there are: linear, mlp, conv, resnet"),
        ("network.activation", "sine", "network.activation=sine: must be 'relu'"),
        ("network.hidden", [0], "network.hidden=[0]: must be greater than 0"),
        ("data.binarize", "yes", "data.binarize=yes: must be 'none', 'threshold', 'dynamic' or 'static'"),
        ("data.test", 1.0, "data.test=1.0: must be less than 1"),
        ("training.epochs", 0, "training.epochs=0: must be 'auto' or greater than 0"),
        ("training.learning_rate", 0, "training.learning_rate=0: must be greater than 0"),
        (
            "training.precision",
            "float8",
            "training.precision=float8: must be 'auto', 'float32', 'bfloat16' or 'float16'",
        ),
        ("likelihood.scale", 0.1, "choose likelihood.name first"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(key: str, value: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve("vae", recipes.load("vae").tables, {key: value})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choosing_another_part_drops_the_keys_of_the_old_one() -> None:
    tables = {"network": {"name": "mlp", "hidden": [7]}, "objective": {"name": "elbo", "beta": 4.0}}
    kept = resolve("r", tables, {"network.name": "mlp"})
    assert kept.network.model_dump()["hidden"] == (7,)
    changed = resolve("r", tables, {"network.name": "conv", "network.hidden": 9, "objective.name": "iwae"})
    assert changed.network.model_dump() == {"name": "conv", "channels": (32, 64), "hidden": 9, "activation": "gelu"}
    assert changed.objective.model_dump() == {"name": "iwae", "num_samples": 5, "gradient": "plain", "warmup": 0}


@given(
    latent=st.integers(1, 100),
    beta=st.floats(0, 10, allow_nan=False),
    hidden=st.lists(st.integers(1, 600), min_size=0, max_size=4),
    binarize=st.sampled_from(["none", "threshold", "dynamic", "static"]),
    clip=st.sampled_from([0.5, float("inf")]),
)
def test_a_configuration_survives_toml(latent: int, beta: float, hidden: list[int], binarize: str, clip: float) -> None:
    import tomllib

    keys = {
        "model.latent_dim": latent,
        "objective.beta": beta,
        "network.hidden": hidden,
        "data.binarize": binarize,
        "training.gradient_clip": clip,
    }
    first = resolve("r", {}, keys)
    tables = tomllib.loads(tomli_w.dumps(first.to_dict()))
    assert resolve(tables.pop("recipe"), tables) == first


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_parses_and_says_where_it_comes_from(name: str) -> None:
    recipe = recipes.load(name)
    resolve(name, recipe.tables)
    assert recipe.title and recipe.paper and recipe.command.startswith(f"vaelab train {name}")


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown recipe linear_vae; did you mean linear-vae\?"):
        recipes.load("linear_vae")


def test_a_recipe_of_ones_own(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[objective]\nbeta = 3.0\n")
    config_ = resolve(str(path), recipes.load(str(path)).tables)
    assert config_.objective.model_dump()["beta"] == 3.0
    path.write_text("[objective\n")
    with pytest.raises(InputError, match=r"mine\.toml: not TOML"):
        recipes.load(str(path))
    path.write_text("[objektive]\nbeta = 3.0\n")
    with pytest.raises(InputError, match=r"unknown table \[objektive\].*did you mean objective\?"):
        resolve(str(path), recipes.load(str(path)).tables)
    with pytest.raises(InputError, match=r"absent\.toml: no such recipe file"):
        recipes.load(str(tmp_path / "absent.toml"))


def test_a_part_is_its_constructors_keyword_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config._registry, "prior", dict(config._registry["prior"]))  # pyright: ignore[reportPrivateUsage]

    @register("prior", "wide")
    class Wide:  # pyright: ignore[reportUnusedClass]
        def __init__(self, latent_dim: int, *, width: config.PositiveFloat = 2.0) -> None:
            self.built = latent_dim, width

    made = config.build("prior", section("prior", {"name": "wide", "width": 3}), 5)
    assert made.built == (5, 3.0)
    with pytest.raises(InputError, match=r"prior\.width=-1.0: must be greater than 0"):
        section("prior", {"name": "wide", "width": -1.0})
