"""Losses of the model: each equals a plain loop; γ = 0 is cross-entropy; the penalty is on LoRA alone."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.lora import lora_parameters, with_lora
from ctvlm_lib.vlm.losses import class_balanced_alpha, focal_loss, lora_penalty


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def plain_focal(logits, targets, gamma, alpha) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p = math.exp(row[target]) / sum(math.exp(x) for x in row)
        total += -alpha[target] * (1 - p) ** gamma * math.log(p)
    return total / len(targets)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 5), st.integers(0, 1000), st.lists(st.floats(0, 3), min_size=4, max_size=4))
def test_focal_loss_equals_a_plain_loop(gamma, seed, alpha):
    logits = numbers(5, 4, seed=seed)
    targets = torch.randint(0, 4, (5,), generator=torch.Generator().manual_seed(seed))
    given_alpha = torch.tensor(alpha, dtype=torch.float64)
    expected = plain_focal(logits, targets, gamma, alpha)
    assert float(focal_loss(logits, targets, gamma, given_alpha)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, targets = numbers(6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    torch.testing.assert_close(focal_loss(logits, targets, gamma=0), functional.cross_entropy(logits, targets))


def test_weights_of_examples_are_those_of_their_classes_where_each_has_its_classs():
    logits, targets, alpha = numbers(5, 4), torch.tensor([0, 3, 1, 1, 2]), torch.tensor([0.5, 2.0, 1.0, 0.1])
    by_example = focal_loss(logits, targets, 2.0, weights=alpha[targets])
    torch.testing.assert_close(by_example, focal_loss(logits, targets, 2.0, alpha))


def test_an_easy_example_counts_little():
    easy, hard = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    target = torch.tensor([0])
    ratio = focal_loss(easy, target) / focal_loss(hard, target)
    assert ratio < 0.01 * focal_loss(easy, target, 0) / focal_loss(hard, target, 0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_stay_finite_where_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [1.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0, 1]), gamma)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6).filter(any))
def test_inverse_frequencies_give_each_class_the_same_weight_in_all(counts):
    alpha = class_balanced_alpha(counts).double()
    shares = [float(a) * n for a, n in zip(alpha, counts, strict=True) if n]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-5)
    assert sum(float(a) for a in alpha) / len(shares) == pytest.approx(1, rel=1e-5)
    assert all(float(a) == 0 for a, n in zip(alpha, counts, strict=True) if not n)


def test_the_effective_number_lies_between_equal_and_inverse():
    counts = [900, 90, 9]
    assert class_balanced_alpha(counts, beta=0.0).tolist() == [1.0, 1.0, 1.0]
    weights = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    expected = [3 * w / sum(weights) for w in weights]
    assert class_balanced_alpha(counts, beta=0.99).tolist() == pytest.approx(expected, rel=1e-6)
    near = class_balanced_alpha(counts, beta=1 - 1e-9).tolist()
    assert near == pytest.approx(class_balanced_alpha(counts).tolist(), rel=1e-4)


def adapted(rank: int = 4):
    config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return with_lora(Qwen2ForCausalLM(config), rank=rank, train_norms=True, train_also=("embed_tokens",))


def test_the_penalty_is_the_sum_of_squares_of_lora_and_nothing_else():
    model = adapted()
    with torch.no_grad():
        for number, matrix in enumerate(lora_parameters(model)):
            matrix.fill_(0.1 * number)
    expected = sum((0.1 * k) ** 2 * m.numel() for k, m in enumerate(lora_parameters(model)))
    penalty = lora_penalty(model)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(p) for p in lora_parameters(model)}


def test_at_step_0_every_adapter_adds_about_a_third_of_its_rank():
    model = adapted(rank=16)
    assert lora_penalty(model).item() == pytest.approx(14 * 16 / 3, rel=0.05)  # 14 adapters, mean of many numbers


def test_what_cant_be_learnt_from_is_refused():
    logits, targets = numbers(3, 6), torch.tensor([3, 1, 4])
    with pytest.raises(BadInput, match="gamma"):
        focal_loss(logits, targets, gamma=-1)
    with pytest.raises(BadInput, match="classes"):
        focal_loss(logits, targets - 100)
    with pytest.raises(BadInput, match="one weight"):
        focal_loss(logits, targets, alpha=torch.ones(5))
    with pytest.raises(BadInput, match="one for each"):
        focal_loss(logits, targets, weights=torch.ones(2))
    with pytest.raises(BadInput, match="N, classes"):
        focal_loss(logits, targets[:2])
    for counts, beta in (([0, 0], None), ([1, -1], None), ([1, 2], 1.0)):
        with pytest.raises(BadInput):
            class_balanced_alpha(counts, beta)
    with pytest.raises(BadInput, match="no LoRA"):
        lora_penalty(torch.nn.Linear(2, 2))
