"""Prepared data in the cache: what preflight has tokenised is not tokenised again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunery_api.reasons import FailureReason
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.shared_cache import CacheUnusable, SharedCache, as_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARED: Final = "prepared"
_TIMES: Final = 8
"""Room that is made for prepared data, as so many times its files."""

_log = logging.getLogger(__name__)


def look_up(cache: SharedCache | None, own: Path) -> Callable[[str], Path]:
    """Return what tells the folder in which prepared data of a key lies, or is to be put: `own` where it does not."""

    def find(key: str) -> Path:
        found = cache.use(PREPARED, key) if cache else None
        return found.folder.parent if found else own

    return find


def survey(
    cache: SharedCache | None, root: Path, options: DataOptions, tokenizer: PreTrainedTokenizerBase
) -> DatasetReport:
    """Return what preflight reports of a data set; where there is a cache, it is prepared into it on the way.

    Raises what `data.scan.scan` raises.
    """
    from tunery_trainer.data.scan import scan

    if cache is not None:
        try:
            return _prepared(cache, root, options, tokenizer)
        except CacheUnusable as error:
            _log.warning("prepared data is not cached: %s; the training pod will prepare it itself", error)
    return scan(root, options, tokenizer)


def _prepared(
    cache: SharedCache, root: Path, options: DataOptions, tokenizer: PreTrainedTokenizerBase
) -> DatasetReport:
    from tunery_trainer.data.cache import cache_key, read_entry
    from tunery_trainer.data.prepare import prepare
    from tunery_trainer.data.single_pass import find_files

    files = find_files(root, options)
    key = cache_key(files, options, tokenizer)
    with cache.filling(PREPARED, key) as draft, as_unusable():
        if draft is not None:
            size = sum(source.path.stat().st_size for source in (*files.train, *files.evaluation))
            cache.make_room(_TIMES * size, PREPARED, key)
            try:
                prepare(root, options, tokenizer, draft)
            except TrainerError as error:
                shutil.rmtree(draft, ignore_errors=True)
                if error.reason is FailureReason.DISK_FULL:
                    raise CacheUnusable(error.message) from error
                raise
            cache.put(PREPARED, key, draft / key, {})
        entry = read_entry(cache.entries(PREPARED), key)
    if entry is None:
        raise CacheUnusable("the prepared data is gone")
    return entry[1]
