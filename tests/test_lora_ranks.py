import pytest
import torch
from lora_ranks import STEPS, Case, run_case
from model_cases import audio_stream, conditioning, debug_model, present, video_stream

from finetune.lora import GROUPS, LoraConfig, adapter_parameters, inject
from pretrain.model.checkpoint import put

pytestmark = pytest.mark.distributed
EVERYTHING = ("start", "base", "loss", "answer/default", "answer/old", "answer/reference", "answer/averaged")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> dict:
    return run_case(tmp_path_factory.mktemp("one") / "run", 1, Case())


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict:
    return run_case(tmp_path_factory.mktemp("two") / "run", 2, Case())


def assert_same_training(found: dict, expected: dict) -> None:
    for name in EVERYTHING:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    for name in ("weights/default", "weights/old", "weights/ema"):
        assert found[name].keys() == expected[name].keys()
        for key, value in expected[name].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-5)


def test_two_ranks_equal_one_and_update_without_collectives(one_rank, two_ranks):
    assert_same_training(two_ranks, one_rank)
    assert two_ranks["collectives"] == 0


@pytest.mark.slow
def test_hsdp_and_activation_checkpointing_change_nothing(one_rank, tmp_path):
    assert_same_training(run_case(tmp_path / "run", 2, Case(checkpointing="full", replicas=2)), one_rank)


@pytest.mark.slow
@pytest.mark.parametrize("flavor", ["debug_dual_tower", "debug_unified"])
def test_paradigms_train_alike_on_two_ranks(tmp_path, flavor):
    case = Case(flavor=flavor)
    assert_same_training(run_case(tmp_path / "two", 2, case), run_case(tmp_path / "one", 1, case))


@pytest.mark.parametrize("base", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_quantised_base_trains_alike_on_two_ranks(one_rank, tmp_path, base):
    one, two = (run_case(tmp_path / str(ranks), ranks, Case(base=base)) for ranks in (1, 2))
    assert_same_training(two, one)
    assert not torch.equal(one["base"], one_rank["base"]) and torch.equal(one["start"], one["base"])


def test_only_the_trained_adapter_has_gradients_and_moments(two_ranks):
    parameters = len(two_ranks["weights/default"])
    assert len(two_ranks["with_gradient"]) == two_ranks["with_state"] == parameters == 60
    assert all(".default." in name for name in two_ranks["with_gradient"])
    assert two_ranks["dtypes"] == ["torch.float32"]


def test_the_reference_stays_and_training_lowers_the_loss(two_ranks):
    assert torch.equal(two_ranks["start"], two_ranks["base"]) and torch.equal(
        two_ranks["answer/reference"], two_ranks["base"]
    )
    assert torch.equal(two_ranks["answer/after"], two_ranks["answer/default"])
    assert two_ranks["loss"][-1] < two_ranks["loss"][0]


@pytest.mark.parametrize("name", ["default", "old", "averaged"])
def test_sharded_roles_answer_with_their_latest_weights(two_ranks, name):
    """Against a plain model with the gathered weights: nobody computed with a gather from before an
    update."""
    model = inject(debug_model(), LoraConfig(rank=Case().rank, alpha=6.0, targets=tuple(GROUPS)))
    weights = two_ranks["weights/ema" if name == "averaged" else f"weights/{name}"]
    for key, parameter in adapter_parameters(model, "default").items():
        put(parameter, weights[key])
    with torch.no_grad():
        velocity = model(video_stream(4), audio_stream(4), conditioning(4))
    answer = torch.cat([present(velocity.video).flatten(), present(velocity.audio).flatten()])
    torch.testing.assert_close(two_ranks[f"answer/{name}"], answer, rtol=1e-5, atol=1e-5)
    assert (answer - two_ranks["base"]).abs().max() > 1e-2


@pytest.mark.parametrize("world", ["one_rank", "two_ranks"])
def test_state_comes_back_from_shards(request, world):
    result = request.getfixturevalue(world)
    for role in ("default", "old", "averaged"):
        assert torch.equal(result[f"resumed/{role}"], result[f"answer/{role}"])
    assert result["resumed/updates"] == [STEPS, STEPS]


def test_bf16_computing_keeps_fp32_adapters_and_starts_at_the_base(one_rank, tmp_path):
    result = run_case(tmp_path / "run", 2, Case(precision="bfloat16"))
    assert torch.equal(result["start"], result["base"]) and torch.equal(
        result["answer/reference"], result["base"]
    )
    assert result["dtypes"] == ["torch.float32"]
    assert {value.dtype for value in result["weights/default"].values()} == {torch.float32}
    torch.testing.assert_close(result["loss"], one_rank["loss"], rtol=0.02, atol=0)
