"""Katib's Optuna suggestion service in this process: experiments as JSON lines in, assignments as JSON lines out.

A program for the environment that bench/katib.py makes: it imports Katib, and nothing of ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pkg.apis.manager.v1beta1.python import api_pb2
from pkg.suggestion.v1beta1.optuna.service import OptunaService


def request(asked: dict[str, Any]) -> Any:
    """Return what Katib's controller would send: the experiment, all its trials, and how many more it wants."""
    algorithm = api_pb2.AlgorithmSpec(
        algorithm_name=asked["algorithm"],
        algorithm_settings=[
            api_pb2.AlgorithmSetting(name=name, value=value) for name, value in asked["settings"].items()
        ],
    )
    objective = api_pb2.ObjectiveSpec(type=api_pb2.MINIMIZE, objective_metric_name="loss")
    parameters = api_pb2.ExperimentSpec.ParameterSpecs(parameters=[parameter(each) for each in asked["parameters"]])
    spec = api_pb2.ExperimentSpec(algorithm=algorithm, objective=objective, parameter_specs=parameters)
    return api_pb2.GetSuggestionsRequest(
        experiment=api_pb2.Experiment(name="bench", spec=spec),
        trials=[trial(each, objective) for each in asked["trials"]],
        current_request_number=asked["count"],
        total_request_number=asked["count"] + len(asked["trials"]),
    )


def parameter(told: dict[str, Any]) -> Any:
    """Return a parameter: one of several texts, or a number within a range."""
    if "choices" in told:
        space = api_pb2.FeasibleSpace(list=told["choices"])
        return api_pb2.ParameterSpec(name=told["name"], parameter_type=api_pb2.CATEGORICAL, feasible_space=space)
    distribution = api_pb2.LOG_UNIFORM if told["log"] else api_pb2.UNIFORM
    space = api_pb2.FeasibleSpace(min=told["min"], max=told["max"], distribution=distribution)
    return api_pb2.ParameterSpec(name=told["name"], parameter_type=api_pb2.DOUBLE, feasible_space=space)


def trial(told: dict[str, Any], objective: Any) -> Any:
    """Return a trial that has ended: with its loss where it succeeded."""
    values = [api_pb2.ParameterAssignment(name=name, value=value) for name, value in told["values"].items()]
    assignments = api_pb2.TrialSpec.ParameterAssignments(assignments=values)
    loss = [api_pb2.Metric(name="loss", value=told["loss"])] if told["loss"] is not None else []
    kinds = api_pb2.TrialStatus.TrialConditionType
    status = api_pb2.TrialStatus(
        condition=kinds.SUCCEEDED if loss else kinds.FAILED, observation=api_pb2.Observation(metrics=loss)
    )
    spec = api_pb2.TrialSpec(objective=objective, parameter_assignments=assignments)
    return api_pb2.Trial(name=told["name"], spec=spec, status=status)


def main() -> None:
    """Answer each line."""
    service = OptunaService()
    for line in sys.stdin:
        asked = json.loads(line)
        service = OptunaService() if asked["new"] else service
        try:
            reply = service.GetSuggestions(request(asked), None)
        except Exception as error:  # noqa: BLE001  # whatever it raises is what its user gets
            answer: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
        else:
            points = [{each.name: each.value for each in one.assignments} for one in reply.parameter_assignments]
            answer = {"points": points}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
