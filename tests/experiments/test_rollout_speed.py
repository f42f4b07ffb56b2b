"""The benchmark of rollouts plays true games in one group and in two, beside the model alone."""

import pytest

from experiments.benchmarks import rollout_speed


def test_both_rollouts_are_timed_beside_the_model_alone(tiny, benchmark_rows):
    sizes = ["--num-envs", 4, "--steps", 12, "--rounds", 1]
    one, two = benchmark_rows(rollout_speed.main, "--checkpoint", tiny, *sizes)
    assert (one["benchmark"], two["benchmark"]) == ("rollout, one group", "rollout, two groups")
    assert one["baseline"] == two["baseline"] > 0
    assert min(one["candidate"], two["candidate"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--num-envs", 3), "must be even"), (("--steps", 2), "one per environment")]
)
def test_environments_come_in_two_groups_of_whole_steps(arguments, message, refusal):
    assert message in refusal(rollout_speed.main, *arguments)
