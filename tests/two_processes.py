"""Started by torchrun in test_processes.py: writes the gradients of one update of two processes, in float64."""

import sys

import torch
from safetensors.torch import save_file

from vaelab.config import resolve
from vaelab.data import load
from vaelab.objectives import Forward
from vaelab.training.job import Job, make_job
from vaelab.training.processes import Processes

KEYS = {
    "data.binarize": "dynamic",
    "network.hidden": [16],
    "model.latent_dim": 3,
    "likelihood.name": "bernoulli",
    "training.batch_size": 24,
    "training.precision": "float32",
}


def job_of(processes: Processes) -> Job:
    config = resolve("test", {}, KEYS)
    job = make_job(config, load(config.data), processes)
    job.state.model.double()
    return job


def backward(job: Job, forward: torch.nn.Module, weight: float = 1.0) -> None:
    """The backward pass of this process's share of the first batch."""
    split = job.dataset["train"]
    noise = job.noise(0, 0, 0)
    x = split.batch(job.shares(resolve("test", {}, KEYS).training)[0], noise).double()
    (forward(x, noise, None).value * weight).backward()


if __name__ == "__main__":
    processes = Processes()
    job = job_of(processes)
    backward(job, processes.wrap(Forward(job.state.model, job.state.objective)))
    gradients = {name: p.grad for name, p in job.state.model.named_parameters() if p.grad is not None}
    save_file(gradients, f"{sys.argv[1]}/gradients-{processes.rank}.safetensors")
