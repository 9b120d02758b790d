"""The matching bank: nearest as NumPy finds it, first in first out, Algorithm 1's overflow, oneself."""

import numpy as np
import pytest
import torch
from test_siglip import unit

from ctvlm_lib.alignment.semantic_bank import PAPER_SIZE, SemanticBank
from ctvlm_lib.errors import BadInput


def texts(n: int, seed: int = 0) -> torch.Tensor:
    return unit(n, 5, seed, torch.float32)


def test_it_finds_the_nearest_by_cosine():
    bank, held, query = SemanticBank(5, 20), texts(20), texts(7, 1)
    bank.push(held)
    found = bank.nearest(query)
    best = np.argmax(query.numpy() @ held.numpy().T, axis=1)
    assert found.place.tolist() == best.tolist() and torch.equal(found.text, torch.nn.functional.normalize(held[best]))
    assert np.allclose(found.similarity, (query.numpy() @ held.numpy().T).max(axis=1))


def test_several_neighbours_are_averaged():
    bank, held, query = SemanticBank(5, 20, neighbours=3), texts(20), texts(2, 1)
    bank.push(held)
    three = held[torch.topk(query @ held.T, 3).indices].sum(dim=1)
    assert torch.allclose(bank.nearest(query).text, torch.nn.functional.normalize(three, dim=1))


def test_while_it_is_empty_each_text_is_its_own_neighbour():
    query = texts(3)
    found = SemanticBank(5, 20).nearest(query)
    assert torch.equal(found.text, query) and set(found.place.tolist()) == {-1} and not found.own.any()


def test_a_random_start_can_win_a_search_until_it_is_overwritten():
    bank = SemanticBank(5, 20, start="random")
    assert len(bank) == 20 and not torch.equal(bank.nearest(texts(3)).text, texts(3))
    bank.push(texts(20, 2))
    assert bank.nearest(texts(20, 2)).place.tolist() == list(range(20))


def test_the_oldest_make_room_and_the_rest_of_a_batch_goes_on_at_the_start():
    bank = SemanticBank(5, 7)
    for k in range(3):
        bank.push(texts(3, k), torch.arange(3) + 10 * k)
    assert bank.owners.tolist() == [21, 22, 2, 10, 11, 12, 20] and len(bank) == 7 and int(bank.pointer) == 2


def test_algorithm_1_drops_what_does_not_fit():
    bank = SemanticBank(5, 7, overflow="as printed")
    for k in range(3):
        bank.push(texts(3, k), torch.arange(3) + 10 * k)
    assert bank.owners.tolist() == [0, 1, 2, 10, 11, 12, 20] and int(bank.pointer) == 0  # 21 and 22 are lost


def test_algorithm_1_loses_a_whole_batch_after_one_that_fits_exactly():
    """ptr + B > S is false when the last place is filled, so the pointer stays behind the end, where nothing fits."""
    bank, queue = (SemanticBank(5, 6, overflow=how) for how in ("as printed", "wrap"))
    for k in range(3):
        bank.push(texts(3, k), torch.arange(3) + 10 * k)
        queue.push(texts(3, k), torch.arange(3) + 10 * k)
    assert bank.owners.tolist() == [0, 1, 2, 10, 11, 12] and queue.owners.tolist() == [20, 21, 22, 10, 11, 12]


def test_one_s_own_older_text_is_the_trivial_nearest_and_can_be_left_out():
    stale = torch.nn.functional.normalize(texts(4) + 0.05 * texts(4, 3), dim=1)
    for exclude in (False, True):
        bank = SemanticBank(5, 20, exclude_self=exclude)
        bank.push(torch.cat([stale, texts(8, 5)]), torch.arange(12))
        found = bank.nearest(texts(4), torch.arange(4))
        assert bool(found.own.all()) != exclude
    only_own = SemanticBank(5, 20, exclude_self=True)
    only_own.push(stale[:1], torch.tensor([0]))
    assert torch.equal(only_own.nearest(texts(4)[:1], torch.tensor([0])).text, texts(4)[:1])


def test_what_is_no_text_is_not_kept_and_no_gradient_leaves_it():
    bank = SemanticBank(5, 20)
    bank.push(texts(4).requires_grad_(), torch.arange(4), torch.tensor([True, False, True, False]))
    assert bank.owners[: len(bank)].tolist() == [0, 2]
    assert not bank.nearest(texts(2).requires_grad_()).text.requires_grad


def test_it_is_part_of_a_checkpoint_and_goes_on_from_there():
    bank, other = SemanticBank(5, 9), SemanticBank(5, 9)
    bank.push(texts(6), torch.arange(6))
    other.load_state_dict(bank.state_dict())
    for one in (bank, other):
        one.push(texts(6, 1), torch.arange(6) + 6)
    assert torch.equal(bank.texts, other.texts) and bank.owners.tolist() == other.owners.tolist()


def test_the_paper_s_queue_is_64k():
    assert PAPER_SIZE == 64 * 1024


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: SemanticBank(5, 4).push(texts(5)), "5 texts at once don't fit a bank of 4; make it larger"),
        (lambda: SemanticBank(4, 9).nearest(texts(2)), "holds vectors of width 4"),
        (lambda: SemanticBank(5, 2, neighbours=3), "from 1 to the bank's size, got 3 of 2"),
        (lambda: SemanticBank(5, 2, overflow="spill"), "overflow is 'spill'"),
        (lambda: SemanticBank(5, 2, start="full"), "start is 'full'"),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
