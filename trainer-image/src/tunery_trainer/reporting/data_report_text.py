"""data-report.md: the same for people, in Markdown that a terminal shows as well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from tunery_api.names import DATA_REPORT_JSON
from tunery_trainer.data.notes import LengthBin, LengthNotes, SameRow, ShownExample, ShownText
from tunery_trainer.reporting.data_report import DataReport, Tokens

LISTED_ROWS: Final = 1000
"""Bad rows that the text lists; data-report.json has all that there is room for."""
_BAR: Final = 40
"""Characters of the histogram's longest bar."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What could move a terminal's cursor, or turn its text around."""


def as_text(report: DataReport, invalid: Iterable[Mapping[str, Any]], shown: int | None = LISTED_ROWS) -> Iterator[str]:
    """Yield the text in pieces; `invalid` are the bad rows of the listing, of which `shown` (None: all) are."""
    whose = f"{report.run.kind} {report.run.namespace}/{report.run.name}" if report.run else report.data.uri
    yield f"# Data report: {whose}\n\n"
    if report.refused:
        yield f"**{report.refused.reason}:** {_line(report.refused.message)}\n\n"
        yield f"{_line(report.refused.hint)}\n\n" if report.refused.hint else ""
    if not report.complete:
        yield "The data were not read to their end: what follows holds for the rows that were.\n\n"
    yield _table(
        [*_rows_of(report), *(_tokens_of(report.tokens, report.rows) if report.tokens else ()), *_pairs_of(report)]
    )
    yield _section("Worth a look", [f"- {_line(warning)}" for warning in report.warnings])
    yield from _invalid(report, islice(invalid, shown))
    if report.tokens and report.tokens.lengths:
        yield _lengths(report.tokens.lengths, report.tokens.max_length)
    yield _section("First duplicates", _fenced(map(_same, report.duplicates.first)))
    yield _section("First evaluation rows that are trained on", _fenced(map(_same, report.overlap.first)))
    if report.tokens:
        cut, gone = report.tokens.first_cut, report.tokens.first_unlearnable
        yield _section("First rows that are cut", _fenced(map(str, cut)))
        yield _section("First rows that are left out, as cutting leaves nothing to learn", _fenced(map(str, gone)))
    yield from _examples(report.examples)


def example_text(example: ShownExample) -> str:
    """Return an example for a terminal: what is taught stands between [[ and ]]."""
    return "\n".join(
        (f"{name}:\n" if name else "") + _marked(text)
        for name, text in zip(_names(example), example.texts, strict=True)
    )


def describe(example: ShownExample) -> str:
    """Return where an example comes from and how long it is, as a phrase."""
    texts = ", ".join(f"{text.tokens:,} tokens, {text.taught_tokens:,} taught{_cut(text)}" for text in example.texts)
    label = "" if example.desirable is None else f"; {'desirable' if example.desirable else 'undesirable'}"
    parts = f"; the first of {example.parts} examples" if example.parts > 1 else ""
    return f"{_line(str(example.place))}: {texts}{label}{parts}"


def _rows_of(report: DataReport) -> Iterator[tuple[str, str]]:
    data, invalid = report.data, report.invalid
    yield "Data", _line(data.uri) + (f", {len(data.files)} files" if len(data.files) > 1 else "")
    yield "SHA-256", data.sha256
    yield "Task, format", f"{data.task}, {data.format}"
    if data.template:
        names = {
            "tokenizer": "the tokenizer's own",
            "chatml": "ChatML, as the tokenizer has none",
            "none": "none: plain text",
        }
        yield "Chat template", names.get(data.template, data.template)
    yield "Valid rows", f"{report.rows:,}"
    if data.evaluation_files:
        yield "Evaluation rows", f"{report.evaluation_rows:,}"
    yield "Invalid rows", f"{invalid.rows:,}" + (f" (at most {invalid.allowed:,} allowed)" if invalid.rows else "")
    all_rows = report.rows + report.evaluation_rows
    yield "Duplicates", f"{report.duplicates.rows:,}{_share(report.duplicates.rows, all_rows)}"
    if data.evaluation_files:
        yield (
            "Evaluation rows that are trained on",
            f"{report.overlap.rows:,}{_share(report.overlap.rows, report.evaluation_rows)}",
        )
    if data.ignored_columns:
        yield "Columns ignored", _line(", ".join(data.ignored_columns))


def _tokens_of(tokens: Tokens, rows: int) -> Iterator[tuple[str, str]]:
    yield "Tokens", f"{tokens.all:,}, of which {tokens.taught:,} are taught ({tokens.taught_percent:.4g} %)"
    if tokens.answers:
        wanted = tokens.answers - tokens.context_answers
        context = f"; {tokens.context_answers:,} are context only" if tokens.context_answers else ""
        yield "Answers taught", f"{tokens.taught_answers:,} of {wanted:,}{context}"
    yield (
        f"Cut at maxLength {tokens.max_length:,}",
        f"{tokens.cut_percent:.4g} % of the examples, {tokens.lost:,} tokens",
    )
    yield "Rows left out, nothing to learn", f"{tokens.unlearnable_rows:,}"
    if tokens.split_rows:
        yield "Rows split by the template", f"{tokens.split_rows:,}, {tokens.repeated:,} tokens repeated"
    if tokens.lost_reasoning:
        yield "Answers whose reasoning is left out", f"{tokens.lost_reasoning:,}"
    if tokens.held_out_rows:
        yield "Rows held out for evaluation", f"{tokens.held_out_rows:,}{_share(tokens.held_out_rows, rows)}"
    if tokens.sequences:
        yield "Sequences to train on", f"{tokens.sequences:,}, {'packed' if tokens.packed else 'one example each'}"


def _pairs_of(report: DataReport) -> Iterator[tuple[str, str]]:
    found = report.preferences
    if found is None:
        return
    if found.desirable is not None and found.undesirable is not None:
        share = _share(found.desirable, found.desirable + found.undesirable)
        yield "Desirable answers", f"{found.desirable:,}{share}, undesirable {found.undesirable:,}"
    for name, lengths in (("chosen", found.chosen), ("rejected", found.rejected)):
        if lengths:
            yield (
                f"Tokens of {name} texts",
                f"half have at most {lengths.p50:,}; 90 % {lengths.p90:,}; longest {lengths.longest:,}",
            )


def _invalid(report: DataReport, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    if not report.invalid.rows:
        return
    yield "## Invalid rows\n\nWhy, the most frequent first:\n\n```\n"
    for kind in report.invalid.kinds:
        field = f"{kind.field}: " if kind.field else ""
        yield f"{kind.rows:>9,}  {_line(field + kind.reason)}\n"
    yield "```\n\nEach of them:\n\n```\n"
    shown = 0
    for first, last, count in _stretches(rows):
        shown += count
        unit = "line" if "line" in first else "row"
        place = f"{unit} {first[unit]}" if count == 1 else f"{unit}s {first[unit]} to {last[unit]}"
        field = f"{first['field']}: " if "field" in first else ""
        yield _line(f"{first['file']} {place}: {field}{first['reason']}") + "\n"
    left = report.invalid.rows - shown
    yield "```\n\n"
    if left:
        listed = report.invalid.rows - report.invalid.left_out
        yield f"{left:,} more are not shown here; {DATA_REPORT_JSON} lists {listed:,}.\n\n"


def _stretches(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], int]]:
    """Yield the first, the last and the number of bad rows that follow each other with the same fault."""
    first: Mapping[str, Any] = {}
    last, count = first, 0
    for row in rows:
        unit = "line" if "line" in row else "row"
        if count and row == {**last, unit: last.get(unit, row[unit]) + 1}:
            last, count = row, count + 1
            continue
        if count:
            yield first, last, count
        first, last, count = row, row, 1
    if count:
        yield first, last, count


def _lengths(lengths: LengthNotes, max_length: int) -> str:
    said = f"p50 {lengths.p50:,}, p90 {lengths.p90:,}, p99 {lengths.p99:,}, longest {lengths.longest:,}"
    largest = max(each.examples for each in lengths.histogram)
    lines = (_bar(each, before, largest, max_length) for each, before in _with_start(lengths.histogram))
    return _section("Lengths", [f"Tokens of an example before it is cut: {said}.", "", *_fenced(lines)])


def _with_start(histogram: Sequence[LengthBin]) -> Iterator[tuple[LengthBin, int | None]]:
    yield from zip(histogram, [None, *(each.up_to for each in histogram)], strict=False)


def _bar(each: LengthBin, before: int | None, largest: int, max_length: int) -> str:
    span = f"≤ {each.up_to:,}" if each.up_to is not None else f"> {before:,}" if before is not None else "all"
    beyond = each.up_to is None or each.up_to > max_length
    bar = "█" * max(1, round(_BAR * each.examples / largest)) if each.examples else ""
    return f"{span:>12}  {each.examples:>9,}  {bar}{'  cut' if beyond and each.examples else ''}"


def _examples(examples: Sequence[ShownExample]) -> Iterator[str]:
    if not examples:
        return
    yield (
        f"## {len(examples)} examples\n\nThe first row, and others as if drawn. Each is the text that the model reads, "
        "special tokens included; what it is taught stands between `[[` and `]]`.\n\n"
    )
    for number, example in enumerate(examples, 1):
        yield f"### {number}. {describe(example)}\n\n"
        for name, text in zip(_names(example), example.texts, strict=True):
            yield f"{name}:\n\n" if name else ""
            marked = _marked(text)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", marked)), default=0))
            yield f"{fence}\n{marked}\n{fence}\n\n"


def _names(example: ShownExample) -> tuple[str, ...]:
    return ("chosen", "rejected") if len(example.texts) > 1 else ("",)


def _marked(text: ShownText) -> str:
    return "".join(f"[[{_shown(part.text)}]]" if part.taught else _shown(part.text) for part in text.stretches)


def _shown(text: str) -> str:
    return _CONTROL.sub(lambda sign: _escaped(ord(sign[0])), text)


def _escaped(code: int) -> str:
    """Return a character of _CONTROL as Python writes it: of as many digits as its letter says."""
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _line(text: str) -> str:
    """Return a text as one line that neither a table nor a terminal stumbles over."""
    return _shown(" ".join(text.split()))


def _same(found: SameRow) -> str:
    return f"{_line(str(found.row))} = {_line(str(found.same_as))}"


def _cut(text: ShownText) -> str:
    return f", {text.cut_tokens:,} cut off" if text.cut_tokens else ""


def _share(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.3g} %)" if part and whole else ""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = [(name, value.replace("|", "\\|")) for name, value in rows]
    width = max(len(name) for name, _ in cells)
    lines = [f"| {name:<{width}} | {value} |" for name, value in cells]
    return "\n".join([f"| {'':<{width}} | |", f"|{'-' * (width + 2)}|---|", *lines, "", ""])


def _fenced(lines: Iterable[str]) -> list[str]:
    listed = list(lines)
    return ["```", *listed, "```"] if listed else []


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, "", ""]) if lines else ""
