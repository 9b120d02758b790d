"""SmolLM2 from its GGUF file: blocks, network, tokenizer, chat. About 5 s on one core without the asset."""

import copy

import helpers_finetune
import helpers_gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.vlm_reader import VlmReader
from ctvlm_lib.vlm import finetune, finetune_saving, gguf_file, smollm2
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune import Finetuning
from ctvlm_lib.vlm.lessons import Lessons
from ctvlm_lib.vlm.lora import lora_parameters, merge, with_lora

TEXTS = ("is the liver there?", " the  is\n\nA. 12 mm, B. 3.5 mm", "<|im_start|>user\nHello<|im_end|>\n", "Ü – the")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return helpers_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(file):
    torch.set_num_threads(1)
    return smollm2.load(file, torch.float32)


@pytest.fixture(scope="module")
def reference(file):
    """The same file as transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def test_matrices_are_float32_copies_in_pytorchs_order(file):
    read = gguf_file.read(file)
    assert {name: array.shape for name, array in read.tensors.items()} == helpers_gguf.shapes()
    assert all(array.dtype == np.float32 and array.flags.writeable for array in read.tensors.values())
    assert read.values["general.architecture"] == "llama" and not any(n.startswith("GGUF.") for n in read.values)


def test_logits_are_those_of_transformers_own_reader(loaded, reference):
    ids = torch.arange(40)[None] * 6
    with torch.no_grad():
        ours, theirs = loaded[0](ids).logits, reference[0](ids).logits
    assert float(theirs.std()) > 0.1  # or equality would say nothing
    assert torch.equal(ours, theirs)
    assert loaded[0].config.eos_token_id == reference[0].config.eos_token_id == 2


def test_the_order_of_the_heads_channels_matters(file, loaded, reference):
    tensors = gguf_file.read(file).tensors
    name = "model.layers.0.self_attn.k_proj.weight"
    assert not np.array_equal(tensors["blk.0.attn_k.weight"], reference[0].state_dict()[name].numpy())
    assert torch.equal(loaded[0].state_dict()[name], reference[0].state_dict()[name])


def test_tokens_are_those_of_transformers_own_reader(loaded, reference):
    for text in TEXTS:
        assert loaded[1](text)["input_ids"] == reference[1](text)["input_ids"]
        assert loaded[1].decode(loaded[1](text)["input_ids"]) == text
    assert loaded[1].special_tokens_map == reference[1].special_tokens_map


def test_digits_are_parted_first_as_the_tokenizer_was_trained(loaded, reference):
    blanks = [loaded[1].convert_tokens_to_ids(two) for two in ("ĠĠ", "ĊĊ")]
    for text, token in zip(("A  1", "A\n\n1"), blanks, strict=True):
        assert token in loaded[1](text)["input_ids"]
        assert token not in reference[1](text)["input_ids"]


def test_it_is_saved_with_adapters_merged_and_says_the_same(loaded, tmp_path):
    model, ids = with_lora(copy.deepcopy(loaded[0]), rank=4, alpha=8).eval(), torch.arange(30)[None]
    with torch.no_grad():
        for matrix in lora_parameters(model):
            matrix.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        adapted, before = model(ids).logits, loaded[0](ids).logits
        merge(model).save_pretrained(tmp_path)
        again = LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(again, adapted, atol=1e-4, rtol=1e-4)  # A·B is added once, not at each step
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert not hasattr(loaded[0].config, "quantization_config")


def test_the_dtype_is_as_asked(file):
    assert smollm2.load(file, torch.bfloat16)[0].dtype == torch.bfloat16


def test_loading_shows_no_bar_and_leaves_others_theirs(file, capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    smollm2.load(file)
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled() == shown


def test_an_answer_is_the_likeliest_token_again_and_again(loaded):
    model, tokenizer = loaded
    chat = smollm2.Chat(model, tokenizer)
    ids = tokenizer(chat.prompt("is the"), return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
    assert chat.ask("is the", 6) == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    assert chat.prompt("is the") == "<|im_start|>user\nis the<|im_end|>\n<|im_start|>assistant\n"
    assert "be brief" in smollm2.Chat(model, tokenizer, system="be brief").prompt("is the")


def test_answers_do_not_depend_on_what_is_asked_beside(loaded):
    chat = smollm2.Chat(*loaded, at_once=2)
    asked = ["is the", "the heart, the liver and the spleen?", "is", "is the"]
    assert chat.ask_all(asked, 5) == [chat.ask(question, 5) for question in asked]


def test_an_empty_question_is_refused(loaded):
    with pytest.raises(BadInput, match="at least one letter"):
        smollm2.Chat(*loaded).ask("  ")


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(file, tmp_path):
    content, short = file.read_bytes(), tmp_path / "short.gguf"
    for end in (0, 3, 6, 20, 200, 2000, len(content) // 2, len(content) - 40):
        short.write_bytes(content[:end])
        with pytest.raises(BadInput, match="fetch it again|give a GGUF file"):
            gguf_file.read(short)


def test_other_files_are_refused(file, tmp_path):
    other = tmp_path / "other.gguf"
    with pytest.raises(BadInput, match="can't read"):
        gguf_file.read(tmp_path / "none.gguf")
    other.write_bytes(b"PK\3\4" + file.read_bytes()[4:])
    with pytest.raises(BadInput, match="give a GGUF file"):
        gguf_file.read(other)
    with pytest.raises(BadInput, match="holds a gemma"):
        smollm2.load(helpers_gguf.write(tmp_path / "gemma.gguf", architecture="gemma"))
    with pytest.raises(BadInput, match="cuts words as 'llama-bpe'"):
        smollm2.load(helpers_gguf.write(tmp_path / "words.gguf", pre="llama-bpe"))


def test_a_file_without_a_value_or_with_an_unknown_tensor_is_refused(file):
    read = gguf_file.read(file)
    with pytest.raises(BadInput, match="llama.rope.freq_base"):
        smollm2.config_of({k: v for k, v in read.values.items() if k != "llama.rope.freq_base"})
    with pytest.raises(BadInput, match="blk.0.attn_qkv.weight"):
        smollm2.renamed({"blk.0.attn_qkv.weight": np.zeros((4, 4), np.float32)}, smollm2.config_of(read.values))


@pytest.mark.assets
@pytest.mark.slow
def test_smollm2_answers_a_general_question(asset):
    asset(smollm2.ASSET)
    model, tokenizer = smollm2.load()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # 135 M, as its name says
    assert "Paris" in smollm2.Chat(model, tokenizer).ask("What is the capital of France?", 8)


@pytest.mark.assets
@pytest.mark.slow
def test_it_learns_to_read_an_image_and_answers(asset, tmp_path):
    asset("smollm2")
    config = Finetuning(decoder="smollm2", projector="merged", projector_steps=1, lora_steps=1, pictures=1, words=20)
    model, processor = finetune.build(config)
    taught = helpers_finetune.lessons(1)
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 32, 64, 64)).astype(np.float32)
    kept = FeatureCache.of(model, [one.key for one in taught], lambda key: picture)
    curves = finetune.finetune(model, Lessons(processor, taught), kept, config, progress=False)
    assert all(np.isfinite(row["loss"]) for rows in curves.values() for row in rows)
    finetune_saving.save(tmp_path / "arm", model, config, {})
    [[(text, _)]] = VlmReader(*finetune_saving.load(tmp_path / "arm")[:2]).answer(
        picture[None], [[taught[0].records[1]]], "none"
    )
    assert text[3:] in helpers_finetune.ORGANS
