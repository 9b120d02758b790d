"""The text tower: computed once, in any batches the same, never cut in silence. Reads MiniLM; skipped without it."""

import pytest
import torch

from ctvlm_lib import assets
from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.errors import BadInput

TEXTS = ["a mass in the liver", "no focal finding", "a mass in the liver", "a cyst"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    if not assets.is_present("minilm"):
        pytest.skip("the asset minilm isn't in the cache; fetch it with: ctvlm assets minilm")
    return TextTower(cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.assets
def test_equal_texts_have_equal_vectors_and_related_ones_are_nearer(tower):
    vectors = torch.nn.functional.normalize(tower.embed(TEXTS), dim=1)
    assert torch.equal(vectors[0], vectors[2])
    near = torch.nn.functional.normalize(tower.embed(["a tumour of the liver"]), dim=1)[0]
    assert near @ vectors[0] > near @ vectors[1]


@pytest.mark.assets
def test_a_batch_gives_what_each_text_gives_alone(tower):
    alone = torch.cat([tower.embed([text]) for text in TEXTS])
    torch.testing.assert_close(tower.embed(TEXTS), alone, rtol=1e-4, atol=1e-5)  # padding changes the order of sums


@pytest.mark.assets
def test_vectors_come_from_the_cache_the_second_time(tower, monkeypatch):
    first = tower.embed(TEXTS)
    monkeypatch.setattr(tower, "_computed", lambda *a: pytest.fail("computed again"))
    assert torch.equal(tower.embed(TEXTS), first)


@pytest.mark.assets
def test_a_text_that_is_too_long_is_cut_only_where_asked_and_counted(tower):
    long = "mass " * 600
    with pytest.raises(BadInput, match="1 of 2 texts are longer than 512 tokens"):
        tower.embed(["a cyst", long])
    assert tower.embed(["a cyst", long], cut=True).shape == (2, 384)
    assert list(tower.too_long.values()) == [602]


@pytest.mark.assets
def test_an_empty_text_is_refused(tower):
    with pytest.raises(BadInput, match="the first is number 1"):
        tower.embed(["a cyst", " "])


def test_a_hub_is_asked_only_in_profile_paper():
    with pytest.raises(BadInput, match="only in profile paper"):
        TextTower("clinicalbert")
    with pytest.raises(BadInput, match="pooled by one of"):
        TextTower(pool="max")
