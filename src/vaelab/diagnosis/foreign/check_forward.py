"""Checks of what forward does: outputs, noise, and the use of the log-variance."""

import re
from collections.abc import Iterator
from itertools import dropwhile

from vaelab.diagnosis.findings import Finding, Illness
from vaelab.diagnosis.foreign.paths import after, again, before, last_step, made_by, makes, meeting, takes
from vaelab.diagnosis.foreign.patient import Patient
from vaelab.diagnosis.foreign.reading import READINGS, meant, moved, words
from vaelab.diagnosis.foreign.source_lines import change, leave, line_of, text_of, told_at
from vaelab.diagnosis.foreign.tracing import Call, location_and_width

MOMENT = 0.1  # mean and standard deviation of the noise are exact, up to a fit whose spread is a hundredth
EXPLICIT = "z = mean + exp(0.5 · log-variance) · noise"
FORMULA = {
    "log-variance": "torch.exp(0.5 * s)",
    "log-standard-deviation": "torch.exp(s)",
    "standard-deviation": "s",
    "variance": "torch.sqrt(s)",
    "softplus": "F.softplus(s)",
    "log-precision": "torch.exp(-0.5 * s)",
    "doubled log-variance": "torch.exp(0.25 * s)",
}
"""σ from s, in code, by what s is read as."""

ILLNESSES = (
    Illness("outputs", "which output is which", "always told, as info: found by shape, and by replacing the noise"),
    Illness("not-finite", "outputs that are no finite numbers", "error: one value is enough"),
    Illness("changed-input", "a forward that writes into x", "error: x is not what it was before the call"),
    Illness(
        "no-noise",
        "a reconstruction that does not depend on the noise",
        "error: ε = 0 and ε = 1 give the same, up to 1e-5 of the largest output",
    ),
    Illness(
        "noise-unseen",
        "noise that does not come from torch",
        "info: the reconstruction varies, and torch drew nothing that fits the latents",
    ),
    Illness("uniform-noise", "`rand` in place of `randn`", "error: the draw that reaches z is uniform"),
    Illness(
        "noise-scale",
        "noise that is shifted or stretched",
        f"error: the mean of ε is off 0, or its standard deviation off 1, by more than {MOMENT}; both are found to"
        " 0.01; or σ multiplies the mean in place of ε",
    ),
    Illness(
        "repeated-noise",
        "the same noise at every call",
        "error: a second call of the same model, after other random numbers, draws the same",
    ),
    Illness(
        "shared-noise",
        "one draw for several examples or latents",
        "error: fewer numbers are drawn than there are latents in the batch",
    ),
    Illness(
        "log-variance-scale",
        "log-variance read as something else",
        "error: σ = f(s) with another f than exp(s/2), while the loss takes s for a log-variance; f is accepted "
        "where it explains gradients to 1 %",
    ),
    Illness(
        "swapped-outputs",
        "mean and log-variance exchanged",
        "error: the output of one's name does the work of the other; or the KL takes one for the other",
    ),
    Illness("same-output", "one layer for mean and log-variance", "error: the two are equal, up to 1e-5"),
)


def outputs(p: Patient) -> Iterator[Finding]:
    """Which output is which."""
    reading = p.reading.noise.reading or "log-variance"
    spread = "input of a softplus" if reading == "softplus" else words(reading)
    z = "".join(f" {_capital(p.reading.outputs[n].place)}: z itself." for n in p.reading.latent)
    yield Finding(
        "outputs",
        "info",
        f"{_capital(p.reconstruction.place)}: the reconstruction. {_capital(p.mean.place)}: the mean. "
        f"{_capital(p.spread.place)}: the {spread}.{z} (Told apart {p.reading.how}.)",
        {"reconstruction": p.reconstruction.place, "mean": p.mean.place, "log_variance": p.spread.place,
         "read_as": p.reading.noise.reading, "latents": p.latents, "pixels": p.pixels,
         "examples_as": "vectors" if p.subject.flat else "given"},
        remedy="A loss is called as loss(reconstruction, x, mean, log_variance), with these.",
    )  # fmt: skip


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def finite(p: Patient) -> Iterator[Finding]:
    """Are all outputs numbers?"""
    for name, tensor in zip(("reconstruction", "mean", "log-variance"), p.reading.pick(p.reading.outputs), strict=True):
        share = float((~tensor.isfinite()).float().mean())
        if share:
            yield Finding(
                "not-finite",
                "error",
                f"{share:.0%} of the values of the {name} are infinite or not a number (nan), before any training.",
                {"output": name, "share": share},
                "a logarithm or a square root of 0 or less, an exp of a large number, or a division by 0",
                "Print the outputs layer by layer; bound the log-variance: log_variance.clamp(-10, 10).",
            )


def changed_input(p: Patient) -> Iterator[Finding]:
    """Does forward leave its examples as they were?"""
    if p.subject.changed is None:
        return
    call = p.subject.changed if p.subject.changed.file else None
    yield Finding(
        "changed-input",
        "error",
        "forward writes into x: the loss then compares the reconstruction with other pixels than the data's, and a "
        "second pass over the same tensor changes it once more.",
        {"line": line_of(call)},
        "an operation in place on the examples, or on a view of them",
        change(call, not_in_place, "compute a new tensor, as  x = 2 * x - 1  does"),
    )


# -- noise ---------------------------------------------------------------------------------------------------------


def noise(p: Patient) -> Iterator[Finding]:
    """Does noise reach the decoder, and is it standard normal?"""
    noise = p.reading.noise
    draw = noise.draws[0].call if noise.draws else None
    if not noise.reaches:
        yield _no_noise(p, draw)
    elif draw is None:
        yield Finding(
            "noise-unseen",
            "info",
            "The reconstruction varies from call to call, but torch drew nothing of the latents' size: the noise comes "
            "from elsewhere and was not examined.",
            remedy="Draw it with torch.randn_like(mean).",
        )
    elif noise.beside:
        call = meeting(p.seen.calls, made_by(p.seen.calls, draw), [p.mean.tensor])
        yield Finding(
            "noise-scale",
            "error",
            "The noise is added as it is drawn, and σ "
            f"{'multiplies' if '·' in noise.beside else 'is added to'} the mean: z = {noise.beside} + noise.",
            {"kind": noise.draws[0].kind} | _at(call),
            "mean and noise are exchanged where z is made",
            change(call, leave, f"make  {EXPLICIT}"),
        )
    else:
        yield from _moments(p, draw)
        if noise.repeats:
            yield _repeated(p, draw)
        if noise.shared:
            yield _shared(p, draw, wanted=p.batch * p.latents)


def _no_noise(p: Patient, draw: Call | None) -> Finding:
    lost = _thrown_away(p, draw) if draw else None
    if draw and lost:
        return Finding(
            "no-noise",
            "error",
            "The reconstruction is the same at every call: noise is drawn, and never reaches the decoder.",
            {"draws": 1} | _at(lost),
            f"{lost.name} makes a tensor that holds nothing of z",
            change(lost, leave, "give the decoder z itself"),
        )
    decoder = _decoder_after(p, draw) if draw else None
    why = "noise is drawn, and never reaches the decoder" if draw else "no noise is drawn in forward"
    return Finding(
        "no-noise",
        "error",
        f"The reconstruction is the same at every call: {why}. This is an autoencoder, not a VAE.",
        {"draws": int(draw is not None)} | _at(decoder or draw),
        f"the decoder is not given the z that the noise is in ({line_of(draw)})"
        if decoder
        else "the mean is decoded in place of a random z; or the noise is added only in model.eval(), or was drawn "
        "once and for all",
        change(decoder, leave, f"decode  {EXPLICIT}")
        if decoder
        else f"Decode  {EXPLICIT}" + (f"  (the noise is drawn in {line_of(draw)})" if draw else ""),
    )


def _decoder_after(p: Patient, draw: Call) -> Call | None:
    """Where the decoder begins, if it is not given a z that was made of mean and noise.

    It is the first call on the way to the reconstruction that follows the draw.
    """
    if meeting(p.seen.calls, made_by(p.seen.calls, draw), [p.mean.tensor]) is None:
        return None
    path = {id(call) for call in before(p.seen.calls, [p.reconstruction.tensor])}
    drawn = again(p.seen.calls, draw)
    later = dropwhile(lambda call: call is not drawn, p.seen.calls)
    return next((call for call in later if id(call) in path and line_of(call)), None)


def _thrown_away(p: Patient, draw: Call) -> Call | None:
    """What takes something made of the noise, and gives the reconstruction a tensor of its shape alone."""
    noisy = after(p.seen.calls, made_by(p.seen.calls, draw))
    path = before(p.seen.calls, [p.reconstruction.tensor])
    return next((call for call in path if makes(call) and takes(call, noisy)), None)


def _at(call: Call | None) -> dict[str, str]:
    return {"line": line_of(call)} if call else {}


def _moments(p: Patient, draw: Call) -> Iterator[Finding]:
    noise = p.reading.noise
    kind = noise.draws[0].kind
    evidence = {"kind": kind, "mean": noise.mean, "standard_deviation": noise.stddev} | _at(draw)
    if kind == "uniform" and not noise.turned:
        mean, stddev = (0.5, 12**-0.5) if noise.mean is None or noise.stddev is None else (noise.mean, noise.stddev)
        yield Finding(
            "uniform-noise",
            "error",
            f"The noise is uniform, with mean {mean:.2f} and standard deviation {stddev:.2f}. It must be normal, with "
            "mean 0 and standard deviation 1.",
            evidence | {"mean": mean, "standard_deviation": stddev},
            "rand in place of randn: the decoder learns other z than the prior N(0, 1) will give it",
            change(
                draw,
                _to_normal if _is_as_drawn(mean, stddev) else leave,
                "draw the noise with randn_like, and neither shift nor stretch it",
            ),
        )
        return
    mean, stddev = noise.mean or 0.0, 1.0 if noise.stddev is None or _misread(p) else noise.stddev
    if max(abs(mean), abs(stddev - 1)) > MOMENT:
        yield Finding(
            "noise-scale",
            "error",
            f"The noise in z = mean + σ · noise has mean {mean:.2f} and standard deviation {stddev:.2f}. It must have "
            "0 and 1.",
            evidence,
            "a factor, a shift or a function of the noise, or a factor on σ: z is drawn from another distribution than "
            "the KL speaks of",
            change(
                draw,
                leave,
                "use the noise as it is drawn, and no factor on σ: z = mean + std * eps"
                if location_and_width(draw.name, draw.args, draw.kwargs) == (0, 1)
                else "draw it with mean 0 and standard deviation 1",
            ),
        )


def _is_as_drawn(mean: float, stddev: float) -> bool:
    """Whether these are the moments of a uniform draw itself, so that a normal one can take its place as it is."""
    return abs(mean - 0.5) < MOMENT / 2 and abs(stddev - 12**-0.5) < MOMENT / 2


def _repeated(p: Patient, draw: Call) -> Finding:
    where, text = p.source_line("manual_seed")
    return Finding(
        "repeated-noise",
        "error",
        "Every call draws the same noise: the decoder learns to undo it, and never sees z vary.",
        {"line": where or line_of(draw)},
        "a seed that is set in forward, or a generator that is made there",
        (told_at(where, "set the seed once, before training", text) if where else
         f"{line_of(draw)}: draw with a generator that is not made anew at every call"),
    )  # fmt: skip


def _shared(p: Patient, draw: Call, wanted: int) -> Finding:
    drawn = p.reading.noise.draws[0].values.numel()
    shape = p.mean.tensor.shape
    like = next((name for name, own in reversed(draw.like.items()) if own == shape and name.isidentifier()), None)
    found = r"\brandn\([^()]*(\([^()]*\))?[^()]*\)"
    return Finding(
        "shared-noise",
        "error",
        f"{drawn} random numbers are drawn for a batch that needs {wanted:,}: examples or latents share their noise.",
        {"drawn": drawn, "wanted": wanted} | _at(draw),
        "noise of another shape than the mean; torch stretches it silently (broadcasting)",
        change(draw, (lambda text: re.sub(found, f"randn_like({like})", text)) if like else leave,
               f"draw noise of the mean's shape, {[*shape]} here"),
    )  # fmt: skip


def _to_normal(text: str) -> str:
    text = re.sub(r"\brand(?=_like\(|\()", "randn", text)
    return re.sub(r"\.uniform_\([^)]*\)", ".normal_()", text)


# -- mean and log-variance -----------------------------------------------------------------------------------------


def _misread(p: Patient) -> tuple[str, str] | None:
    """As what s is used where z is drawn, and as what it should be; None where the two agree, or are not known."""
    reading = p.reading.noise.reading
    taken = p.loss.kl.reading if p.loss else None
    if reading is None or reading == taken or (taken is None and reading in plausible(p)):
        return None
    return reading, taken or "log-variance"


def log_variance(p: Patient) -> Iterator[Finding]:
    """Is σ made as the loss, or the name, says?"""
    misread = _misread(p)
    if misread is None:
        return
    (reading, wanted), taken = misread, p.loss.kl.reading if p.loss else None
    call = p.where_sigma_is_made()
    by = "the KL in the loss takes it for" if taken else "the loss is given it as"
    exact = {"log-standard-deviation": _halved, "log-precision": _turned}
    rewrite = exact.get(reading, leave) if wanted == "log-variance" else leave
    there = f"write σ = {FORMULA[wanted]}, s being {p.spread.name or 'it'}"
    if wanted == "log-variance" and _HALVED.search(text_of(call)):  # right so far, and changed again after that
        call, rewrite = p.reading.noise.draws[0].call, leave
        there = f"z must be drawn here with σ = {FORMULA[wanted]} for its standard deviation, s being the log-variance"
    if p.reading.noise.stddev is not None and abs(p.reading.noise.stddev - 1) > MOMENT:
        there, rewrite = f"{there}, without a factor", leave
    ways = [change(call, rewrite, there)]
    if call and re.fullmatch("[a-z].*_", call.name) and any(one is p.spread.tensor for one in call.inputs):
        ways = [change(call, not_in_place, "leave out the underscores: they change what forward returns")]
    elif taken:
        ways.append(f"in the loss,  {p.right_kl(reading, p.kl_call)}")
    if p.range_of("spread")[0] >= 0:  # an activation that the loss's way may keep
        ways.reverse()
    yield Finding(
        "log-variance-scale",
        "error",
        f"{_capital(p.spread.place)}, call it s, is used as {_a(reading)} where z is drawn: "
        f"σ = {READINGS[reading][0]}. But {by} {_a(wanted)}: σ = {READINGS[wanted][0]}.",
        {"used_as": reading, "expected": wanted, "line": line_of(call)},
        "log-variance, variance and standard deviation are mixed up: z is drawn from another distribution than the KL "
        "is of",
        "\nor, ".join(ways),
    )  # fmt: skip


def not_in_place(text: str) -> str:
    """A line without the underscores of `mul_`, and with `x = x - 1` for `x -= 1`; chains of them begin with `x =`."""
    new = re.sub(r"(\.[a-z]\w*)_\(", r"\1(", re.sub(r"^(\w+) ([-+*/])= (.+)$", r"\1 = \1 \2 (\3)", text))
    return f"{found[0]} = {new}" if new != text and (found := re.match(r"(\w+)(?=\.\w+\()", new)) else new


_HALVED = re.compile(
    r"exp\(\s*0?\.5\s*\*|exp\([^()]*(/\s*2|\*\s*0?\.5)\s*\)|\((0?\.5\s*\*[^()]*|[^()]*(/\s*2|\*\s*0?\.5))\)\.exp\("
)
"""exp(s / 2), in the ways that it is written."""


def _a(reading: str) -> str:
    return "the input of a softplus" if reading == "softplus" else f"a {words(reading)}"


def plausible(p: Patient) -> set[str]:
    """What the third output may well be, where no loss says it: by its name, and by its range."""
    name = (p.spread.name or "").lower()
    found = {"log-variance"}
    if p.range_of("spread")[0] >= 0 and "log" not in name:
        found |= {"standard-deviation", "variance"}
    if re.search(r"log_?(std|sigma|scale|sd)(?!2|_?sq)", name):
        found.add("log-standard-deviation")
    return found


def _halved(text: str) -> str:
    text = re.sub(r"torch\.exp\(\s*(?!0?\.5)([\w.]+)\s*\)", r"torch.exp(0.5 * \1)", text)
    return re.sub(r"(?<![\w.(])([A-Za-z_]\w*)\.exp\(\)", r"(0.5 * \1).exp()", text)


def _turned(text: str) -> str:
    return re.sub(r"exp\(\s*-\s*", "exp(", text)


def swapped(p: Patient) -> Iterator[Finding]:
    """Are mean and log-variance two things, each at its place?"""
    call = p.where_sigma_is_made()
    if not moved(p.mean.tensor, p.spread.tensor):
        made = last_step(p.seen.calls, p.spread.tensor)
        where, text = line_of(made), text_of(made)
        yield Finding(
            "same-output",
            "error",
            f"Mean ({p.mean.place}) and log-variance ({p.spread.place}) are equal.",
            {"mean": p.mean.place, "log_variance": p.spread.place, "line": where},
            "one layer makes both, where there should be two",
            told_at(where, "give each of them a linear layer of its own", text)
            if where
            else "Give each of them a linear layer of its own.",
        )
    elif meant(p.mean) == "spread" and meant(p.spread) == "mean":
        yield Finding(
            "swapped-outputs",
            "error",
            f'What is called "{p.mean.name}" is used as the mean of z, and "{p.spread.name}" as its log-variance.',
            {"mean": p.mean.place, "log_variance": p.spread.place, "line": line_of(call)},
            "arguments or results in another order than their names say",
            "Exchange the two where z is drawn" + (f" ({line_of(call)})." if call else "."),
        )
