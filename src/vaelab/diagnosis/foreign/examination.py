"""The examination of somebody's own VAE: an nn.Module that returns reconstruction, mean and log-variance."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from vaelab.data import Dataset
from vaelab.diagnosis.findings import Finding, ordered
from vaelab.diagnosis.foreign import (
    check_dependence,
    check_forward,
    check_kl,
    check_latents,
    check_loss,
    check_ranges,
    check_scales,
    check_weights,
    model_file,
)
from vaelab.diagnosis.foreign.loss_terms import Loss, LossTerms, take_apart
from vaelab.diagnosis.foreign.patient import Failure, Patient
from vaelab.diagnosis.foreign.reading import read
from vaelab.diagnosis.foreign.tracing import Tracer, raised_by
from vaelab.errors import InputError

EXAMPLES = 38  # of one call: even, for the loss is also asked with half of them, and seldom a number of latents
STATISTICS_EXAMPLES = 2_000

OF_FORWARD: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_forward.outputs,
    check_forward.finite,
    check_forward.changed_input,
    check_forward.noise,
    check_forward.log_variance,
    check_forward.swapped,
    check_weights.unregistered,
    check_weights.gradient,
    check_dependence.examples,
    check_dependence.bypass,
    check_latents.altered,
    check_latents.mode,
    check_ranges.latents,
    check_ranges.reconstruction,
)
OF_LOSS: tuple[Callable[[Patient, LossTerms], Iterator[Finding]], ...] = (
    check_loss.value,
    check_loss.gradient,
    check_loss.reconstruction,
    check_loss.sigmoids,
    check_kl.kl,
    check_scales.scales,
    check_scales.likelihood,
)

ILLNESSES = (
    *check_forward.ILLNESSES,
    *check_weights.ILLNESSES,
    *check_dependence.ILLNESSES,
    *check_latents.ILLNESSES,
    *check_ranges.ILLNESSES,
    *check_loss.ILLNESSES,
    *check_kl.ILLNESSES,
    *check_scales.ILLNESSES,
)
"""What is looked for in a foreign model."""


def examine(found: Any, reference: str, dataset: Dataset, loss: Loss | None) -> list[Finding]:
    """All findings on a foreign model.

    Args:
        found: an nn.Module, or a class or a function that makes one without arguments.
        reference: what it is called in messages.
        dataset: the training examples are used.
        loss: called as loss(reconstruction, x, mean, log_variance).

    Raises:
        InputError: it cannot be made, does not take the data, or returns no reconstruction, mean and log-variance.
    """
    data = dataset["train"].head(STATISTICS_EXAMPLES).fixed(0).batch().cpu()
    if len(data) < EXAMPLES:
        raise InputError(f"--data: {len(data)} training examples; at least {EXAMPLES} are needed")
    subject = model_file.fit(model_file.on_cpu(model_file.build(found, reference)), data[:EXAMPLES])
    reading = read(subject)
    seen = Tracer()
    reading.outputs = subject.run(seen)
    patient = Patient(found, subject, reading, seen, data.flatten(1), arguments=model_file.arguments(loss))
    if loss is not None:
        _call(loss, patient)
    return ordered([*_of_forward(patient), *(check_loss.missing(patient) if loss is None else _of_loss(patient))])


def _call(loss: Loss, patient: Patient) -> None:
    """Take the loss apart, or note why it fails. Where shapes differ it may want x as the reconstruction is."""
    reconstruction, mean, spread = patient.reading.pick(patient.reading.outputs)
    x = patient.subject.x
    ways: list[Tensor] = [x] if x.shape == reconstruction.shape else [x, x.reshape(reconstruction.shape)]
    for given in ways:
        try:
            patient.loss = take_apart(loss, reconstruction, given, mean, spread)
            return
        except Exception as error:  # noqa: BLE001 - somebody's code may raise anything
            patient.failure = Failure(model_file.told(error), raised_by(error))


def _of_forward(patient: Patient) -> Iterator[Finding]:
    for check in OF_FORWARD:
        yield from check(patient)


def _of_loss(patient: Patient) -> Iterator[Finding]:
    if patient.loss is None:
        assert patient.failure is not None
        if patient.is_finite:  # else that is why
            yield check_loss.failed(patient, patient.failure)
        return
    for check in OF_LOSS:
        yield from check(patient, patient.loss)
