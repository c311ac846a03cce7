"""Reading ahead: the next batches of a stream are read while the present one is used."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from vaelab.data.dataset import Split
from vaelab.data.stream import WORKERS


def prefetch(split: Split, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
    """Stored values of each batch of positions, in their order; those of a stream are read ahead.

    Up to four worker threads read a batch each while others are used. At most five batches are read or wait at a time,
    so memory stays bounded. The batches of a split in memory are read where they are asked for, without a thread.

    Args:
        split: what to read from.
        batches: int64 positions `[B]` each; taken as they are needed.

    Yields:
        `split.read(positions)` of each; `split.convert` makes of it what a model sees. For a GPU it is in pinned
        memory, which is copied there without waiting.

    Raises:
        InputError, VaelabError: at its batch, what `Rows.read` raises there. Closing the iterator, and its end, stop
            the threads.
    """
    if not split.streams:
        for positions in batches:
            yield split.read(positions)
        return

    def read(positions: Tensor) -> Tensor:
        values = split.read(positions)
        return values.pin_memory() if split.device.type == "cuda" else values

    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="vaelab-read") as pool:
        for positions in batches:
            waiting.append(pool.submit(read, positions))
            if len(waiting) > WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
