"""In which precision the networks compute: by measurement, before training.

Densities, objective, master weights and all of evaluation stay in float32, whatever is chosen here.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What autocast gets; None is no autocast."""
ROUNDS = 5
SECONDS = 3.0
WORTH_IT = 0.9  # bfloat16 must take less than this part of float32's time


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself; emulation is always slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def choose(
    device: torch.device, threads: tuple[int, ...], rehearse: Callable[[torch.dtype | None], None]
) -> tuple[str, int]:
    """What `training.precision=auto` comes to, and the number of threads to begin with.

    That is bfloat16 where the hardware has it and it saves a tenth of the time or more. On a processor both
    precisions are timed with each number of threads, in turns, so that a disturbance meets them alike.

    Args:
        threads: the numbers of threads to try; the last is the present one.
        rehearse: one forward and backward pass in a precision, without an update.
    """
    if not has_bfloat16(device):
        return "float32", threads[-1]
    before = torch.get_num_threads()
    times: dict[tuple[str, int], list[float]] = {}
    began = time.perf_counter()
    for turn in range(ROUNDS + 1):
        for number in threads:
            torch.set_num_threads(number)
            for name in ("float32", "bfloat16"):
                seconds = _time(lambda name=name: rehearse(DTYPES[name]), device)
                if turn:  # the first pass sets up kernels
                    times.setdefault((name, number), []).append(seconds)
        if turn and time.perf_counter() - began > SECONDS:
            break
    torch.set_num_threads(before)
    best = {
        name: min(((median(spent), number) for (other, number), spent in times.items() if other == name))
        for name in ("float32", "bfloat16")
    }
    name = "bfloat16" if best["bfloat16"][0] < WORTH_IT * best["float32"][0] else "float32"
    return name, best[name][1]


def _time(action: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
