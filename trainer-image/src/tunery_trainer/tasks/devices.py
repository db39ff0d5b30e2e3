"""Which devices a run trains on, as preflight expects them and as training finds them, and what is said of them."""

from __future__ import annotations

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.device import actual_device, device_words, expected_device
from tunery_trainer.process.place import Place, counts_of, devices_here, place_of
from tunery_trainer.reporting.progress import ProgressReporter, say
from tunery_trainer.resuming.resume import with_taken
from tunery_trainer.resuming.taken_settings import Taken
from tunery_trainer.settings.types import DeviceFacts, DeviceKind


def place_for(work: Workspace) -> Place:
    """Return the place of this process among those that train `work`.

    Without a cluster as many devices train as there are here and can share an optimizer step; what they share a
    checkpoint may fix. Raises what `with_taken` raises.
    """
    if not work.run.local or devices_here(work.run) == 1:
        return place_of(work.run)
    spec, taken = with_taken(work)
    return place_of(work.run, taken.to_share(spec))


def devices_expected(work: Workspace, spec: LoRAJobSpec, taken: Taken) -> DeviceFacts:
    """Return what preflight expects training to run on; raises TuneryError(GPUUnavailable)."""
    devices, nodes = counts_of(work.run, taken.to_share(spec))
    return expected_device(work.run, spec.resources.gpus).together(devices, nodes)


def devices_found(work: Workspace, place: Place, reporter: ProgressReporter) -> DeviceFacts:
    """Return what training runs on, and say it before anything is brought for it.

    Raises TuneryError(GPUUnavailable) where a pod has no working GPU.
    """
    gpus = work.lora_job.resources.gpus
    facts = actual_device(work.run, gpus).together(place.devices, place.nodes)
    words = device_words(facts.kind)
    why = f": spec.resources.gpus is {gpus}, and this machine has no GPU that works"
    say(f"Device     {words}{why if gpus and facts.kind is DeviceKind.CPU else ''}")
    if facts.world > 1:
        say(f"Devices    {facts.words} train together")
    for line in _fewer(work, facts):
        say(f"Devices    {line}")
    reporter.device(words)
    return facts


def _fewer(work: Workspace, facts: DeviceFacts) -> list[str]:
    """Return why fewer devices train than the manifest asks for, of a machine that has some of them."""
    asked = work.lora_job.resources
    found: list[str] = []
    if not work.run.local:
        return found
    if asked.nodes > facts.nodes:
        found.append(f"spec.resources.nodes is {asked.nodes}: without a cluster all is trained here, on one node")
    if facts.kind is DeviceKind.CPU and facts.devices == 1:
        return found
    here = devices_here(work.run)
    if here < asked.gpus:
        found.append(f"spec.resources.gpus is {asked.gpus}, and this machine has {here}")
    if facts.devices < here:
        found.append(f"of {here} only {facts.devices}, as more could not share an optimizer step evenly")
    return found
