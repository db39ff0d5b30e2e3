"""Provide `tunery usage`: the GPU hours of pods by namespace, job or label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import click

from tunery.app import App
from tunery.objects import RUNNABLE, View, list_objects, parse_duration, parse_time
from tunery.text import Column, print_table
from tunery_api.kinds import Kind

_NO_LABEL: Final = "(no label)"


class Use(NamedTuple):
    """The GPU time of one object."""

    group: str
    gpu_seconds: float


@click.command("usage")
@click.option("-A", "--all-namespaces", is_flag=True, help="The objects of all namespaces.")
@click.option("--since", metavar="TIME", default="30d", show_default=True, help="How far back, such as 12h or 30d.")
@click.option("--by", metavar="GROUP", help="job, namespace, or the key of a label. Default: job; with -A namespace.")
@click.pass_obj
def usage_command(app: App, /, all_namespaces: bool, since: str, by: str | None) -> None:
    """Sum up the GPU hours of jobs by namespace, job or label.

    The trials of a sweep count as part of it. Not counted are AdapterServers, and objects that were deleted.
    """
    by = by or ("namespace" if all_namespaces else "job")
    now = datetime.now(UTC)
    start = now - timedelta(seconds=parse_duration(since))
    views = list_objects(app.cluster, RUNNABLE, all_namespaces=all_namespaces)
    groups = sum_up(use_of(views, by, start, now))
    total = sum(hours for _, hours in groups.values())
    if app.is_json:
        rows = [
            {"name": name, "objects": count, "gpuHours": round(hours, 4)} for name, (count, hours) in groups.items()
        ]
        app.print_json(
            {"since": start.isoformat(timespec="seconds"), "by": by, "groups": rows, "gpuHours": round(total, 4)}
        )
        return
    if not groups:
        app.print(f"No GPU time since {start:%Y-%m-%d %H:%M} UTC")
        return
    rows_text = [[name, str(count), f"{hours:,.2f}"] for name, (count, hours) in groups.items()]
    print_table(app.console, [Column(by.upper()), Column("OBJECTS"), Column("GPU HOURS")], rows_text)
    app.print(f"\n{total:,.2f} GPU hours since {start:%Y-%m-%d %H:%M} UTC")


def sum_up(uses: Iterable[Use]) -> dict[str, tuple[int, float]]:
    """Return the number of objects and the GPU hours of each group, the largest first."""
    by_group = defaultdict[str, list[float]](list)
    for use in uses:
        by_group[use.group].append(use.gpu_seconds)
    sums = {group: (len(seconds), sum(seconds) / 3600) for group, seconds in by_group.items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1][1], item[0])))


def use_of(views: Sequence[View], by: str, start: datetime, now: datetime) -> Iterator[Use]:
    """Yield the GPU time of each object between `start` and `now`, if it has any.

    A sweep knows no times of deleted trials: they count as a whole if the sweep ended after `start`.
    """
    known = {view.metadata["uid"] for view in views}
    for view in views:
        seconds = gpu_seconds(view, start, now)
        if seconds > 0:
            yield Use(_group(view, by), seconds)
        if view.kind is Kind.LORASWEEP and _ended(view, now) >= start:
            deleted = [each for each in view.status.get("trials") or () if each.get("uid") not in known]
            yield from (Use(_group(view, by), each["gpuSeconds"]) for each in deleted if each.get("gpuSeconds"))


def gpu_seconds(view: View, start: datetime, now: datetime) -> float:
    """Return the GPU seconds of an object's pods between two times.

    Attempts that the history no longer has count if the object was created after `start`. A sweep has no GPU time of
    its own: that in its status is the sum of its trials, which are objects, too.
    """
    if view.kind is Kind.LORASWEEP:
        return 0.0
    history = view.status.get("attemptHistory") or []
    listed = sum(each.get("gpuSeconds") or 0 for each in history)
    earlier = max(0, (view.status.get("gpuSeconds") or 0) - listed) if view.created >= start else 0
    return earlier + sum(_attempt(view, each, start, now) for each in history)


def _attempt(view: View, attempt: Mapping[str, Any], start: datetime, now: datetime) -> float:
    """Return the GPU seconds of one attempt between two times; those of a running pod are counted until `now`."""
    began = parse_time(attempt["startTime"])
    ended = parse_time(attempt["endTime"]) if attempt.get("endTime") else now
    inside = (min(ended, now) - max(began, start)).total_seconds()
    if inside <= 0:
        return 0.0
    if attempt.get("endTime"):
        return float(attempt.get("gpuSeconds") or 0) * inside / (ended - began).total_seconds()
    gpus = view.at("spec.resources.gpus")
    default = 1 if view.kind is Kind.LORAJOB else 0
    return inside * (default if gpus is None else gpus)


def _ended(view: View, now: datetime) -> datetime:
    completion = view.status.get("completionTime")
    return parse_time(completion) if completion else now


def _group(view: View, by: str) -> str:
    """Return the group of an object; a trial belongs to its sweep."""
    if by == "namespace":
        return str(view.metadata["namespace"])
    if by == "job":
        return f"{Kind.LORASWEEP.singular}/{view.sweep}" if view.sweep else view.reference
    return str((view.metadata.get("labels") or {}).get(by, _NO_LABEL))
