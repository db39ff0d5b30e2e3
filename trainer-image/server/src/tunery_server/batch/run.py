"""The story of a batch, from top to bottom: look at the output, check the input, ask, keep, publish, clear away."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Final

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import AnswersReport, RunResult, RunSpec
from tunery_api.status import Phase
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.mounts import Mounts
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import ambient
from tunery_common.storage.probe import probe
from tunery_common.storage.publisher import Published, Target, published_before, published_by
from tunery_server.batch.answers import Answer
from tunery_server.batch.aside import TOLD_SECONDS, Aside
from tunery_server.batch.asking import Conveyor, Source
from tunery_server.batch.check import PROBLEMS_FILE, Checked, Problems, check
from tunery_server.batch.inputs import api_key, fetch_input
from tunery_server.batch.keeping import STOPPED_SECONDS, Keeper, Kept, PartSize
from tunery_server.batch.lines import InputLines, Line
from tunery_server.batch.models import Refused, add_lines, look_up
from tunery_server.batch.parts import DamagedPart, Mark, Parts, batch_digest
from tunery_server.batch.progress import LOG_SECONDS, Progress
from tunery_server.batch.publishing import SHOWN_VERSIONS, Ended, publish, result_of, too_many_errors
from tunery_server.batch.requests import BadLine, parse
from tunery_server.batch.server import Access, Patience, Server, Stopped, model_denied
from tunery_server.batch.stopping import StopRequested, StopSignal
from tunery_server.threads import in_thread_until

GRACE_SECONDS: Final = 20.0
"""How long answers that are under way are waited for after a SIGTERM."""
ERRORS_BEYOND: Final = 100
"""More errors than so many above spec.maxErrors end the batch before its last line; else all of them are found."""
_TELL_SECONDS: Final = 1.0
_MOST_AGAIN: Final = 3
"""How often an attempt asks again what damaged parts held: a storage that keeps nothing must not cost without end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How a batch takes its time; tests have less of it."""

    patience: Patience = field(default_factory=Patience)
    part: PartSize = field(default_factory=PartSize)
    grace_seconds: float = GRACE_SECONDS


@dataclass(frozen=True)
class Batch:
    """One batch, and what its steps hand to each other."""

    work: Mounts
    spec: BatchInferenceSpec
    lines: InputLines
    checked: Checked
    problems: Problems
    """What is wrong with lines; told once the models have been looked up, too."""
    parts: Parts
    pace: Pace
    progress: Progress


def run_batch(run: RunSpec, progress: Progress, stop: StopSignal, pace: Pace) -> RunResult:
    """Answer the file of requests and publish; succeeds at once if this very run published already.

    Raises TuneryError, and StopRequested after a SIGTERM.
    """
    work, spec = Mounts(run), run.batch_inference
    if spec is None or run.server_url is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no BatchInference, or no server")
    target, place = Target(work.output, run.identity, spec.output.overwrite), _parts_place(work)
    done = published_before(target)
    if done is None:
        probe(target)
        api_key(work, spec)
        progress.doing(f"reads and checks {spec.input.uri}")
        done = _published(_prepare(work, spec, place, pace, progress), stop, target)
    _clear_away(place)
    progress.phase(Phase.SUCCEEDED)
    return result_of(done)


def run_report(run: RunSpec) -> RunResult:
    """Read back what this very batch published, every digest of it, and say it again; nothing is written.

    Raises TuneryError: AdapterMissing where nothing of it is there, AdapterCorrupt where it is not whole, and the
    reasons of the storage.
    """
    spec = run.batch_inference
    if spec is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no BatchInference")
    return result_of(published_by(Target(Mounts(run).output, run.identity, spec.output.overwrite)))


def _parts_place(work: Mounts) -> StorePath:
    """Return where parts are kept; the pod's own disk where the platform named no place."""
    found = work.checkpoints
    return (
        found if found is not None else open_store((work.folder("parts") / "batch").as_uri(), ambient(), "--work-dir")
    )


def _clear_away(place: StorePath) -> None:
    """Remove the parts; the answers are published, so that a failure is a warning."""
    try:
        Parts(place, "").clear()
    except TuneryError as error:
        _log.warning("the parts below %s stay: %s", place.uri, error.message)


def _prepare(work: Mounts, spec: BatchInferenceSpec, place: StorePath, pace: Pace, progress: Progress) -> Batch:
    """Fetch and check the input; raises InputInvalid where it has no line, or cannot be unpacked."""
    lines = InputLines(fetch_input(work, spec), spec.input.uri)
    problems = Problems(work.folder("check"))
    checked = check(lines, spec.default_model, work.folder("check"), problems)
    if not checked.lines:
        message = f"spec.input.uri: {spec.input.uri} has no line"
        raise TuneryError(FailureReason.INPUT_INVALID, message, retry("Write requests to it, one a line"))
    digest = batch_digest(checked.digest, [spec.server_ref.name, spec.default_model])
    return Batch(work, spec, lines, checked, problems, Parts(place, digest), pace, progress)


def _published(batch: Batch, stop: StopSignal, target: Target) -> Published:
    """Have every line answered, and publish; what a damaged part held is asked again at once.

    Raises what `_answered` and `publish` do, and DamagedPart where parts are damaged again and again.
    """
    for again in range(_MOST_AGAIN, -1, -1):
        try:
            ended = _answered(batch, stop)
            batch.progress.phase(Phase.UPLOADING)
            return publish(ended, target, batch.work.folder("result"))
        except DamagedPart as damaged:
            if not again:
                raise
            if stop.requested:
                raise StopRequested from damaged
            _log.warning("%s; looks at all parts", damaged.message)
            batch.parts.drop_damaged()
    raise AssertionError  # the last time either returns or raises


def _answered(batch: Batch, stop: StopSignal) -> Ended:
    """Ask every line that has no answer yet; raises TuneryError, and StopRequested."""
    marks = batch.parts.load()
    kept = Kept.of(batch.parts, marks)
    counted = partial(kept.tally.report, batch.checked.lines)
    batch.progress.count(counted)
    try:
        left = asyncio.run(_ask(batch, kept, stop))
    except TuneryError as error:
        error.reached = _reached(kept, batch)
        raise
    tally, found = kept.tally, sorted(left.values(), key=lambda mark: mark.first)
    if tally.errors > batch.spec.max_errors:
        failure = too_many_errors(batch.parts, found, tally, batch.spec)
        failure.reached = _reached(kept, batch)
        batch.parts.next_round()
        raise failure
    if batch.lines.digest != batch.checked.digest:
        raise batch.lines.changed()
    return Ended(batch.work.run, batch.spec, batch.checked, batch.parts, found, tally)


def _reached(kept: Kept, batch: Batch) -> RunResult:
    return RunResult(answers=_short(kept, batch))


def _short(kept: Kept, batch: Batch) -> AnswersReport:
    return kept.tally.report(batch.checked.lines, SHOWN_VERSIONS)


async def _ask(batch: Batch, kept: Kept, signal: StopSignal) -> dict[int, Mark]:
    """Return the marks of all parts once every line has its end, or more have failed than may.

    Raises TuneryError, and StopRequested.
    """
    run, stops, patience = batch.work.run, Stops(asyncio.Event(), asyncio.Event(), signal), batch.pace.patience
    if batch.problems.count:
        # It ends anyhow: only for what else is wrong the server is asked, and not waited for.
        patience = replace(patience, outage=patience.unknown_model)
    access = Access(run.server_url or "", partial(api_key, batch.work, batch.spec), run.identity.uid, patience)
    server = Server(access, stops.stop)
    with signal.graceful(stops.stop):
        try:
            await _refuse(batch, server, signal)
            batch.progress.phase(Phase.ANSWERING)
            marks, whole = await _keep_asking(batch, kept, server, stops)
        except Stopped as stopped:
            raise StopRequested from stopped
        finally:
            await server.close()
    if not whole and not stops.enough.is_set():
        raise StopRequested
    return marks


@dataclass(frozen=True)
class Stops:
    """What ends the asking before the last line."""

    stop: asyncio.Event
    """No line is to be begun any more."""
    enough: asyncio.Event
    """Because more lines have failed than may."""
    signal: StopSignal
    """Which may be one of the causes."""


@dataclass(frozen=True)
class Counted:
    """Hands ends to the keeper, and stops the asking where more of them than may be are errors."""

    keeper: Keeper
    max_errors: int
    stops: Stops

    @property
    def storing(self) -> bool:
        """Tell whether some of them are about to be stored."""
        return self.keeper.storing

    @property
    def behind(self) -> bool:
        """Tell whether many of them are."""
        return self.keeper.behind

    def take(self, answer: Answer) -> None:
        """Take the end of a line, or its place."""
        self.keeper.take(answer)
        if self.keeper.tally.errors > self.max_errors + ERRORS_BEYOND:
            self.stops.enough.set()
            self.stops.stop.set()


async def _refuse(batch: Batch, server: Server, signal: StopSignal) -> None:
    """Raise InputInvalid naming the lines that cannot be asked, be it for their model.

    Raises ServerAccessDenied where all that is wrong is that the API key may not ask for a model.
    """
    spec, problems, asked, progress = batch.spec, batch.problems, batch.checked.models, batch.progress
    name, seconds, refused, unchecked = spec.server_ref.name, batch.pace.patience.unknown_model, Refused(), None

    def waiting(which: str) -> None:
        progress.doing(f"waits up to {seconds:.0f} seconds for the server {name} to know {which}")

    progress.doing(f"asks the server {name} for its models")
    try:
        refused = await look_up(server, name, asked, waiting)
    except TuneryError as error:
        if not problems.count:
            raise
        unchecked = error.message
    if refused.denied and not refused.unknown and not problems.count:
        model = next(iter(refused.denied))
        more = f" and for {len(refused.denied) - 1} more" if len(refused.denied) > 1 else ""
        raise model_denied(f"{model!r} of line {asked[model]}{more}", refused.meant[model])
    looked_at = takewhile(lambda line: line.number <= batch.checked.read_to, batch.lines)
    add_lines(problems, looked_at, spec.default_model, refused)
    if problems.count:
        raise await _stored(batch, problems.failure(spec.input.uri, unchecked), signal)


async def _stored(batch: Batch, failure: TuneryError, signal: StopSignal) -> TuneryError:
    """Store the list of bad lines; return the failure that says where it is."""
    place = batch.parts.place.below(PROBLEMS_FILE)
    upload = partial(place.store.upload_file, batch.problems.file, place.prefix)
    try:
        await in_thread_until(upload, lambda: signal.told_at + STOPPED_SECONDS)
    except (TuneryError, TimeoutError) as error:
        _log.warning("the list of bad lines cannot be stored: %s", first_line(error))
        return failure
    failure.facts["invalidLines"] = place.uri
    return failure


async def _keep_asking(batch: Batch, kept: Kept, server: Server, stops: Stops) -> tuple[dict[int, Mark], bool]:
    """Ask and keep until all is done or `stops` says so; return the marks, and whether all lines have ends.

    Whatever ends it, what was answered is kept. Raises TuneryError, be it DamagedPart, and what a defect raises.
    """
    keeper = Keeper(batch.parts, kept, batch.pace.part, stops.stop.set, lambda: stops.signal.told_at)
    patience = batch.pace.patience
    aside = Aside(server, batch.lines, patience.first_pause, patience.longest_pause)

    async def ask(line: Line) -> Answer | None:
        try:
            request = parse(line.raw, batch.spec.default_model)
        except BadLine as error:  # each was a request when it was checked
            raise batch.lines.changed() from error
        return await aside.ask(line, request)

    def late(line: Line) -> bool:
        return server.waits(line, batch.pace.part.seconds)

    counted, source = Counted(keeper, batch.spec.max_errors, stops), Source(kept.left(batch.lines), aside)
    conveyor = Conveyor(ask, source, counted, stops.stop, late)
    keeping = asyncio.create_task(keeper.keep(conveyor.stored))
    asking = asyncio.create_task(conveyor.run(batch.spec.concurrency, batch.pace.grace_seconds))
    telling = asyncio.create_task(_tell(aside, server, batch.progress))
    await asyncio.wait({keeping, asking}, return_when=asyncio.FIRST_COMPLETED)
    asking.cancel() if keeping.done() else None
    await asyncio.wait({asking})
    telling.cancel()
    keeper.end()
    await asyncio.wait({keeping})
    aside.close()
    for task in (asking, keeping):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
    if keeper.damaged is not None:
        raise keeper.damaged
    return keeper.marks, conveyor.whole


async def _tell(aside: Aside, server: Server, progress: Progress) -> None:
    """Say what lines wait for while they do, and how many they are every now and then."""
    told, said_at = None, 0.0
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        server_words = server.words(TOLD_SECONDS)
        found = (server_words, server_words) if server_words is not None else aside.words()
        what = found[0] if found is not None else None
        now = time.monotonic()
        if what != told or (found is not None and now - said_at >= LOG_SECONDS):
            told, said_at = what, now
            progress.doing(found[1] if found is not None else None)
