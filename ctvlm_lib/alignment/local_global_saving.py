"""A local–global model on disk: what was trained, and by what recipe; and its encoder, stem included.

The bank, which only training needs, isn't kept. The stem is frozen and has a checkpoint of its own.
"""

from dataclasses import replace
from pathlib import Path

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment.local_global_training import LocalGlobal, Recipe, build
from ctvlm_lib.encoder.stemmed import Stemmed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Training


def save(folder: Path, model: LocalGlobal, record: dict) -> Path:
    """Write a trained model without its bank.

    Args:
        folder: its last part is the checkpoint's name.
        model: trained.
        record: with the recipe under "recipe".
    """
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("bank.")}
    return checkpoints.save(
        folder.name, tensors, record | {"text_width": model.pairing.text.in_features}, folder.parent
    )


def read(folder: str | Path) -> tuple[LocalGlobal, dict]:
    """Read a trained model, frozen and in evaluation mode, and its record.

    Args:
        folder: a path, or the name of a shipped checkpoint.

    Raises:
        BadInput: no such checkpoint, or one of another kind.
    """
    folder = Path(folder) if Path(folder).is_dir() else checkpoints.FOLDER / folder
    tensors, record = checkpoints.load(folder.name, folder.parent)
    if "recipe" not in record:
        raise BadInput(f"the checkpoint {folder.name} isn't of a local–global arm; give one of `ctvlm arm align-…`")
    model = build(replace(_recipe(record), bank=0), record["text_width"])
    aligned.check_tensors(tensors, model.state_dict(), folder.name)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), record


def read_encoder(folder: str | Path) -> Stemmed:
    """Read a trained model's encoder and the stem whose tokens it reads, as one encoder of volumes.

    Args:
        folder: of the model; the stem lies beside it, under the name that the recipe has for it.

    Raises:
        BadInput: as :func:`read`, no such stem, or one that doesn't fit.
    """
    folder = Path(folder)
    model, record = read(folder)
    stem = aligned.load(folder.parent / _recipe(record).stem)[0].encoder
    return Stemmed.of(stem, model.encoder).eval().requires_grad_(False)


def _recipe(record: dict) -> Recipe:
    """As a record has it: JSON made the parts a list."""
    kept = record["recipe"]
    return Recipe(**kept | {"parts": tuple(kept["parts"]), "training": Training(**kept["training"])})
