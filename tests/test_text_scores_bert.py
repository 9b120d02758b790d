"""BERTScore against the bert-score package called directly, on tiny random models; MiniLM where it is fetched."""

import json
import socket

import numpy as np
import pytest
import torch
from bert_score import score as direct_score
from helpers_roberta import make_roberta
from transformers import AutoTokenizer, BertConfig, BertModel

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.bert_score import bert_scores
from ctvlm_lib.evaluate.text import text_scores, text_scores_per_pair
from ctvlm_lib.evaluate.text_registry import MINILM

SAID = ["a mass in the liver", "no cyst", "the spleen is large", "no cyst", "liver"]
TRUE = ["a cyst in the liver", "no cyst", "the liver is large", "no mass", "a mass in the spleen and in the liver"]
WORDS = sorted({word for text in SAID + TRUE for word in text.split()})
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def one_thread_and_no_network(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(socket.socket, "connect", lambda *address: pytest.fail(f"asked the network: {address}"))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 12, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(vocabulary), **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_roberta(tmp_path_factory):
    return make_roberta(tmp_path_factory.mktemp("roberta"), WORDS, SIZES["num_hidden_layers"])


def direct(folder, said, true, layers):
    found = direct_score(said, true, model_type=str(folder), num_layers=layers, device="cpu")
    return 100 * np.stack([column.numpy() for column in found], axis=1)


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_roberta"])
@pytest.mark.parametrize("layers", [2, 3])
def test_scores_equal_bert_score(request, model, layers):
    folder = request.getfixturevalue(model)
    found = bert_scores(SAID, [[text] for text in TRUE], folder, layers=layers)
    np.testing.assert_allclose(found, direct(folder, SAID, TRUE, layers), atol=1e-3)  # float32 of 100
    assert found[1].tolist() == pytest.approx([100] * 3, abs=1e-3)
    assert found[0, 2] < 99.99


def test_of_several_references_the_best_counts(tiny_bert):
    several = [["no cyst", "a mass"], ["no cyst"], ["liver", "the spleen is large"], ["no"], ["liver"]]
    found = bert_scores(SAID, several, tiny_bert, layers=3)
    np.testing.assert_allclose(found, direct(tiny_bert, SAID, several, 3), atol=1e-3)
    one_by_one = [bert_scores(SAID[:1], [[text]], tiny_bert, layers=3)[0] for text in several[0]]
    np.testing.assert_allclose(found[0], np.max(one_by_one, axis=0), atol=1e-3)


def test_a_blank_prediction_scores_nothing(tiny_bert):
    found = bert_scores(["", "no cyst", " "], [["no cyst"]] * 3, tiny_bert, layers=3)
    assert found[[0, 2]].tolist() == [[0] * 3] * 2 and found[1, 2] == pytest.approx(100, abs=1e-3)
    assert bert_scores([""], [["no cyst"]], tiny_bert, layers=3).tolist() == [[0] * 3]


def test_a_text_is_cut_at_the_tokenizers_longest_input(tiny_bert):
    long = " ".join(["liver"] * 30)
    assert AutoTokenizer.from_pretrained(tiny_bert).model_max_length == 12
    found = bert_scores([long], [[long + " spleen no cyst"]], tiny_bert, layers=3)
    assert found[0].tolist() == pytest.approx([100] * 3, abs=1e-3)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"model": "roberta-large"}, "asked only in profile paper; take 'minilm'"),
        ({"model": "bert-base"}, "no model 'bert-base': take minilm, roberta-large"),
    ],
)
def test_a_model_that_is_not_here_is_refused(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        bert_scores(["a"], [["b"]], **arguments)


def test_a_folder_needs_its_number_of_layers(tiny_bert):
    with pytest.raises(BadInput, match="needs layers"):
        bert_scores(["a"], [["b"]], tiny_bert)


@pytest.mark.assets
def test_minilm_equals_bert_score_and_is_not_called_by_its_name(asset):
    folder = asset("minilm")
    found = text_scores_per_pair(SAID, TRUE, metrics=MINILM)
    np.testing.assert_allclose(found[MINILM], direct(folder, SAID, TRUE, 6)[:, 2], atol=1e-3)
    assert not MINILM.startswith("BERTScore")
    near = text_scores(["a liver tumour"], ["a hepatic mass"], metrics=MINILM)[MINILM]
    assert near > text_scores(["a liver tumour"], ["no pleural effusion"], metrics=MINILM)[MINILM]
