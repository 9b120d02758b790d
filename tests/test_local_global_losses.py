"""MedVista3D's losses: equal to a plain double loop, regions missing or not; the τ and weights as printed."""

import math
import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ctvlm_lib.alignment.local_global import PARTS, WEIGHTS, global_loss, local_loss, total_loss
from ctvlm_lib.alignment.semantic_bank import SemanticBank
from ctvlm_lib.errors import BadInput
from ctvlm_lib.launch.trial import free_port

TAU = 0.3


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def plain_local(image, text, there, tau, printed=False, same=None) -> float:
    """Eqs. (3) and (4), a pair at a time; both directions."""
    n, regions, _ = image.shape
    total, count = [0.0, 0.0], [0, 0]
    for way in range(2):
        one, other = (image, text) if way == 0 else (text, image)
        for r in range(regions):
            for i in range(n):
                if not there[i, r]:
                    continue
                rivals = [j for j in range(n) if there[j, r]]
                cosine = {j: float(one[i, r] @ other[j, r]) for j in rivals}
                below = sum(math.exp(value / tau) for value in cosine.values())
                mine = [j for j in rivals if (j == i if same is None else same[j, r] == same[i, r])]
                above = [math.exp(cosine[j]) / tau if printed else math.exp(cosine[j] / tau) for j in mine]
                total[way] -= sum(math.log(value / below) for value in above) / len(above)
                count[way] += 1
    return (total[0] / count[0] + total[1] / count[1]) / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_the_local_loss_is_equation_4_with_missing_regions_masked(n, regions, seed):
    image, text = unit(n, regions, 6, seed=seed), unit(n, regions, 6, seed=seed + 1)
    there = torch.rand(n, regions, generator=torch.Generator().manual_seed(seed)) < 0.7
    there[0, 0] = True
    loss = local_loss(image, text, there, math.log(1 / TAU))
    assert float(loss) == pytest.approx(plain_local(image, text, there, TAU), abs=1e-5)


def test_what_is_not_there_can_be_anything():
    image, text, there = unit(4, 3, 6), unit(4, 3, 6, seed=1), torch.ones(4, 3, dtype=torch.bool)
    there[1, 2] = False
    other = image.clone()
    other[1, 2] = unit(6, seed=9)
    assert local_loss(image, text, there, 1.0) == local_loss(other, text, there, 1.0)


def test_without_a_single_region_the_loss_is_0_and_has_a_gradient():
    image = unit(2, 3, 6).requires_grad_()
    loss = local_loss(image, unit(2, 3, 6, seed=1), torch.zeros(2, 3, dtype=torch.bool), 1.0)
    loss.backward()
    assert loss.item() == 0 and not image.grad.any()


def test_as_printed_the_temperature_stands_outside_the_exponential():
    image, text, there = unit(4, 3, 6), unit(4, 3, 6, seed=1), torch.ones(4, 3, dtype=torch.bool)
    loss = local_loss(image, text, there, math.log(1 / TAU), temperature="as printed")
    assert float(loss) == pytest.approx(plain_local(image, text, there, TAU, printed=True), abs=1e-5)
    # no softmax: with τ < 1 what should be a share of the whole can be above it, so the "loss" falls below 0
    alone = local_loss(image[:1, :1], text[:1, :1], there[:1, :1], math.log(1 / TAU), temperature="as printed")
    assert float(alone) == pytest.approx(-math.log(math.exp(float(image[0, 0] @ text[0, 0]) * (1 - 1 / TAU)) / TAU))


def test_regions_with_the_same_sentence_are_each_others_true_pairs_if_asked():
    image, text, there = unit(4, 2, 6), unit(4, 2, 6, seed=1), torch.ones(4, 2, dtype=torch.bool)
    same = torch.tensor([[0, 1], [0, 2], [3, 1], [4, 1]])
    loss = local_loss(image, text, there, math.log(1 / TAU), same=same)
    assert float(loss) == pytest.approx(plain_local(image, text, there, TAU, same=same), abs=1e-5)
    assert loss != local_loss(image, text, there, math.log(1 / TAU))


def test_one_region_that_all_have_is_the_global_loss():
    image, text = unit(5, 6), unit(5, 6, seed=1)
    there = torch.ones(5, 1, dtype=torch.bool)
    expected = global_loss(image, text, 1.2)
    assert float(local_loss(image[:, None], text[:, None], there, 1.2)) == pytest.approx(float(expected), abs=1e-6)


def test_patients_and_regions_may_come_in_any_order():
    image, text = unit(5, 4, 6), unit(5, 4, 6, seed=1)
    there = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.8
    loss = local_loss(image, text, there, 1.0)
    rows, columns = torch.randperm(5), torch.randperm(4)
    moved = [t[rows][:, columns] for t in (image, text, there)]
    assert float(local_loss(*moved, 1.0)) == pytest.approx(float(loss), abs=1e-6)


def test_the_total_is_equation_16_from_one_direction_each():
    """(1), (3) halve the two directions and (9) halves again; (11), (13), (15), (16) halve nothing."""
    ways = torch.arange(1.0, 9.0)  # the two directions of each of the four losses
    means = {name: (ways[2 * k] + ways[2 * k + 1]) / 2 for k, name in enumerate(PARTS)}
    unified = 0.5 * (0.5 * (ways[0] + ways[1]) + 0.5 * (ways[2] + ways[3]))
    semantic = (ways[4] + ways[5]) + (ways[6] + ways[7])
    assert sum(total_loss(means).values()) == unified + semantic
    assert set(WEIGHTS["balanced"].values()) == {0.5}
    # so a direction of a semantic loss weighs four times one of an unenriched loss
    assert WEIGHTS["as printed"]["global semantic"] / WEIGHTS["as printed"]["global"] == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 99))
def test_the_bound_never_exceeds_what_a_batch_can_tell(n, seed):
    """−L + log N of eq. (5) is at most log N: a batch of N can't show more than log N nats."""
    image, text = unit(n, 6, seed=seed), unit(n, 6, seed=seed + 1)
    assert float(-global_loss(image, text, 2.0) + math.log(n)) <= math.log(n)
    assert float(-global_loss(image, image, 6.0) + math.log(n)) > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda i, t, h: local_loss(i, t[:, :1], h, 1.0), r"regions and sentences are \(N, R, width\)"),
        (lambda i, t, h: local_loss(i, t, h, 1.0, temperature="cold"), "temperature is 'cold'"),
        (lambda i, t, h: local_loss(i, t, h, 1.0, same=h.long(), temperature="as printed"), "leave same out"),
        (lambda i, t, h: total_loss({"local": h.sum()}, "heavy"), "weights are 'heavy'"),
        (lambda i, t, h: total_loss({"regional": h.sum()}), "no weight for 'regional'"),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong(unit(3, 2, 6), unit(3, 2, 6), torch.ones(3, 2, dtype=torch.bool))


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    image, text, there = batch()
    mine = slice(3 * rank, 3 * rank + 3)
    image = image[mine].requires_grad_()
    loss = local_loss(image, text[mine], there[mine], 1.0)
    loss.backward()
    bank = SemanticBank(6, 40)
    owners = torch.arange(24).reshape(6, 4)[mine].flatten()
    bank.push(text[mine].flatten(0, 1).float(), owners, there[mine].flatten())
    gradient = image.grad / 2  # what DistributedDataParallel does
    torch.save([loss.detach(), gradient, bank.owners], f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # at an ordinary end gloo's threads now and then abort the process after its work is done


def batch():
    there = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.8
    return unit(6, 4, 6), unit(6, 4, 6, seed=1), there


def test_two_processes_give_the_loss_the_gradients_and_the_bank_of_one(tmp_path):
    torch.multiprocessing.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    image, text, there = batch()
    loss = local_loss(image.requires_grad_(), text, there, 1.0)
    loss.backward()
    bank = SemanticBank(6, 40)
    bank.push(text.flatten(0, 1).float(), torch.arange(24), there.flatten())
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for half in halves:
        torch.testing.assert_close(half[0], loss.detach())
        assert torch.equal(half[2], bank.owners)
    torch.testing.assert_close(torch.cat([half[1] for half in halves]), image.grad)
