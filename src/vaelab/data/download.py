"""Files that are fetched on first use: the folder where they live, mirrors, and writing them whole or not at all."""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from vaelab.errors import VaelabError
from vaelab.files import replacing


def data_folder() -> Path:
    """The folder of the named data sets: `$VAELAB_DATA`, else the user's cache folder."""
    named = os.environ.get("VAELAB_DATA")
    if named:
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("vaelab"))


def fetch(urls: Sequence[str], target: Path, decode: Callable[[bytes], bytes], timeout: float = 30.0) -> bytes:
    """Download a file from the first mirror that has the right one, and keep it as `target`.

    Args:
        urls: the mirrors, tried in this order.
        target: where what `decode` returns is written, whole or not at all.
        decode: turns a download into the content to keep; raises ValueError where it is not the right file.
        timeout: seconds without an answer after which a mirror counts as dead.

    Returns:
        The content that was kept.

    Raises:
        VaelabError: no mirror has the right file, or it cannot be written.
    """
    import requests

    failures: list[str] = []
    for url in urls:
        try:
            content = decode(_get(url, target.name, timeout))
        except requests.RequestException as error:
            response = error.response
            failures.append(f"{url} ({type(error).__name__ if response is None else response.status_code})")
        except ValueError as error:
            failures.append(f"{url} ({error})")
        else:
            write_whole(target, content)
            return content
    raise VaelabError(
        f"cannot download {target.name} from {', '.join(failures)}; put it into {target.parent} by hand, or try later"
    )


def _get(url: str, name: str, timeout: float) -> bytes:
    """What a URL holds, with a progress bar under `name` where standard error is a terminal."""
    import pooch
    from tqdm import tqdm

    buffer = io.BytesIO()
    # pooch sets the bar's total later; until then it must not be 0.
    with ExitStack() as opened, tqdm(desc=name, total=1, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def close_in_the_end(response: Any, *_: Any, **__: Any) -> None:  # pooch leaves it open after a failure
            opened.callback(response.close)

        download = pooch.HTTPDownloader(
            progressbar=cast(Any, bar), chunk_size=1 << 16, timeout=timeout, hooks={"response": close_in_the_end}
        )
        download(url, buffer, None)
    return buffer.getvalue()


def write_whole(target: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename: nobody ever sees half of it.

    Raises:
        VaelabError: the disk is full, or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise VaelabError(f"cannot write {target}: {error.strerror}; set VAELAB_DATA to another folder") from None
