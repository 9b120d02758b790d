"""Checkpoints of a training run: weights, optimiser and curve as one folder that appears whole; frozen tensors by hash.

Only what training changes is stored. The rest, a pretrained text tower for example, is checked by its hash when a run
is taken up again. A checkpoint doesn't tell how many processes made it: tensors that FSDP shares out are brought
together first and shared out again when they are read.
"""

import hashlib
import json
import shutil
import zipfile
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ctvlm_lib.errors import BadInput, atomic_path

if TYPE_CHECKING:
    from ctvlm_lib.training import Training


def is_frozen(module: torch.nn.Module) -> bool:
    """Whether a module has parameters and none of them is trainable."""
    needs = [p.requires_grad for p in module.parameters()]
    return bool(needs) and not any(needs)


def frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters without gradient, and the buffers of modules that have nothing to train."""
    asleep = [name for name, module in model.named_modules() if is_frozen(module)]
    buffers = {n: b for n, b in model.named_buffers() if any(not a or n.startswith(f"{a}.") for a in asleep)}
    return {n: p for n, p in model.named_parameters() if not p.requires_grad} | buffers


def moving(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that training changes: trainable parameters, and the stored buffers of their modules."""
    still, stored = frozen(model), model.state_dict()
    buffers = {n: b for n, b in model.named_buffers() if n in stored}
    return {n: t.detach() for n, t in {**dict(model.named_parameters()), **buffers}.items() if n not in still}


def whole(tensor):
    """A tensor with all its parts; all processes call it. What isn't shared out, numbers too, stays as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def frozen_hash(model: torch.nn.Module) -> str:
    """SHA-256 of the frozen tensors with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in sorted(frozen(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    model, optimizer, settings: "Training", folder: str | Path, curve: list[dict], *, write: bool = True
) -> Path:
    """Write a checkpoint named by its step, then remove the older ones; a kill at any moment leaves a whole one.

    Args:
        model, optimizer, settings, curve: what is stored. folder: in it.
        write: False in all processes but one, which call it only where tensors are shared out.
    """
    folder = Path(folder)
    target = folder / f"step-{len(curve):07d}"

    def kept(one):
        """In the memory of the process that writes; the others only take part in bringing it together."""
        found = whole(one)
        return (found.cpu() if isinstance(found, torch.Tensor) else found) if write else None

    tensors = {name: kept(tensor) for name, tensor in moving(model).items()}
    state, frozen_now = tree_map(kept, optimizer.state_dict()), frozen_hash(model)
    if not write:
        return target
    with atomic_path(target) as partial:
        partial.mkdir()
        # clones: safetensors refuses tensors that share memory
        save_file({n: t.clone().contiguous() for n, t in tensors.items()}, partial / "model.safetensors")
        torch.save(state, partial / "optimizer.pt")
        record = {"settings": asdict(settings), "frozen": frozen_now, "curve": curve}
        (partial / "curve.json").write_text(json.dumps(record), encoding="utf-8")
    for other in (*folder.glob("step-*"), *folder.glob(".*.partial.step-*")):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def resume(model, optimizer, settings: "Training", folder: str | Path | None) -> list[dict]:
    """Load the latest checkpoint of a folder into model and optimiser.

    Args:
        model, optimizer: prepared. settings: that the checkpoint must have been made with.
        folder: of checkpoints; None for none.

    Returns:
        Its curve; an empty one where no folder is given or no checkpoint lies there.

    Raises:
        BadInput: it can't be read, or it belongs to other settings, other frozen weights or another model.
    """
    found = sorted(Path(folder).glob("step-*")) if folder else []
    if not found:
        return []
    latest = found[-1]
    try:
        record = _record(latest / "curve.json")
        tensors = load_file(latest / "model.safetensors")
        _check_claims(latest / "optimizer.pt")
        state = torch.load(latest / "optimizer.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the three readers raise, the advice is the same
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise BadInput(f"the checkpoint {latest} can't be read ({why}); remove it to start anew") from error
    _check_same(record, model, settings, latest)
    _check_tensors(tensors, moving(model), latest)
    for name, tensor in moving(model).items():
        tensor.copy_(_shared_like(tensors[name], tensor))
    learns = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for number, kept in state["state"].items():
            kept |= {k: _shared_like(v, learns[number]) for k, v in kept.items() if v.shape == learns[number].shape}
        optimizer.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"the checkpoint {latest} holds no state of this optimiser ({error}); remove it to start anew"
        ) from error
    return record["curve"]


def _record(path: Path) -> dict:
    record = json.loads(path.read_text(encoding="utf-8"))
    kinds = {"settings": dict, "frozen": str, "curve": list}
    if not (isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())):
        raise ValueError(f"{path.name} doesn't hold settings, a hash of frozen weights and a curve")
    return record


def _check_claims(path: Path) -> None:
    """PyTorch makes room for what an archive claims to hold; it packs nothing, so that can't be more than the file."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise ValueError(f"{path.name} claims to hold {claimed:,} bytes, and has {path.stat().st_size:,}")


def _shared_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor shared out as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _check_same(record: dict, model, settings: "Training", latest: Path) -> None:
    asked = json.loads(json.dumps(asdict(settings)))  # tuples as the file has them
    plain = {one.name: one.default for one in fields(settings) if one.default is not MISSING}
    kept = json.loads(json.dumps(plain)) | record["settings"]  # a setting that is younger than the checkpoint
    differ = [k for k in asked if k != "checkpoint_every" and kept.get(k) != asked[k]]
    if differ:
        told = ", ".join(f"{k} was {kept.get(k)} and is {asked[k]}" for k in differ)
        raise BadInput(f"the checkpoint {latest} was trained with other settings ({told}); choose another folder")
    if record["frozen"] != frozen_hash(model):
        raise BadInput(f"the checkpoint {latest} belongs to other frozen weights; choose another folder")


def _check_tensors(given: dict, wanted: dict, latest: Path) -> None:
    odd = sorted(set(wanted) ^ set(given)) or [n for n in wanted if wanted[n].shape != given[n].shape]
    if odd:
        raise BadInput(
            f"the checkpoint {latest} is of another model: {odd[0]} and {len(odd) - 1} more tensors differ;"
            " choose another folder"
        )
