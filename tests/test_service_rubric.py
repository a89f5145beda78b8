"""A rubric served over HTTP: the file of `nava score`, and totals of one clip at a time."""

import pytest

from experiments.serving import config_from, rubric_notices
from orchestration.service.app import total_of
from orchestration.service.schema import RewardAnswer
from rewards.rubric import Rubric
from rewards.types import Score

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve, as it is imported
SIZES = {"batch": 8, "replicas": 1, "cpus": 0.0, "gpus": 0.0}
RAW = {
    "snr_estimate_db": {"weight": 0.1, "normalise": "none"},
    "picture_noise_judge": {"weight": 0},
    "sync_mini.rho_zero": {"weight": 2.0, "normalise": "none", "floor": 0.1, "below": "nan"},
}


class Hum:
    name = "hum"
    lower_is_better = True

    def score(self, clips):
        return [Score(0.0)]


PLUGIN = f"{__name__}:Hum"


def answers(snr=20.0, rho=0.5):
    return {
        "snr_estimate_db": RewardAnswer(value=snr),
        "picture_noise_judge": RewardAnswer(reason="no picture"),
        "sync_mini": RewardAnswer(value=1.0, parts={"rho_zero": rho}),
    }


def test_the_total_is_that_of_the_rubric():
    total = total_of(Rubric.from_config(RAW), answers())
    assert total and total.value == pytest.approx(0.1 * 20 + 2 * 0.5)
    assert total.parts == pytest.approx({"snr_estimate_db": 2.0, "sync_mini.rho_zero": 1.0})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sync_mini": RewardAnswer(error="its process died")}, "its process died"),
        ({"sync_mini": RewardAnswer(reason="no face")}, "no face"),
        ({"sync_mini": RewardAnswer(value=1.0, parts={"rho": 1.0})}, "no part 'rho_zero'"),
        ({"sync_mini": RewardAnswer(value=1.0, parts={"rho_zero": 0.05})}, "0.05 is beyond the floor 0.1"),
    ],
)
def test_a_total_that_cannot_be_formed_has_the_reason(changed, reason):
    total = total_of(Rubric.from_config(RAW), answers() | changed)
    assert total and total.value is None and reason in total.reason


def test_one_clip_has_no_z_score():
    total = total_of(Rubric.from_config({"snr_estimate_db": None}), answers())
    assert total and total.value is None and "normalise: group" in total.reason


def test_without_all_its_rewards_there_is_no_total():
    some = {name: answer for name, answer in answers().items() if name != "sync_mini"}
    assert total_of(Rubric.from_config(RAW), some) is None


def test_the_file_names_rewards_and_options(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"items: {{'{PLUGIN}': {{weight: -1, normalise: none}}, snr_estimate_db: {{weight: 1}}}}\n"
        "guardrails: {min_motion: 0.1}\n"
    )
    config = config_from([], [], [], [], tmp_path, "t" * 20, path, **SIZES)
    assert config.rewards == (PLUGIN, "snr_estimate_db") and config.rubric
    notices = rubric_notices(path)
    assert len(notices) == 2 and "items.snr_estimate_db.normalise: group" in notices[0]
    with pytest.raises(ValueError, match=f"items.{PLUGIN}: not among --rewards"):
        config_from(["snr_estimate_db"], [], [], [], tmp_path, "t" * 20, path, **SIZES)
    path.write_text(f"items: {{'{PLUGIN}': {{weight: 1}}}}")
    with pytest.raises(ValueError, match="lower is better, so give it a negative weight"):
        config_from([], [], [], [], tmp_path, "t" * 20, path, **SIZES)


def test_a_served_reward_of_ones_own_says_its_direction():
    from orchestration.service.deployment import described

    assert described(PLUGIN).lower_is_better and not described("no.such:Class").lower_is_better
