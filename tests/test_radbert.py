"""CT-CLIP's report classifier: a tiny random RoBERTa in the layout of the released file, read tensor by tensor."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import CT_RATE
from ctvlm_lib.evaluate.radbert import BACKBONE, load_radbert

TEXTS = [
    "There is a pleural effusion.",
    "The heart is enlarged.",
    "No nodule, no mass and no effusion is seen in either lung.",
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Configuration and tokenizer as a hub's folder has them, without weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("backbone")
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    RobertaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=66, pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def released(backbone):
    """The tensors of a classifier in the layout of CT-CLIP's training code: ``model.…`` and ``classifier.…``."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = RobertaModel(RobertaConfig.from_pretrained(backbone))
        head = torch.nn.Linear(16, 18)
    tensors = {f"model.{name}": tensor * 8 for name, tensor in network.state_dict().items()}  # so that texts differ
    return tensors | {f"classifier.{name}": tensor * 3 for name, tensor in head.state_dict().items()}


@pytest.fixture
def saved(released, tmp_path):
    def save(tensors=released, name="RadBertClassifier.pth"):
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    return save


def plainly(tensors, backbone, text):
    """One text without padding through transformers' RoBERTa, its pooler and the linear layer."""
    from transformers import AutoTokenizer

    network = RobertaModel(RobertaConfig.from_pretrained(backbone)).eval()
    own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    network.load_state_dict(own)
    ids = torch.tensor([AutoTokenizer.from_pretrained(backbone)(text)["input_ids"]])
    with torch.no_grad():
        pooled = network(ids).pooler_output[0]
        return (tensors["classifier.weight"] @ pooled + tensors["classifier.bias"]).sigmoid().numpy()


def test_probabilities_are_those_of_the_plain_network(saved, released, backbone):
    made = load_radbert(saved(), backbone)
    found = made.labeller.labels(TEXTS)
    assert found.shape == (3, 18) and found.dtype == np.float32 and made.labeller.names == CT_RATE
    for row, text in zip(found, TEXTS, strict=True):
        assert row == pytest.approx(plainly(released, backbone, text), abs=1e-5)
    assert found.std(axis=0).max() > 0.01  # the texts matter
    assert made.fit.exact and not made.fit.renamed


def test_batches_and_their_padding_do_not_matter(saved, backbone):
    labeller = load_radbert(saved(), backbone).labeller
    assert labeller.labels(TEXTS, batch=1) == pytest.approx(labeller.labels(TEXTS, batch=3), abs=1e-6)


@pytest.mark.parametrize("prefix", ["module.", "roberta"])
def test_wrapped_and_renamed_layouts_are_read_and_reported(saved, released, backbone, prefix):
    if prefix == "module.":
        tensors = {prefix + name: tensor for name, tensor in released.items()}
    else:
        tensors = {name.replace("model.", "roberta.", 1): tensor for name, tensor in released.items()}
    tensors["model.embeddings.position_ids"] = torch.arange(66)[None]  # as older transformers stored it
    made = load_radbert(saved({"state_dict": tensors}), backbone)
    assert made.labeller.labels(TEXTS[:1]) == pytest.approx(load_radbert(saved(), backbone).labeller.labels(TEXTS[:1]))
    assert "model.embeddings.position_ids" in made.fit.ignored and made.fit.complete
    assert bool(made.fit.renamed) == (prefix == "roberta")


def test_what_the_network_has_no_place_for_is_listed(saved, released, backbone):
    made = load_radbert(saved(released | {"lm_head.bias": torch.zeros(3)}), backbone)
    assert made.fit.unexpected == ("lm_head.bias",) and made.fit.complete


def test_files_that_do_not_fit_are_refused_with_the_table(saved, released, backbone):
    short = {name: tensor for name, tensor in released.items() if "pooler" not in name}
    with pytest.raises(BadInput, match=r"missing +2 +model.pooler.dense"):
        load_radbert(saved(short), backbone)
    with pytest.raises(BadInput, match="trained for 18 labels and 20 names"):
        load_radbert(saved(), backbone, names=[str(k) for k in range(20)])
    with pytest.raises(BadInput, match="another shape"):
        load_radbert(saved(released | {"model.pooler.dense.bias": torch.zeros(8)}), backbone)
    with pytest.raises(BadInput, match="not finite"):
        load_radbert(saved(released | {"classifier.bias": torch.full((18,), torch.nan)}), backbone)
    with pytest.raises(BadInput, match="both mean model.pooler.dense.bias"):
        load_radbert(saved(released | {"roberta.pooler.dense.bias": torch.zeros(16)}), backbone)


def test_a_file_with_more_than_tensors_is_not_unpickled(saved, released, backbone):
    with pytest.raises(BadInput, match="more than plain tensors"):
        load_radbert(saved(released | {"config": RobertaConfig()}), backbone)


def test_missing_files_and_hubs_outside_profile_paper_are_refused(saved, backbone, tmp_path):
    with pytest.raises(BadInput, match="there is no weights file"):
        load_radbert(tmp_path / "none.pth", backbone)
    with pytest.raises(BadInput, match=f"only in profile paper.*{BACKBONE}"):
        load_radbert(saved(), BACKBONE)
    with pytest.raises(BadInput, match="no backbone can be had"):
        load_radbert(saved(), tmp_path)
    RobertaConfig.from_pretrained(backbone).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="tokenizer of .* has 5 entries and the configuration 318"):
        load_radbert(saved(), tmp_path)
    BertConfig(vocab_size=6).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a bert, and a roberta is expected"):
        load_radbert(saved(), tmp_path)


def test_texts_that_cannot_be_labelled_are_refused(saved, backbone):
    labeller = load_radbert(saved(), backbone).labeller
    long = " ".join(TEXTS * 20)
    with pytest.raises(BadInput, match="1 of 2 reports are longer than 64 tokens"):
        labeller.labels([TEXTS[0], long])
    assert labeller.labels([long], cut=True).shape == (1, 18)
    for texts, words in ((["a", " "], "1 of 2 reports are empty"), ([], "give a list"), ("a report", "give a list")):
        with pytest.raises(BadInput, match=words):
            labeller.labels(texts)


def test_nothing_outside_is_drawn_or_changed(saved, backbone):
    before = torch.get_rng_state()
    labeller = load_radbert(saved(), backbone).labeller
    assert torch.equal(before, torch.get_rng_state())
    assert not labeller.network.training and not any(p.requires_grad for p in labeller.network.parameters())
