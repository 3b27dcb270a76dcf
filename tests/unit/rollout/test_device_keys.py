"""Which manifests a device may have keys for: what its two documents name for it, and nothing else."""

from modelfleet.rollout.desired.device_keys import named_manifests
from modelfleet.signer.desired import Slot
from tests.unit.signer import samples

OLD, NEW, OTHER = (samples.release(samples.manifest(version=version)) for version in ("0.9.0", "1.0.0", "2.0.0"))
DEVICE = samples.DEVICE


def test_a_device_without_documents_has_none() -> None:
    assert named_manifests(None, None, DEVICE) == frozenset()
    assert named_manifests(samples.group(None), samples.assignment(), DEVICE) == frozenset()


def test_stable_and_the_candidate_that_it_takes_are_named() -> None:
    document = samples.group(OLD, samples.candidate(NEW))
    assert named_manifests(document, samples.assignment(), DEVICE) == {OLD.sha256, NEW.sha256}


def test_a_candidate_that_was_halted_is_still_named_for_those_who_have_it() -> None:
    document = samples.group(OLD, samples.candidate(NEW, accept=False))
    assert NEW.sha256 in named_manifests(document, None, DEVICE)


def test_a_candidate_for_other_devices_is_not_named() -> None:
    document = samples.group(OLD, samples.candidate(NEW, below=0))
    assert named_manifests(document, None, DEVICE) == {OLD.sha256}


def test_a_pin_stands_in_place_of_its_slot_and_of_no_other() -> None:
    slots = {"classifier": Slot(stable=OLD), "detector": Slot(stable=OTHER)}
    document = samples.group(None, slots=slots)
    pinned = samples.assignment(pins={"classifier": NEW})
    assert named_manifests(document, pinned, DEVICE) == {NEW.sha256, OTHER.sha256}
    emptied = samples.assignment(pins={"classifier": None})
    assert named_manifests(document, emptied, DEVICE) == {OTHER.sha256}
