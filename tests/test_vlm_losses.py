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
from ctvlm_lib.vlm.losses import (
    LossWeights,
    answer_nll,
    class_balanced_alpha,
    focal_answer_nll,
    focal_loss,
    lora_penalty,
    total_loss,
)


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor([[-100, -100, 3, 1, 4], [-100, 2, 0, -100, -100]])
    return numbers(2, 5, 6).float(), labels


def plain_focal(logits, targets, gamma, alpha) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p = math.exp(row[target]) / sum(math.exp(x) for x in row)
        total += -alpha[target] * (1 - p) ** gamma * math.log(p)
    return total / len(targets)


def plain_answers(logits, labels) -> list[tuple[int, int, int]]:
    rows, length = labels.shape
    return [(b, t, int(labels[b, t + 1])) for b in range(rows) for t in range(length - 1) if labels[b, t + 1] != -100]


def test_answer_nll_equals_a_plain_loop():
    logits, labels = batch()
    losses = []
    for b, t, token in plain_answers(logits, labels):
        row = logits[b, t].tolist()
        losses.append(math.log(sum(math.exp(x) for x in row)) - row[token])
    assert len(losses) == 5
    assert float(answer_nll(logits, labels)) == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_answer_nll_is_the_decoders_own_loss():
    decoder = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                    num_key_value_heads=2)
    )  # fmt: skip
    ids = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    out = decoder(input_ids=ids, labels=labels)
    torch.testing.assert_close(answer_nll(out.logits, labels), out.loss)


def test_masked_positions_have_no_gradient():
    logits, labels = batch()
    logits.requires_grad_()
    answer_nll(logits, labels).backward()
    learnt = {(b, t) for b, t, _ in plain_answers(logits, labels)}
    moved = {tuple(i) for i in logits.grad.abs().sum(dim=-1).nonzero().tolist()}
    assert moved == learnt


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
    tokens, labels = batch()
    torch.testing.assert_close(focal_answer_nll(tokens, labels, gamma=0), answer_nll(tokens, labels))


def test_focal_answer_tokens_equal_a_plain_loop():
    logits, labels = batch()
    alpha = torch.linspace(0.5, 1.5, 6)
    places = plain_answers(logits, labels)
    rows = torch.stack([logits[b, t] for b, t, _ in places])
    targets = torch.tensor([token for _, _, token in places])
    expected = plain_focal(rows, targets, 2.0, alpha.tolist())
    assert float(focal_answer_nll(logits, labels, 2.0, alpha)) == pytest.approx(expected, rel=1e-5)


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


def test_the_total_is_the_weighted_sum_of_what_is_given():
    cls, gen, reg = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(500.0)
    assert float(total_loss(cls, gen, reg).total) == pytest.approx(2 + 3 + 0.05)
    assert float(total_loss(gen=gen).total) == 3
    assert float(total_loss(cls, gen, reg, LossWeights(0.5, 2, 0)).total) == 7
    losses = total_loss(cls, reg=reg)
    assert losses.gen is None and losses.cls is cls


def test_what_cant_be_learnt_from_is_refused():
    logits, labels = batch()
    with pytest.raises(BadInput, match="no position"):
        answer_nll(logits, torch.full_like(labels, -100))
    with pytest.raises(BadInput, match="vocabulary"):
        answer_nll(logits[0], labels)
    with pytest.raises(BadInput, match="gamma"):
        focal_loss(logits[0], labels[1].clamp(0), gamma=-1)
    with pytest.raises(BadInput, match="classes"):
        focal_loss(logits[0], labels[0])
    with pytest.raises(BadInput, match="one weight"):
        focal_loss(logits[0], labels[0].clamp(0), alpha=torch.ones(5))
    with pytest.raises(BadInput, match="N, classes"):
        focal_loss(logits[0], labels[0, :2])
    for counts, beta in (([0, 0], None), ([1, -1], None), ([1, 2], 1.0)):
        with pytest.raises(BadInput):
            class_balanced_alpha(counts, beta)
    with pytest.raises(BadInput, match="no LoRA"):
        lora_penalty(torch.nn.Linear(2, 2))
    with pytest.raises(BadInput, match="scalars"):
        total_loss()
