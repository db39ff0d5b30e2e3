"""Which objects a selector of labels finds, as in metav1.LabelSelector."""

from __future__ import annotations

from collections.abc import Mapping

from tunery_api.adapterserver import AdapterSelector, LabelOperator, LabelRequirement


def selects(selector: AdapterSelector, labels: Mapping[str, str]) -> bool:
    """Tell whether an object with these labels is selected."""
    named = all(labels.get(key) == value for key, value in (selector.match_labels or {}).items())
    return named and all(_holds(item, labels) for item in selector.match_expressions or ())


def _holds(item: LabelRequirement, labels: Mapping[str, str]) -> bool:
    there, values = item.key in labels, item.values or ()
    match item.operator:
        case LabelOperator.IN:
            return there and labels[item.key] in values
        case LabelOperator.NOT_IN:
            # As in Kubernetes: an object without the label is not in.
            return not there or labels[item.key] not in values
        case LabelOperator.EXISTS:
            return there
        case LabelOperator.DOES_NOT_EXIST:
            return not there
