"""SigLIP and CLIP: equal to plain double loops, in chunks and in several processes; the order doesn't matter."""

import math
import os

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ctvlm_lib.alignment import (
    RELEASED_INIT,
    SIGLIP_INIT,
    clip_loss,
    clip_loss_across,
    same_text,
    siglip_loss,
    siglip_loss_across,
)
from ctvlm_lib.errors import BadInput
from ctvlm_lib.launch.trial import free_port


def unit(n: int, width: int = 5, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    rng = np.random.default_rng([seed, n, width])
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, width))).to(dtype), dim=1)


def plain_siglip(image, text, t, b, positive) -> float:
    """Algorithm 1 of the SigLIP paper, a pair at a time."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            z = 1 if positive[i][j] else -1
            total += math.log(1 + math.exp(-z * (math.exp(t) * float(image[i] @ text[j]) + b)))
    return total / len(image)


def plain_clip(image, text, t, positive) -> float:
    """Cross-entropy of every row and column against its positives, a pair at a time."""
    logits = [[math.exp(t) * float(x @ y) for y in text] for x in image]
    turned = [list(column) for column in zip(*logits, strict=True)]
    halves = []
    for table, true in ((logits, positive), (turned, [list(c) for c in zip(*positive, strict=True)])):
        losses = []
        for row, which in zip(table, true, strict=True):
            whole = math.log(sum(math.exp(v) for v in row))
            if any(which):
                losses.append(sum(whole - v for v, w in zip(row, which, strict=True) if w) / sum(which))
        halves.append(sum(losses) / len(losses))
    return sum(halves) / 2


positives = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3)


@settings(max_examples=25)
@given(positives, st.floats(-1, 3), st.floats(-10, 2))
def test_siglip_equals_the_double_loop(positive, t, b):
    image, text = unit(3), unit(4, seed=1)
    loss = siglip_loss(image, text, t, b, positive=torch.tensor(positive))
    assert float(loss) == pytest.approx(plain_siglip(image, text, t, b, positive))


@settings(max_examples=25)
@given(positives.filter(lambda rows: any(map(any, rows))), st.floats(-1, 3))
def test_clip_equals_the_double_loop(positive, t):
    image, text = unit(3), unit(4, seed=1)
    assert float(clip_loss(image, text, t, positive=torch.tensor(positive))) == pytest.approx(
        plain_clip(image, text, t, positive)
    )


@settings(max_examples=15)
@given(st.permutations(range(6)), st.sampled_from(["siglip", "clip"]))
def test_the_order_of_the_batch_does_not_matter(order, name):
    image, text, order = unit(6), unit(6, seed=1), list(order)
    losses = [
        siglip_loss(i, t, 2.0, -1.0) if name == "siglip" else clip_loss(i, t, 2.0)
        for i, t in ((image, text), (image[order], text[order]))
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_siglip_equals_plain_siglip_in_value_and_gradient(chunk):
    results = []
    for size in (None, chunk):
        leaves = [unit(7).requires_grad_(), unit(7, seed=1).requires_grad_()]
        leaves += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, -1.0)]
        loss = siglip_loss(*leaves, chunk=size)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(*results)


def test_negatives_count_as_minus_one_not_zero():
    """With the printed z = 0 a pair that doesn't belong would cost log 2 whatever its similarity."""
    image = text = torch.eye(2, dtype=torch.float64)
    near, far = (float(siglip_loss(image, text, math.log(t), 0.0)) for t in (1e-9, 1.0))
    assert near == pytest.approx(2 * math.log(2))
    assert far == pytest.approx(math.log(2) + math.log(1 + math.exp(-1)))


def test_both_initialisations_are_as_published():
    assert math.exp(SIGLIP_INIT[0]) == pytest.approx(10) and SIGLIP_INIT[1] == -10
    assert RELEASED_INIT == (pytest.approx(2.659, abs=1e-3), 0.0)


def test_equal_texts_are_positives_of_each_other():
    texts = ["a mass", "a cyst", "a mass"]
    assert same_text(texts).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    image, text = unit(3), unit(3, seed=1)[[0, 1, 0]]
    as_negatives = float(siglip_loss(image, text, 1.0, 0.0))
    as_positives = float(siglip_loss(image, text, 1.0, 0.0, positive=same_text(texts)))
    assert as_positives == pytest.approx(plain_siglip(image, text, 1.0, 0.0, same_text(texts)))
    assert as_positives != pytest.approx(as_negatives)


def test_autocast_leaves_the_logits_exact():
    image, text = unit(9, dtype=torch.float32), unit(9, seed=1, dtype=torch.float32)
    exact = siglip_loss(image, text, 3.0, -5.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(siglip_loss(image, text, 3.0, -5.0), exact)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="3 images and 4 texts"):
        siglip_loss(unit(3), unit(4), 0.0, 0.0)
    with pytest.raises(BadInput, match="one width"):
        clip_loss(unit(3, 5), unit(3, 6), 0.0)
    with pytest.raises(BadInput, match="positive must be bool"):
        siglip_loss(unit(3), unit(4), 0.0, 0.0, positive=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(BadInput, match="at least one text"):
        siglip_loss(unit(3), unit(3), 0.0, 0.0, chunk=0)


IDENTITY = torch.tensor([0, 1, 2, 0, 4, 5, 2, 7])  # equal texts in one process and across both


def loss_and_gradients(image, text, name, identity):
    """Loss of features that pass through shared weights, and the gradients of everything that is shared."""
    shared = [torch.eye(5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    shared += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, -1.0)]
    i, t = image @ shared[0], text @ shared[1]
    if name == "siglip":
        loss = siglip_loss_across(i, t, *shared[2:], identity=identity)
        return loss, torch.autograd.grad(loss, shared)
    loss = clip_loss_across(i, t, shared[2], identity=identity)
    return loss, torch.autograd.grad(loss, shared[:3])


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    results = {}
    for name in ("siglip", "clip"):
        for same in (False, True):
            loss, gradients = loss_and_gradients(
                unit(8)[mine], unit(8, seed=1)[mine], name, IDENTITY[mine] if same else None
            )
            means = [loss.detach(), *gradients]
            for tensor in means:  # what DistributedDataParallel does with gradients
                torch.distributed.all_reduce(tensor)
                tensor /= 2
            results[f"{name} {same}"] = means
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    torch.distributed.barrier()
    os._exit(0)  # at an ordinary end gloo's threads now and then abort the process after its work is done


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    both = torch.load(tmp_path / "results.pt", weights_only=True)
    for name in ("siglip", "clip"):
        for same in (False, True):
            loss, gradients = loss_and_gradients(unit(8), unit(8, seed=1), name, IDENTITY if same else None)
            torch.testing.assert_close(both[f"{name} {same}"], [loss.detach(), *gradients])


def test_one_process_needs_no_group():
    image, text = unit(8), unit(8, seed=1)
    assert float(siglip_loss_across(image, text, 2.0, -1.0)) == pytest.approx(
        float(siglip_loss(image, text, 2.0, -1.0))
    )
    assert float(clip_loss_across(image, text, 2.0)) == pytest.approx(float(clip_loss(image, text, 2.0)))
