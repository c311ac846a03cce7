"""What training says while it runs: a live bar on a terminal, a line now and then elsewhere. All on stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0


def describe(metrics: dict[str, float]) -> str:
    """`elbo -98.12 rate 25.31 distortion 72.81`, nats per example."""
    return " ".join(f"{name} {metrics[name]:.2f}" for name in ("elbo", "rate", "distortion") if name in metrics)


class Reporter:
    """Shows epochs, ELBO, rate, distortion, images per second and time left."""

    def __init__(self, epochs: int, done: int, steps_per_epoch: int, enabled: bool) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.enabled = enabled
        console = Console(stderr=True)
        self.live = enabled and console.is_terminal
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(bar_width=4),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self.live,
            refresh_per_second=5,
            transient=True,
        )
        self.task: TaskID = self.bar.add_task(
            "", total=epochs * steps_per_epoch, completed=done, epoch=done // steps_per_epoch + 1, text="starting"
        )
        self.started = self.last = time.monotonic()
        self.first_step = done

    def __enter__(self) -> "Reporter":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, done: int) -> None:
        """`done` steps are complete."""
        if self.live:
            self.bar.update(self.task, completed=done)

    def epoch(self, epoch: int, done: int, metrics: dict[str, float], images_per_second: float) -> None:
        """An epoch is complete; `metrics` are of the validation set, or of training where there is none."""
        text = f"{describe(metrics)} {images_per_second:,.0f} img/s"
        if self.live:
            self.bar.update(self.task, completed=done, epoch=min(epoch + 1, self.epochs), text=text)
            return
        now = time.monotonic()
        if self.enabled and (now - self.last > QUIET_SECONDS or epoch in (1, self.epochs)):
            self.last = now
            left = (now - self.started) / max(1, done - self.first_step) * (self.epochs * self.steps_per_epoch - done)
            print(f"epoch {epoch}/{self.epochs}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)
