"""What a server is to serve: references, a selector, and what each object offers, in tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.adapterserver import AdapterSelector
from tunery_api.kinds import Kind
from tunery_api.remedies import INTO_MODEL
from tunery_api.serving import NO_KEYS, Desired, DesiredAdapter, HeldAdapter
from tunery_operator.observed.published_result import PublishedResult, parse_published_result
from tunery_operator.planning import desired as module
from tunery_operator.planning.desired import resolve
from tunery_operator.planning.resolution import Resolution, selects

from kit.operator.servers import by_name, published, server_spec

TEAM = {"adapterSelector": {"matchLabels": {"team": "support"}}}
REF = {"name": "bot", "loraJobRef": {"name": "bot"}}
BOT = published("bot")
EMPTY = Desired()


def named(found: Resolution) -> list[str]:
    return [item.name for item in found.desired.adapters]


def resolved(*found: PublishedResult, before: Desired = EMPTY, **spec: Any) -> Resolution:
    return resolve(server_spec(**spec), by_name(*found), before)


def test_a_reference_becomes_what_its_object_vouches_for() -> None:
    found = resolved(BOT, adapters=[REF])
    assert found == Resolution(
        Desired(
            revision=1,
            adapters=[
                DesiredAdapter(
                    name="bot", uri="s3://adapters/bot", manifest_sha256=BOT.manifest_sha256, source="LoRAJob/bot"
                )
            ],
            api_keys=NO_KEYS,
        )
    )


def test_a_uri_is_taken_as_it_stands_with_its_pin() -> None:
    found = resolved(
        adapters=[{"name": "a", "uri": "s3://b/a/", "manifestSha256": "0" * 64}, {"name": "b", "uri": "s3://b/b"}]
    )
    assert [(item.uri, item.manifest_sha256, item.source) for item in found.desired.adapters] == [
        ("s3://b/a", "0" * 64, "uri"),
        ("s3://b/b", None, "uri"),
    ]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "LoRAJob bot does not exist yet"),
        (published("bot", phase="Training", uri=None), "LoRAJob bot is Training"),
    ],
)
def test_what_is_not_there_yet_is_waited_for(found: PublishedResult | None, message: str) -> None:
    result = resolved(*filter(None, [found]), adapters=[REF])
    assert [item.message for item in result.pending] == [message]
    assert named(result) == []
    held = [HeldAdapter(name="bot", reason="AdapterWaiting", message=message)]
    assert result.desired == Desired(revision=1, held=held, api_keys=NO_KEYS), "whoever asks for it is told why"


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            {"served_name": "Qwen2.5-7B"},
            "BaseMismatch",
            "it was trained on Qwen2.5-7B, and the model of this server is tiny",
        ),
        ({"method": "DoRA"}, "AdapterUnsupported", "its method is DoRA; only LoRA is served"),
        ({"method": "QDoRA"}, "AdapterUnsupported", "its method is QDoRA; only LoRA is served"),
        ({"method": "PromptTuning"}, "AdapterUnsupported", "its method is PromptTuning"),
        ({"rank": 65}, "RankTooHigh", "its rank is 65, engine.maxRank is 64"),
        ({"phase": "Failed", "uri": None}, "AdapterMissing", "LoRAJob bot has failed"),
        ({"phase": "Stopped", "uri": None}, "AdapterMissing", "was stopped and has published no adapter"),
        ({"phase": "Succeeded", "uri": None}, "AdapterMissing", "has succeeded and published no adapter"),
        (
            {"phase": "Succeeded", "uri": None, "removed_by": "s"},
            "AdapterMissing",
            "LoRAJob bot was a trial of LoRASweep s, which has removed its adapter (spec.keepAdapters)",
        ),
    ],
)
def test_what_can_be_told_from_the_object_is_refused_before_any_replica_hears_of_it(
    change: dict[str, Any], reason: str, words: str
) -> None:
    found = resolved(replace(BOT, **change), adapters=[REF])
    (rejected,) = found.rejected
    assert (rejected.reason, named(found)) == (reason, [])
    assert words in rejected.message
    assert rejected.remedy.text


def test_the_hint_of_a_rank_names_the_one_that_is_enough() -> None:
    (rejected,) = resolved(replace(BOT, rank=65), adapters=[REF]).rejected
    assert "Raise engine.maxRank to 128" in rejected.remedy.text
    (beyond,) = resolved(replace(BOT, rank=1024), adapters=[REF]).rejected
    assert beyond.message.endswith("none above 512 is served")
    assert beyond.remedy == INTO_MODEL


def test_what_was_trained_on_a_quantised_base_is_served_with_a_note() -> None:
    found = resolved(replace(BOT, method="QLoRA"), adapters=[REF])
    assert named(found) == ["bot"]
    ((name, message),) = found.notes
    assert name == "bot"
    assert "For exact answers, merge it with an AdapterMerge into: Model" in message


def test_a_stopped_job_that_has_published_may_be_named_but_is_not_selected() -> None:
    stopped = replace(BOT, phase="Stopped")
    assert named(resolved(stopped, adapters=[REF])) == ["bot"]
    assert named(resolved(stopped, **TEAM)) == []


def test_a_merge_into_a_model_is_no_adapter() -> None:
    whole = published("m", kind=Kind.ADAPTERMERGE, into="Model")
    (rejected,) = resolved(whole, adapters=[{"name": "m", "adapterMergeRef": {"name": "m"}}]).rejected
    assert "model of its own AdapterServer" in rejected.remedy.text
    (skipped,) = resolved(whole, **TEAM).skipped
    assert skipped == ("AdapterMerge/m", "is a full model (into: Model)")


# The selector


def test_the_selector_takes_what_has_succeeded_for_this_base_and_skips_the_rest_of_it() -> None:
    found = resolved(
        BOT,
        published("other-team", labels={"team": "sales"}),
        published("training", phase="Training", uri=None),
        published("foreign", served_name="Qwen2.5-7B"),
        published("deep", rank=256),
        published("tiny"),
        published("n" * 129),
        **TEAM,
    )
    assert named(found) == ["bot"]
    assert [(item.name, item.reason.value) for item in found.rejected] == [("deep", "RankTooHigh")]
    assert dict(found.skipped) == {
        "LoRAJob/foreign": "is for base Qwen2.5-7B",
        "LoRAJob/tiny": "has the name of the base model; spec.adapters can give it another",
        f"LoRAJob/{'n' * 129}": "has a name of more than 128 characters; spec.adapters can give it another",
    }
    assert found.pending == ()


def test_the_best_of_a_sweep_is_selected_by_its_labels() -> None:
    found = resolved(published("search", kind=Kind.LORASWEEP, labels={"team": "support"}), **TEAM)
    [adapter] = found.desired.adapters
    assert (adapter.name, adapter.source) == ("search", "LoRASweep/search")


def test_an_entry_of_the_spec_goes_before_the_selector_and_the_older_object_before_the_younger() -> None:
    both = [published("bot", created="2026-01-02"), published("bot", kind=Kind.ADAPTERMERGE, created="2026-01-01")]
    found = resolved(*both, **TEAM)
    assert [item.source for item in found.desired.adapters] == ["AdapterMerge/bot"]
    assert found.skipped == (("LoRAJob/bot", "AdapterMerge/bot has the same name and is older"),)
    entry = resolved(*both, **TEAM, adapters=[{"name": "bot", "uri": "s3://a/b"}])
    assert [item.source for item in entry.desired.adapters] == ["uri"]
    assert {item.reason for item in entry.skipped} == {"spec.adapters has an entry of this name"}


def test_what_is_both_named_and_selected_is_one_adapter() -> None:
    found = resolved(BOT, **TEAM, adapters=[REF])
    assert (named(found), found.skipped) == (["bot"], ())


@pytest.mark.parametrize(
    ("expression", "labels", "selected"),
    [
        (("In", ["a", "b"]), {"k": "a"}, True),
        (("In", ["a", "b"]), {}, False),
        (("NotIn", ["a"]), {"k": "b"}, True),
        (("NotIn", ["a"]), {}, True),
        (("NotIn", ["a"]), {"k": "a"}, False),
        (("Exists", None), {"k": ""}, True),
        (("Exists", None), {}, False),
        (("DoesNotExist", None), {}, True),
        (("DoesNotExist", None), {"k": "a"}, False),
    ],
)
def test_labels_are_compared_as_kubernetes_compares_them(
    expression: tuple[str, list[str] | None], labels: dict[str, str], selected: bool
) -> None:
    operator, values = expression
    requirement = {"key": "k", "operator": operator, "values": values}
    selector = AdapterSelector.model_validate({"matchExpressions": [requirement]})
    assert selects(selector, labels) is selected


# What was served before


def test_of_a_deleted_object_the_spec_keeps_what_it_names_and_the_selector_drops_what_it_finds() -> None:
    before = resolved(BOT, adapters=[REF]).desired
    retained = resolved(before=before, adapters=[REF])
    assert (retained.desired, retained.pending) == (before, ())
    (word,) = retained.retained
    assert word.message == (
        "LoRAJob bot does not exist any more; what it published before is served until spec.adapters drops it"
    )
    dropped = resolved(before=before, **TEAM)
    assert (named(dropped), dropped.retained, dropped.desired.revision) == ([], (), 2)


def test_while_an_object_of_the_same_name_trains_anew_the_old_content_is_served() -> None:
    before = resolved(BOT, adapters=[REF]).desired
    again = published("bot", phase="Training", uri=None, manifest_sha256=None)
    training = resolved(again, before=before, adapters=[REF])
    assert training.desired == before
    assert training.retained[0].message.endswith("is served until it has published again")
    done = resolved(published("bot", manifest_sha256="ee" * 32), before=before, adapters=[REF])
    assert [item.manifest_sha256 for item in done.desired.adapters] == ["ee" * 32]
    assert done.desired.revision == before.revision + 1


def test_a_name_that_leads_elsewhere_now_keeps_nothing_of_what_it_led_to() -> None:
    before = resolved(BOT, adapters=[REF]).desired
    found = resolved(before=before, adapters=[{"name": "bot", "loraJobRef": {"name": "other"}}])
    assert (named(found), [item.name for item in found.pending]) == ([], ["bot"])


def test_new_content_that_is_refused_leaves_the_old_in_its_place() -> None:
    before = resolved(BOT, adapters=[REF]).desired
    worse = replace(BOT, rank=128, manifest_sha256="ee" * 32)
    found = resolved(worse, before=before, adapters=[REF])
    assert (found.desired, found.rejected[0].manifest_sha256) == (before, "ee" * 32)
    other = replace(BOT, served_name="another/base")
    assert named(resolved(other, before=before, adapters=[REF])) == []


@pytest.mark.parametrize("how", [{"adapters": [REF]}, TEAM])
def test_what_other_settings_of_the_engine_refuse_stays_listed_for_replicas_of_those_before(how: Any) -> None:
    before = resolved(replace(BOT, rank=32), **how).desired
    lowered = resolved(replace(BOT, rank=32), before=before, engine={"maxRank": 16}, **how)
    assert (lowered.desired, [item.reason for item in lowered.rejected]) == (before, ["RankTooHigh"])
    anew = resolved(replace(BOT, rank=32), engine={"maxRank": 16}, **how)
    assert (named(anew), [item.reason for item in anew.rejected]) == ([], ["RankTooHigh"])


def test_what_an_engine_of_fewer_adapters_has_no_place_for_stays_listed_for_replicas_of_those_before() -> None:
    stay = [{"name": name, "uri": f"s3://adapters/{name}", "keepLoaded": True} for name in ("a", "b")]
    spec = {"adapters": [*stay, {"name": "c", "uri": "s3://adapters/c"}]}
    before = resolved(**spec, engine={"maxLoadedAdapters": 3, "maxAdaptersInBatch": 1}).desired
    fewer = resolved(before=before, **spec, engine={"maxLoadedAdapters": 1, "maxAdaptersInBatch": 1})
    assert fewer.desired == before
    assert {item.name: item.reason.value for item in fewer.rejected} == {"b": "TooManyAdapters", "c": "TooManyAdapters"}
    assert named(resolved(**spec, engine={"maxLoadedAdapters": 1, "maxAdaptersInBatch": 1})) == ["a"]


def test_the_revision_rises_only_with_a_change() -> None:
    first = resolved(BOT, **TEAM).desired
    assert resolved(BOT, before=first, **TEAM).desired == first
    assert resolved(BOT, published("more"), before=first, **TEAM).desired.revision == first.revision + 1


# Room in the engine


KEPT = {"adapters": [{"name": f"k{number}", "uri": f"s3://a/k{number}", "keepLoaded": True} for number in range(9)]}
LIMIT = {"engine": {"maxLoadedAdapters": 8}}


def test_there_may_be_more_adapters_than_the_engine_holds() -> None:
    found = resolved(*(published(f"a{number}") for number in range(40)), **TEAM, **LIMIT)
    assert (len(found.desired.adapters), found.rejected) == (40, ())
    assert {item.keep_loaded for item in found.desired.adapters} == {False}


def test_more_that_stay_loaded_than_the_engine_holds_are_refused_and_what_could_never_be_loaded_too() -> None:
    room = resolved(BOT, **TEAM, **LIMIT, adapters=KEPT["adapters"][:7])
    assert [item.name for item in room.desired.adapters if item.keep_loaded] == [f"k{number}" for number in range(7)]
    assert "bot" in named(room)
    found = resolved(BOT, **TEAM, **LIMIT, **KEPT)
    assert named(found) == [f"k{number}" for number in range(8)]
    assert {item.name: item.message for item in found.rejected} == {
        "k8": "engine.maxLoadedAdapters is 8, and as many others before it have keepLoaded",
        "bot": "engine.maxLoadedAdapters is 8, and adapters with keepLoaded take all of it",
    }
    assert {tuple(item.remedy.fields) for item in found.rejected} == {("engine.maxLoadedAdapters",)}


def test_what_goes_on_after_its_object_was_deleted_stays_loaded_as_the_spec_says_today() -> None:
    before = resolved(BOT, adapters=[REF | {"keepLoaded": True}]).desired
    assert before.adapters[0].keep_loaded
    assert not resolved(before=before, adapters=[REF]).desired.adapters[0].keep_loaded


# What replicas are told beside the adapters


def test_a_name_that_is_refused_is_held_with_the_reason_unless_its_old_content_is_served() -> None:
    deep = replace(BOT, rank=128)
    (held,) = resolved(deep, adapters=[REF]).desired.held
    assert (held.name, held.reason, held.message) == ("bot", "RankTooHigh", "its rank is 128, engine.maxRank is 64")
    before = resolved(BOT, adapters=[REF]).desired
    assert resolved(replace(deep, manifest_sha256="ee" * 32), before=before, adapters=[REF]).desired.held == []


def test_held_messages_are_short_and_all_of_them_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"name": "n", "loraJobRef": {"name": "x" * 253}}
    (held,) = resolved(adapters=[long]).desired.held
    assert len(held.message) <= module.MAX_HELD
    monkeypatch.setattr(module, "MAX_BYTES", 500)
    pending = [{"name": f"a{number}", "loraJobRef": {"name": f"a{number}"}} for number in range(30)]
    assert 0 < len(resolved(adapters=pending).desired.held) < 10


ALIASES = [{"name": "bot:prod", "targets": [{"adapter": "bot", "weight": 95}, {"adapter": "tiny", "weight": 5}]}]
ACCESS = {"apiKeysSecretRef": {"name": "k"}, "clients": [{"name": "alice", "models": ["bot", "bot:prod"]}]}


def test_aliases_and_clients_are_told_and_each_change_of_them_has_a_number() -> None:
    first = resolved(BOT, adapters=[REF]).desired
    with_alias = resolved(BOT, before=first, adapters=[REF], aliases=ALIASES).desired
    assert (with_alias.revision, [alias.name for alias in with_alias.aliases]) == (first.revision + 1, ["bot:prod"])
    limited = resolved(BOT, before=with_alias, adapters=[REF], aliases=ALIASES, access=ACCESS).desired
    assert (limited.revision, limited.clients) == (first.revision + 2, {"alice": ["bot", "bot:prod"]})
    flipped = [{"name": "bot:prod", "targets": [{"adapter": "bot"}]}]
    again = resolved(BOT, before=limited, adapters=[REF], aliases=flipped, access=ACCESS).desired
    assert again.revision == first.revision + 3
    assert resolved(BOT, before=again, adapters=[REF], aliases=flipped, access=ACCESS).desired == again
    assert resolved(BOT, before=again, adapters=[REF | {"keepLoaded": True}]).desired.revision == again.revision + 1


@pytest.mark.parametrize(
    ("found", "dangling_aliases"),
    [
        pytest.param([BOT], [], id="served"),
        pytest.param([replace(BOT, rank=128)], [], id="refused"),
        pytest.param([published("bot", phase="Training", uri=None)], [], id="on-its-way"),
        pytest.param([], [("bot:prod", "bot")], id="nothing"),
        pytest.param([replace(BOT, labels={})], [("bot:prod", "bot")], id="without-the-label"),
        pytest.param([replace(BOT, served_name="other")], [("bot:prod", "bot")], id="for-another-base"),
    ],
)
def test_what_an_alias_leads_to_is_known_or_the_alias_leads_astray(
    found: list[PublishedResult], dangling_aliases: list[tuple[str, str]]
) -> None:
    assert list(resolved(*found, **TEAM, aliases=ALIASES).dangling_aliases) == dangling_aliases


def test_a_selected_object_does_not_take_the_name_of_an_alias() -> None:
    found = resolved(published("bot:prod"), BOT, **TEAM, aliases=ALIASES)
    assert named(found) == ["bot"]
    assert found.skipped[0].reason.startswith("spec.aliases has an alias of this name")


# Limits


def test_the_list_never_outgrows_a_config_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 400)
    found = resolved(*(published(f"a{number}") for number in range(5)), **TEAM)
    assert 0 < len(found.desired.adapters) < 5
    assert len(found.desired.adapters) + len(found.rejected) == 5
    assert {item.reason.value for item in found.rejected} == {"TooManyAdapters"}


_NAMES = st.sampled_from(["bot", "tone", "tiny", "x", "y"])
_OFFERS = st.lists(
    st.builds(
        published,
        _NAMES,
        kind=st.sampled_from([Kind.LORAJOB, Kind.ADAPTERMERGE]),
        created=st.sampled_from(["2026-01-01", "2026-01-02"]),
        phase=st.sampled_from(["Succeeded", "Training", "Failed"]),
        served_name=st.sampled_from(["tiny", "other"]),
        rank=st.sampled_from([16, 128]),
        into=st.sampled_from(["Adapter", "Model"]),
    ),
    unique_by=lambda item: (item.kind, item.name),
)


@given(_OFFERS, st.randoms(use_true_random=False))
def test_the_order_of_the_offers_never_matters(found: list[PublishedResult], random: Any) -> None:
    spec = server_spec(adapters=[REF], engine={"maxLoadedAdapters": 8}, **TEAM)
    before = Desired(revision=3, adapters=[DesiredAdapter(name="bot", uri="s3://old", source="LoRAJob/bot")])
    shuffled = list(found)
    random.shuffle(shuffled)
    first = resolve(spec, by_name(*found), before)
    assert resolve(spec, by_name(*shuffled), before) == first
    assert resolve(spec, by_name(*found), first.desired).desired == first.desired


def test_an_offer_is_read_from_what_the_api_server_has() -> None:
    body = {
        "metadata": {"name": "bot", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a": "b"}},
        "spec": {},
        "status": {
            "phase": "Succeeded",
            "adapter": {"uri": "s3://a/b", "manifestSha256": "ab" * 32, "servedName": "t", "rank": 8, "sizeBytes": 9},
            "resolved": {"method": "QLoRA"},
        },
    }
    found = parse_published_result(Kind.LORAJOB, body)
    assert (found.source, found.method, found.rank, found.size_bytes) == ("LoRAJob/bot", "QLoRA", 8, 9)
    assert (found.served_name, found.into) == ("t", None)
    assert parse_published_result(Kind.ADAPTERMERGE, body).into == "Adapter"
    assert parse_published_result(Kind.LORAJOB, {"metadata": body["metadata"]}).phase == "Pending"
