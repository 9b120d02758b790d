"""Everything that profile paper reads, in miniature: data sets in their layouts, weights in the hub's, a sources file.

Weights are random or say always the same, so that nothing is known: what is tested is that each part reads what the
part before it wrote, and that the ledger's rows are filled.
"""

import json
import shutil
from pathlib import Path

import helpers_m3d_cap
import numpy as np
import torch
from helpers_data import CHOICES, SHAPE, VQA, chest_hu, make_ct_rate, write, write_csv
from helpers_roberta import make_roberta
from helpers_vlm import decoder_config, tokenizer
from safetensors.torch import save_file

from ctvlm_lib.encoder import dcformer
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import with_placeholder

SIZE, VARIANT = (64, 64, 128), "nano"
PATIENTS, QUESTIONS = 10, 8  # questions of each patient
LOBE, HEART = "lung/lung/lung lower lobe/left lung lower lobe", "heart/heart"
KINDS = {  # question type: (question, choices)
    1: ("What is the plane?", ("Axial", "Coronal", "Sagittal", "Oblique")),
    2: ("What is the phase?", ("Plain", "Arterial", "Venous", "Late")),
    3: ("Which organ is bright?", ("Liver", "Kidney", "Spleen", "Lung")),
    4: ("What is abnormal?", ("Cyst", "Mass", "Nodule", "Stone")),
    5: ("Where is it?", ("Left", "Right", "Above", "Below")),
}
FINETUNING = {"projector_steps": 2, "lora_steps": 2, "pictures": 2, "precision": "no", "words": 60}


def make_all(folder: Path) -> Path:
    """Write data, weights and the file ``sources.toml``; returns the file."""
    make_ct_rate(folder / "CT-RATE")
    make_radgenome(folder / "RadGenome")
    make_m3d(folder / "M3D")
    bert = helpers_m3d_cap.make_bert(folder / "ClinicalBERT")
    (folder / "DCFormer_SigLIP").mkdir()
    helpers_m3d_cap.released_file(folder / "DCFormer_SigLIP" / "model.safetensors", bert, dcformer(VARIANT, seed=1),
                                  size=SIZE, t_prime=2.0, bias=-3.0)  # fmt: skip
    make_qwen(folder / "Qwen2.5-0.5B")
    make_med3dvlm(folder / "Med3DVLM")
    make_roberta(folder / "roberta-large", ["ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz.?"])
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in FINETUNING.items())
    path = folder / "sources.toml"
    path.write_text(
        '[data]\nct_rate = "CT-RATE"\nradgenome = "RadGenome"\nm3d = "M3D"\n'
        '[weights]\ntwo_towers = "DCFormer_SigLIP"\ntext = "ClinicalBERT"\nmed3dvlm = "Med3DVLM"\n'
        'bert_score = "roberta-large"\n'
        '[decoders]\n"0.5B" = "Qwen2.5-0.5B"\n"7B" = "Qwen2.5-0.5B"\n'
        f'[run]\narms = ["m3d-none-released", "m3d-none-7B-2xMLP", "radgenome-none-released", "radgenome-none-0.5B",'
        f' "radgenome-dual-0.5B"]\nvariant = "{VARIANT}"\nsize_dhw_vox = {list(SIZE)}\n'
        f"[run.finetuning]\n{settings}",
        encoding="utf-8",
    )
    return path


def make_radgenome(folder: Path) -> Path:
    """Ten patients, eight of the training split, each with masks of two regions and seven questions."""
    data, rows = folder / "dataset", {"train": {}, "validation": {}}
    for number in range(1, PATIENTS + 1):
        split, short = ("train", "train") if number <= 8 else ("validation", "valid")
        stem = f"{short}_{number}_a_1"
        write(data / f"{short}_preprocessed/{short}_{number}/{short}_{number}a/{stem}.nii.gz", _chest(number))
        for leaf, slices in (("left lung lower lobe", slice(2, 6)), ("heart", slice(6, 10))):
            inside = np.zeros(SHAPE, np.uint8)
            inside[slices, 3:7, 2:6] = 1
            write(data / f"{short}_anatomy_mask/seg_{stem}/{leaf}.nii.gz", inside)
        ill = "Yes." if number % 2 else "No."
        for table, some in _rows(f"{stem}.nii.gz", ill).items():
            rows[split].setdefault(table, []).extend(some)
    columns = {"region_report": ("Anatomy", "Sentence"), "vqa_abnormality": ("Anatomy", "Abnormality"),
               "vqa_presence": ("Anatomy", "Finding", "Presence"), "vqa_location": ("Anatomy", "Abnormality"),
               "vqa_size": ("Anatomy", "Abnormality", "Size"), "case_disorders": ("Disorders",)}  # fmt: skip
    for split, tables in rows.items():
        for table, some in tables.items():
            write_csv(data / f"radgenome_files/{split}_{table}.csv", ("Volumename", *columns[table]), some)
    return folder


def _rows(name: str, ill: str) -> dict[str, list[tuple]]:
    return {
        "region_report": [(name, LOBE, "A nodule of the left lung."), (name, HEART, "The heart is normal.")],
        "vqa_abnormality": [(name, LOBE, "nodule")],
        "vqa_presence": [(name, LOBE, "nodule", ill), (name, HEART, "clot", "No." if ill == "Yes." else "Yes.")],
        "vqa_location": [(name, LOBE, "nodule")],
        "vqa_size": [(name, LOBE, "nodule", "6 mm")],
        "case_disorders": [(name, "pulmonary nodule")],
    }


def _chest(seed: int) -> np.ndarray:
    return chest_hu() + np.random.default_rng(seed).integers(-9, 9, SHAPE).astype(np.int16)


def make_m3d(folder: Path) -> Path:
    """M3D-Cap as the tests of pretraining have it, and five kinds of question about each volume."""
    helpers_m3d_cap.make_copy(folder)
    lists = json.loads((folder / "M3D_Cap_npy/M3D_Cap.json").read_text(encoding="utf-8"))
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = []
        for number, entry in enumerate(lists[split]):
            for kind, (question, choices) in KINDS.items():
                right = (number + kind) % 4
                rows.append((entry["image"], kind, question, *choices, choices[right], "ABCD"[right]))
        write_csv(folder / f"M3D-VQA/M3D_VQA_{name}.csv", VQA, rows)
    assert VQA[3:7] == CHOICES
    return folder


def make_qwen(folder: Path, seed: int = 0) -> Path:
    """A Qwen2 and its tokenizer, config.json, model.safetensors, tokenizer.json …; it says always the same."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(decoder_config(max_position_embeddings=600))
    say_a_or_no(model, tokenizer())  # random words would go on to the longest report, which takes seconds
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def make_med3dvlm(folder: Path) -> Path:
    """The whole model under the released names, with the released splice; its decoder says always the same."""
    words = with_placeholder(tokenizer())
    decoder = decoder_config(vocab=len(words), max_position_embeddings=600)
    config = CtvlmConfig({"kind": "dcformer", "variant": VARIANT}, decoder, size_dhw_vox=SIZE, image_tokens=1,
                         image_token_id=len(words) - 1, splice="as released")  # fmt: skip
    config.image_tokens = count_image_tokens(config)
    model = CtvlmModel.with_seed(config, 3)
    say_a_or_no(model.decoder, words)
    parts = {"model.vision_tower.vision_tower.": model.encoder, "model.mm_projector.": model.projector,
             "model.": model.decoder.model, "lm_head.": model.decoder.lm_head}  # fmt: skip
    tensors = {prefix + name: t.clone() for prefix, part in parts.items() for name, t in part.state_dict().items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    own = {"model_type": "vlm_qwen", "architectures": ["VLMQwenForCausalLM"], "tie_word_embeddings": False}
    content = {key: value for key, value in decoder.to_dict().items() if key != "dtype"} | own
    (folder / "config.json").write_text(json.dumps(content, default=str), encoding="utf-8")
    words.save_pretrained(folder)
    return folder


@torch.no_grad()
def say_a_or_no(decoder, words) -> None:
    """Make a decoder answer "A" where choices stand at the end and "no" behind a question mark: answers can be read."""
    a, no, asked = (words(text)["input_ids"] for text in ("A", "no", "?"))
    assert len(a) == len(no) == len(asked) == 1
    for layer in decoder.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embeddings, head = decoder.model.embed_tokens.weight, decoder.lm_head.weight
    for table in (embeddings, head):
        table.zero_()
    embeddings[:, 0] = 1
    for tokens, place in ((asked, 1), ((*a, *no), 2)):
        embeddings[list(tokens)] = torch.eye(embeddings.shape[1])[place]
    head[a[0], 0], head[no[0], 1], head[words.eos_token_id, 2] = 9, 9, 9
