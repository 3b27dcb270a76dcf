import pytest

from modelfleet.policies.errors import PlanError
from modelfleet.policies.plan import Plan, default_plan_text, parse_plan, plan_as_dict, plan_sha256


def test_default_file_is_the_default_plan():
    assert parse_plan(default_plan_text()) == parse_plan(None) == Plan()


def test_default_plan_is_the_requirement():
    plan = parse_plan()
    assert plan.stages == (0.05, 0.25, 0.5, 1.0)
    assert (plan.limits.latency_ms, plan.limits.accuracy, plan.error_threshold) == (100.0, 0.85, 0.01)
    assert (plan.literal.share, plan.literal.window_seconds, plan.literal.min_inferences) == (0.01, 1800.0, 5000)
    assert (plan.alpha, plan.beta, plan.delta, plan.min_canaries, plan.max_hold_seconds) == (
        0.01,
        0.05,
        0.25,
        2,
        86400.0,
    )


def test_plan_survives_its_own_json():
    plan = parse_plan(
        {"stages": [0.1, 1], "bake_seconds": [1, 2], "error_threshold": 0.1, "p0_reason": "labelled traffic"}
    )
    assert parse_plan(plan_as_dict(plan)) == plan


def test_equal_plans_have_equal_digests_however_numbers_are_written():
    assert plan_sha256(parse_plan({"bake_seconds": 5})) == plan_sha256(
        parse_plan("bake_seconds = [5.0, 5.0, 5.0, 5.0]")
    )
    assert plan_sha256(parse_plan({"bake_seconds": 5})) != plan_sha256(parse_plan({"bake_seconds": 6}))
    assert plan_sha256(parse_plan({"limits": {"latency_ms": 100}})) == plan_sha256(parse_plan())


def test_one_bake_time_holds_for_every_stage():
    assert parse_plan({"stages": [0.5, 1.0], "bake_seconds": 7}).bake_seconds == (7.0, 7.0)


def test_literal_rule_follows_the_plans_own_threshold():
    assert parse_plan({"error_threshold": 0.2, "p0_reason": "marks wrong labels"}).literal.share == 0.2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"stages": [0.5, 0.25, 1.0]}, "stages"),
        ({"stages": [0.5, 0.5, 1.0]}, "stages"),
        ({"stages": [0.0, 1.0]}, "stages"),
        ({"stages": [0.05, 0.5]}, "stages"),
        ({"stages": []}, "stages"),
        ({"stages": "all"}, "stages"),
        ({"stages": [True]}, "stages"),
        ({"bake_seconds": [1, 2]}, "bake_seconds"),
        ({"error_threshold": 0.2}, "p0_reason"),
        ({"error_threshold": float("nan")}, "error_threshold"),
        ({"alpha": 0}, "alpha"),
        ({"beta": 1}, "beta"),
        ({"min_canaries": 0}, "min_canaries"),
        ({"min_canaries": 1.5}, "min_canaries"),
        ({"accept_unsigned": 1}, "accept_unsigned"),
        ({"limits": {"latency_ms": -1}}, "limits"),
        ({"limits": {"colour": 1}}, "limits.colour"),
        ({"limits": 5}, "limits"),
        ({"literal": {"window_seconds": "long"}}, "literal.window_seconds"),
        ({"literal": []}, "literal"),
        ({"speed": "fast"}, "speed"),
        ("stages = [", "TOML"),
    ],
)
def test_refuses_a_plan_and_names_the_field(given, named):
    with pytest.raises(PlanError) as refused:
        parse_plan(given)
    assert named in str(refused.value)


def test_names_every_bad_field_at_once():
    with pytest.raises(PlanError) as refused:
        parse_plan({"alpha": 2, "beta": -1, "stages": [0.5, "x"], "speed": 1})
    assert len(refused.value.problems) == 4
