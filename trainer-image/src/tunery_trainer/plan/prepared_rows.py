"""Prepared data in the cache: what preflight has tokenised is not tokenised again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.shared_cache import CacheUnusable, SharedCache, as_unusable
from tunery_trainer.data.cache import cache_key, read_entry
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.data.prepare import PreparedData, prepare
from tunery_trainer.data.scan import scan
from tunery_trainer.data.single_pass import find_files
from tunery_trainer.data.tokenizer import Tokenizer
from tunery_trainer.plan.request import DataRequest

PREPARED: Final = "prepared"
_TIMES: Final = 8
"""Room that is made for prepared data, as so many times its files."""

_log = logging.getLogger(__name__)


def prepare_rows(
    request: DataRequest, tokenizer: Tokenizer, cache: SharedCache | None, own: Path, notebook: Notebook | None = None
) -> PreparedData:
    """Return the rows that training asks for, from the cache where preflight has put them there, else made in `own`.

    Raises what `data.prepare.prepare` raises.
    """

    def find(key: str) -> Path:
        found = cache.use(PREPARED, key) if cache else None
        return found.folder.parent if found else own

    return prepare(request.root, request.options, tokenizer, find, notebook)


def survey(
    request: DataRequest, tokenizer: Tokenizer, cache: SharedCache | None, notebook: Notebook | None = None
) -> DatasetReport:
    """Return what preflight reports of a data set; where there is a cache, it is prepared into it on the way.

    Raises what `data.scan.scan` raises.
    """
    if cache is not None:
        try:
            return _prepared(request, tokenizer, cache, notebook)
        except CacheUnusable as error:
            _log.warning("prepared data is not cached: %s; the training pod will prepare it itself", error)
    return scan(request.root, request.options, tokenizer, notebook)


def _prepared(
    request: DataRequest, tokenizer: Tokenizer, cache: SharedCache, notebook: Notebook | None
) -> DatasetReport:
    files = find_files(request.root, request.options)
    key = cache_key(files, request.options, tokenizer)
    with cache.filling(PREPARED, key) as draft, as_unusable():
        if draft is not None:
            size = sum(source.path.stat().st_size for source in (*files.train, *files.evaluation))
            cache.make_room(_TIMES * size, PREPARED, key)
            try:
                prepare(request.root, request.options, tokenizer, draft, notebook)
            except TuneryError as error:
                shutil.rmtree(draft, ignore_errors=True)
                if error.reason is FailureReason.DISK_FULL:
                    raise CacheUnusable(error.message) from error
                raise
            cache.put(PREPARED, key, draft / key, {})
        entry = read_entry(cache.entries(PREPARED), key)
        if entry is not None and draft is None and notebook is not None:
            notebook.take(*entry, request.options)
    if entry is None:
        raise CacheUnusable("the prepared data is gone")
    return entry[1]
