"""A model and its processor share a folder: each writes its own files into it, each file whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctvlm_lib.encoder.checks import NOT_A_MODEL, refuse_non_finite
from ctvlm_lib.errors import BadInput, atomic_path


@contextmanager
def into_folder(folder: str | Path, replaces: str = "") -> Iterator[Path]:
    """Give an empty folder whose files move into ``folder`` when the block ends without an error.

    Other files of ``folder`` stay, which :func:`ctvlm_lib.errors.atomic_path` on the folder itself would remove.

    Args:
        folder: made if it isn't there.
        replaces: pattern of names; files of that name that the block didn't write are removed at the end.

    Raises:
        BadInput: it is a file, or can't be written to.
    """
    folder = Path(folder)
    if folder.is_file():
        raise BadInput(f"{folder} is a file, and a folder is written; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(prefix=".partial.", dir=folder)
    except OSError as error:
        raise BadInput(f"can't write into {folder}: {error.strerror}; choose another output path") from error
    with partial as name:
        yield Path(name)
        written = sorted(Path(name).iterdir())
        for path in written:
            with atomic_path(folder / path.name) as final:
                path.rename(final)
        if replaces:
            for stale in {*folder.glob(replaces)} - {folder / path.name for path in written}:
                stale.unlink()


class SavedModel(PreTrainedModel):
    """A model around a decoder; it is written whole or not at all, and read only if nothing is missing, too much, or
    not finite.

    Words are read and written with the decoder's matrices, which may be tied.
    """

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's embedding matrix."""
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the decoder another embedding matrix."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's output matrix."""
        return self.decoder.get_output_embeddings()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None, **options) -> None:
        """Write configuration and weights (safetensors; tied matrices once), each file whole or not at all.

        Args:
            folder: other files in it, such as the processor's, stay.
            dtype: of the floating-point weights in the file, e.g. ``torch.float16``; None keeps them.
            options: of transformers' ``save_pretrained``.

        Raises:
            BadInput: a weight that ``dtype`` can't hold, a folder that can't be written, or adapters, which couldn't be
                read back.
        """
        if any(".lora_A." in name for name, _ in self.named_parameters()):
            raise BadInput(
                "the decoder has LoRA adapters, of which config.json can't tell; store what was trained with"
                " ctvlm_lib.vlm.finetune_saving.save, or merge them first with ctvlm_lib.vlm.lora.merge"
            )
        if dtype is not None:
            options["state_dict"] = _rounded(self.state_dict(), dtype)
        with into_folder(folder, replaces="model*.safetensors*") as partial:  # one file may become shards
            super().save_pretrained(partial, **options)

    @classmethod
    def from_pretrained(cls, folder, *args, **options) -> "SavedModel":
        """Load what :meth:`save_pretrained` wrote; takes transformers' options, such as ``dtype``.

        Raises:
            BadInput: no model there; weights that are missing, of another shape, not finite, or of a part that its
                configuration doesn't name.
        """
        wanted_info = options.pop("output_loading_info", False)
        if folder is not None and not (Path(folder) / "config.json").is_file():
            raise BadInput(f"{folder} holds no config.json; give a folder that save_pretrained wrote")
        try:
            model, info = super().from_pretrained(folder, *args, output_loading_info=True, **options)
        except BadInput:
            raise
        except NOT_A_MODEL as error:
            raise BadInput(f"{folder} can't be read as a model ({type(error).__name__}); save it again") from error
        absent = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
        if absent:
            raise BadInput(
                f"{folder} lacks {len(absent)} weights of its model or has them in another shape, such as {absent[0]};"
                " save it again from the whole model"
            )
        if others := sorted(map(str, info["unexpected_keys"])):
            raise BadInput(
                f"{folder} holds {len(others)} weights that its config.json has no part for, such as {others[0]}; save"
                " it again from the whole model, so that both files tell of the same parts"
            )
        refuse_non_finite(model.state_dict(), str(folder or "the given state dict"))
        return (model, info) if wanted_info else model


def _rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tied matrices stay one tensor, or they would be written twice."""
    made: dict[tuple, Tensor] = {}
    rounded = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if not tensor.is_floating_point():
            rounded[name] = tensor
            continue
        rounded[name] = made.setdefault(key, tensor.detach().to(dtype))
    refuse_non_finite(rounded, f"the model in {dtype}")
    return rounded
