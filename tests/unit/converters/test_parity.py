"""Parity is a proof only if wrong answers fail it: each of these mutations must."""

import numpy as np
import pytest

from modelfleet.converters.parity import parity, scaled_tolerance
from modelfleet.hardware_profiles.profile import Precision, load_profiles
from modelfleet.signer.manifest import Tolerance

PROFILES = load_profiles()
FLOAT = PROFILES["linux-cpu-float"].tolerances[Precision.FLOAT]
INT8 = PROFILES["linux-cpu-int8"].tolerances[Precision.INT8]
RANDOM = np.random.default_rng(0)
EXPECTED = {"logits": (4 * RANDOM.standard_normal((200, 10))).astype(np.float32)}


def share(got: np.ndarray, tolerance=INT8) -> float:
    return parity(EXPECTED, {"logits": got}, scaled_tolerance(tolerance, EXPECTED)).mismatch_share


def test_equal_answers_agree_exactly():
    found = parity(EXPECTED, EXPECTED, scaled_tolerance(FLOAT, EXPECTED))
    assert (found.max_error, found.mean_error, found.mismatch_share, found.samples) == (0, 0, 0, 200)


def test_errors_of_another_order_of_summation_agree():
    noisy = EXPECTED["logits"] * (1 + 1e-6 * RANDOM.standard_normal((200, 10)).astype(np.float32))
    assert share(noisy, FLOAT) == 0


def test_errors_of_eight_bits_agree_as_int8_but_not_as_float():
    step = (EXPECTED["logits"].max() - EXPECTED["logits"].min()) / 255
    rounded = np.round(EXPECTED["logits"] / step) * step
    assert share(rounded) <= INT8.mismatch_share
    assert share(rounded, FLOAT) > 0.5


@pytest.mark.parametrize("tolerance", [FLOAT, INT8])
@pytest.mark.parametrize(
    "mutation",
    [
        lambda y: np.roll(y, 1, axis=1),  # off by one in the labels
        lambda y: y[:, [1, 0, *range(2, 10)]],  # two classes swapped
        lambda y: y[:, ::-1],
        lambda y: np.roll(y, 1, axis=0),  # the answers of another sample
        lambda y: -y,
        lambda y: 1.3 * y,
        lambda y: np.zeros_like(y),
        lambda y: np.maximum(y, 0),  # one Relu too many
        lambda y: y + 1,
    ],
)
def test_a_wrong_variant_lies_outside_the_tolerance(tolerance, mutation):
    assert share(mutation(EXPECTED["logits"]), tolerance) > tolerance.mismatch_share


def test_two_outputs_that_were_exchanged_lie_outside():
    expected = {"a": EXPECTED["logits"], "b": EXPECTED["logits"][::-1]}
    swapped = {"a": expected["b"], "b": expected["a"]}
    found = parity(expected, swapped, scaled_tolerance(INT8, expected))
    assert found.mismatch_share > INT8.mismatch_share


def test_an_output_of_small_scale_is_not_forgiven_by_one_of_large_scale():
    expected = {"boxes": 300 + 100 * EXPECTED["logits"], "scores": np.abs(EXPECTED["logits"]) / 20}
    wrong = expected | {"scores": np.roll(expected["scores"], 1, axis=1)}
    found = parity(expected, wrong, scaled_tolerance(INT8, expected))
    assert found.worst_output == "scores"
    assert found.mismatch_share > INT8.mismatch_share


def test_a_missing_output_is_wrong_everywhere_and_worst():
    found = parity(EXPECTED | {"other": EXPECTED["logits"]}, EXPECTED, scaled_tolerance(INT8, EXPECTED))
    assert (found.worst_output, found.mismatch_share) == ("other", 1.0)
    assert found.max_error > 1e300


def test_answers_that_are_not_finite_are_outside():
    assert share(np.full((200, 10), np.nan, np.float32)) == 1.0


def test_the_absolute_tolerance_follows_the_scale_of_the_outputs():
    found = scaled_tolerance(INT8, {"y": np.full((4, 4), 20, np.float32)})
    assert found == Tolerance(rtol=0.1, atol=2.0, mismatch_share=0.05)


def test_accuracies_of_both_are_told():
    labels = EXPECTED["logits"].argmax(1)
    rolled = {"logits": np.roll(EXPECTED["logits"], 1, axis=1)}
    found = parity(EXPECTED, rolled, scaled_tolerance(INT8, EXPECTED), labels)
    assert (found.original_accuracy, found.accuracy) == (1.0, 0.0)
