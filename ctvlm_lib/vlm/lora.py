"""LoRA: small matrices beside a decoder's frozen ones; on and off, saved, merged.

Source: med3dvlm.txt §3.2.3 and §3.4 (rank 16, α 32, dropout 0.05), contour.txt §3.2, dualbox.txt §3.2 and §4.2.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.encoder import frozen
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.saving import into_folder

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = {"attention + MLP": ATTENTION + MLP, "attention": ATTENTION, "attention q v": ATTENTION[::2], "MLP": MLP}
CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"  # peft's
BASE_FILE, ALSO_FILE = "base.json", "trained_also.safetensors"
BASE_SIZES = (
    "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads"
)  # fmt: skip


def lora_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float, rank: int) -> Tensor:
    """One matrix with its adapter: x Wᵀ + (α/r) x Aᵀ Bᵀ.

    Equation (8) gives A as d×r and B as r×k and multiplies BA, which fits only the other way round; here, as in peft,
    A comes first and is r×inputs, B is outputs×r and zero at the start.

    Args:
        x: ``(…, inputs)``.
        weight: W₀, ``(outputs, inputs)``, frozen.
        a: A, ``(rank, inputs)``.
        b: B, ``(outputs, rank)``.
        alpha: α; the adapter is scaled by α / rank.
        rank: r.

    Returns:
        ``(…, outputs)``.

    Source: med3dvlm.txt §3.2.3, equation (8).
    """
    return x @ weight.mT + alpha / rank * (x @ a.mT) @ b.mT


def with_lora(
    decoder: nn.Module,
    rank: int = 16,
    alpha: float = 32,
    targets: str | Sequence[str] = "attention + MLP",
    dropout: float = 0.05,
    train_norms: bool = False,
    train_also: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Freeze a decoder and put adapters beside its matrices; at the start the answers are the decoder's.

    Args:
        decoder: a causal language model of transformers; it is changed in place.
        rank: r.
        alpha: α.
        targets: key of ``TARGETS``, or names of linear layers; "attention + MLP" are all of a Qwen2 or Llama block.
        dropout: of what enters an adapter, in train mode.
        train_norms: the normalisation layers learn as well, as the dual-box paper says.
        train_also: further modules that learn whole, by the end of their name: ``("embed_tokens", "lm_head")`` as in
            the released code, see :func:`unfreeze_as_released`.
        seed: of the random A.

    Returns:
        peft's model around the decoder.

    Raises:
        BadInput: no such target or module, or a rank below 1.
    """
    names = TARGETS.get(targets, targets) if isinstance(targets, str) else tuple(targets)
    if isinstance(names, str):
        raise BadInput(f"targets is {targets!r}; choose one of {', '.join(map(repr, TARGETS))}, or give layers' names")
    linear = {name.rpartition(".")[2] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    if not names or not linear.issuperset(names):
        raise BadInput(f"targets are {list(names)}, the decoder's linear layers {sorted(linear)}; choose of these")
    if rank < 1:
        raise BadInput(f"rank is {rank}; give 1 or more, the papers' is 16")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), bias="none", task_type="CAUSAL_LM"
    )
    on_meta = next(decoder.parameters()).is_meta
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft still asks
        torch.manual_seed(seed)
        model = get_peft_model(decoder, config, low_cpu_mem_usage=on_meta)
    _let_learn(model, train_norms, train_also)
    return model


def unfreeze_as_released(model: nn.Module) -> nn.Module:
    """Let learn what the released LoRA script does, beside the adapters, although the paper says otherwise.

    Med3DVLM's text updates "only the weights of the multi-modal projector and the LoRA modules"; its script then turns
    gradients on for the vision tower, the projector, the embeddings and the output matrix.

    Args:
        model: with parts ``encoder``, ``projector`` and ``decoder``, the decoder with adapters.

    Returns:
        the model itself.

    Source: released code of Med3DVLM (cbbd633), LoRA stage.
    """
    for part in (model.encoder, model.projector):
        frozen.unfreeze(part)
    for table in (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings()):
        table.requires_grad_(True)
    return model


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a decoder's normalisation: LayerNorm, or one of transformers' many RMSNorms."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' matrices A and B."""
    return [p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def merge(model: PeftModel) -> nn.Module:
    """Add the adapters into the decoder's matrices and give the plain decoder; ``model`` is used up."""
    return model.merge_and_unload()


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters, what learns beside them, and which base they are for; other files of the folder stay.

    Args:
        model: of :func:`with_lora`.
        folder: gets ``adapter_model.safetensors`` and ``adapter_config.json`` of peft, ``base.json``, and where
            something else learns ``trained_also.safetensors``.

    Raises:
        BadInput: the folder can't be written.
    """
    also = {name: p.detach().contiguous() for name, p in _base_parameters(model) if p.requires_grad}
    with into_folder(folder) as partial:
        model.save_pretrained(str(partial), save_embedding_layers=False)  # "auto" would ask a hub
        (partial / "README.md").unlink(missing_ok=True)  # an empty model card
        _forget_paths(partial / CONFIG_FILE)
        (partial / BASE_FILE).write_text(json.dumps(_sizes(model), indent=2) + "\n", encoding="utf-8")
        if also:
            save_file(also, str(partial / ALSO_FILE))
    if not also:
        (Path(folder) / ALSO_FILE).unlink(missing_ok=True)


def load_adapter(decoder: nn.Module, folder: str | Path, trainable: bool = False) -> PeftModel:
    """Put saved adapters on a decoder of the kind that they were trained on.

    Args:
        decoder: the plain decoder, changed in place.
        folder: of :func:`save_adapter`.
        trainable: go on training; else all is frozen.

    Returns:
        peft's model around the decoder.

    Raises:
        BadInput: no adapter there, a damaged one, or one for another base.
    """
    folder = Path(folder)
    missing = [name for name in (BASE_FILE, CONFIG_FILE, ADAPTER_FILE) if not (folder / name).is_file()]
    if missing:  # peft would ask a hub
        raise BadInput(f"{folder} holds no {missing[0]}; give a folder that save_adapter wrote")
    try:
        saved = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        also = load_file(str(folder / ALSO_FILE)) if (folder / ALSO_FILE).is_file() else {}
    except (OSError, *NOT_JSON, SafetensorError) as error:
        raise BadInput(
            f"the adapter in {folder} can't be read ({type(error).__name__}); give a folder that save_adapter wrote"
        ) from error
    _refuse_another_base(decoder, saved, folder)
    try:
        stored = set(load_file(str(folder / ADAPTER_FILE)))
        model = PeftModel.from_pretrained(decoder, str(folder), is_trainable=trainable)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"the adapter in {folder} can't be loaded ({reason}); save it again") from error
    own = dict(_base_parameters(model))
    odd = stored ^ set(get_peft_model_state_dict(model, save_embedding_layers=False)) | also.keys() - own.keys()
    if odd:  # peft would only warn
        raise BadInput(f"the adapter in {folder} lacks tensors or has others, such as {min(odd)}; save it again")
    with torch.no_grad():
        for name, tensor in also.items():
            own[name].copy_(tensor)
            own[name].requires_grad_(trainable)
    return model


def _let_learn(model: PeftModel, norms: bool, also: Sequence[str]) -> None:
    for ending in also:
        found = [m for name, m in model.named_modules() if name == ending or name.endswith(f".{ending}")]
        if not found:
            raise BadInput(
                f"train_also names {ending!r}, and no module of the decoder ends so; look at named_modules()"
            )
        for module in found:
            module.requires_grad_(True)
    for module in model.modules():
        if norms and is_norm(module):
            module.requires_grad_(True)


def _base_parameters(model: PeftModel) -> list[tuple[str, nn.Parameter]]:
    """The decoder's own parameters, under names without peft's wrapping."""
    named = model.get_base_model().named_parameters()
    return [(name.replace(".base_layer.", "."), p) for name, p in named if ".lora_" not in name]


def _forget_paths(config: Path) -> None:
    """Where the base lay on this machine is no part of an adapter; its sizes stand in base.json."""
    content = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sizes(decoder: nn.Module) -> dict:
    return {name: getattr(decoder.config, name, None) for name in BASE_SIZES}


def _refuse_another_base(decoder: nn.Module, saved: dict, folder: Path) -> None:
    if not isinstance(saved, dict):
        raise BadInput(f"{folder / BASE_FILE} can't be read as sizes of a decoder; save the adapter again")
    here = _sizes(decoder)
    differ = [f"{name} {saved.get(name)}, not {here[name]}" for name in BASE_SIZES if saved.get(name) != here[name]]
    if differ:
        raise BadInput(
            f"the adapter in {folder} was trained on another decoder ({'; '.join(differ)}); load that decoder, or train"
            " an adapter for this one"
        )
