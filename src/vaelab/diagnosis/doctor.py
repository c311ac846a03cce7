"""`doctor`: examine a run, or a foreign model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab import data as datasets
from vaelab.config import section, split_key
from vaelab.diagnosis import run_checks
from vaelab.diagnosis.case import look
from vaelab.diagnosis.findings import Diagnosis
from vaelab.errors import InputError
from vaelab.runs import Run

if TYPE_CHECKING:
    from vaelab.diagnosis.foreign.loss_terms import Loss


def doctor(
    run: "str | os.PathLike[str] | Run | None" = None,
    *,
    model: Any = None,
    data: "str | os.PathLike[str] | None" = None,
    loss: "str | Loss | None" = None,
    overrides: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Examine a run; or, in its place, a foreign model.

    Args:
        run: a run folder. Its validation examples are looked at (training examples where there are none), and the
            test examples left alone.
        model: in place of a run, an `nn.Module` whose forward returns reconstruction, mean and log-variance, in any
            order, as a tuple, named tuple, dataclass or dictionary; a class or function that makes one without
            arguments; or `"FILE.py:NAME"` of any of these. The file is executed.
        data: for a model, what it is made for: as in `vaelab.train`.
        loss: for a model, called as `loss(reconstruction, x, mean, log_variance)`; or its `"FILE.py:NAME"`.
        overrides: for a model, keys of the data by dotted path, `{"data.binarize": "threshold"}`.

    Returns:
        All findings, the gravest first.

    Raises:
        InputError: there is no such run, file or name; the model cannot be made without arguments, does not take the
            data, or returns something else.
    """
    if run is not None:
        if model is not None or loss is not None or data is not None or overrides:
            raise InputError("doctor: give a run alone, or --model with --data and --loss")
        opened = Run.open(run)
        return Diagnosis(str(opened), run_checks.examine(look(opened, opened.data())))
    if model is None:
        raise InputError("doctor: nothing to examine; give a run folder, or --model FILE.py:NAME --data SOURCE")
    if data is None:
        raise InputError("doctor: --data SOURCE is missing: what the model is made for, for example digits or mnist")
    from vaelab.diagnosis import foreign  # a run's report does without it
    from vaelab.diagnosis.foreign import model_file

    keys: dict[str, Any] = {"source": os.fspath(data)}
    for key, value in (overrides or {}).items():
        group, name = split_key(key, ["data"])
        assert group == "data"
        keys[name] = value
    dataset = datasets.load(section("data", keys))  # pyright: ignore[reportArgumentType]
    reference = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    found = model_file.find(model, "--model") if isinstance(model, str) else model
    wanted = model_file.find_loss(loss) if isinstance(loss, str) else loss
    subject = Path(reference).name if isinstance(model, str) else reference
    return Diagnosis(f"{subject} on {data}", foreign.examine(found, reference, dataset, wanted))
