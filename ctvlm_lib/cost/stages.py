"""The stages whose cost is followed over sizes: what runs, over which sizes, and what theory expects of each.

Each stage prepares its input outside the clock and gives back a function of no arguments, the work. The first of a
stage's sizes is tiny: what it takes is the fixed part, which doesn't grow (see :mod:`ctvlm_lib.cost.exponents`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import grid

SHAPES = ((16, 32, 32), (32, 64, 64), (48, 80, 80), (64, 112, 112), (64, 128, 128), (96, 160, 160))
SCANS = ((16, 32, 32), (64, 128, 128), (96, 192, 192), (128, 256, 256), (144, 288, 288), (160, 320, 320))
TOKENS, WIDTHS = (16, 256, 512, 768, 1024, 1536, 2048), (64, 256, 384, 512, 640, 768)
ROW, LAYERS, WIDTH, CHUNK = 128, 3, 64, 256  # tokens where the width varies; vectors' width, texts compared at a time
PAIRS, GALLERY, PATIENTS = (64, 1024, 1280, 1536, 2048, 2560), (64, 768, 1024, 1280, 1536, 1920), (1, 4, 5, 6, 8)
CAUSAL = {"full_attention": None}  # so transformers makes no mask of numbers, which shapes alone couldn't have


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        study, name: what is varied, and what runs.
        x_name: what the size is counted in.
        sizes: a tiny one first, then rising.
        prepare: (size, device) → the work; a stage that isn't PyTorch's takes no notice of the device.
        seconds: exponent that theory expects of the time, from … to.
        memory: of the memory.
        why: the reason for both.
        counted: the device on which PyTorch's counter can see all that grows; "" where it can't.
    """

    study: str
    name: str
    x_name: str
    sizes: tuple
    prepare: Callable[[object, str], Callable[[], object]]
    seconds: tuple[float, float]
    memory: tuple[float, float]
    why: str
    counted: str = "meta"

    def x(self, size) -> int:
        """A size as one number: voxels, tokens, width, patients or pairs' side."""
        return prod(size) if isinstance(size, tuple) else size


@lru_cache(maxsize=len(SCANS))
def _case(shape: tuple[int, int, int]):
    """A phantom and its liver, resampled to a shape."""
    from ctvlm_lib.records import phantom

    drawn = phantom.patient(0)
    volume, liver = drawn.volume.resize(shape), drawn.labels.binary("liver").astype("uint8")
    return volume, grid.resample(liver, drawn.labels.affine, shape, volume.affine, order="nearest") == 1


def forget() -> None:
    """Let the prepared volumes go, 200 MB."""
    _case.cache_clear()


def _recipe(shape, device) -> Callable[[], object]:
    from ctvlm_lib.volume.recipe import vista3d

    volume, _ = _case(shape)
    return partial(vista3d, volume, tuple(1.5 * mm for mm in volume.spacing_mm))


def _fixed_input(shape, device) -> Callable[[], object]:
    from ctvlm_lib.vlm.image import ImageInput

    return partial(ImageInput((32, 64, 64), scale="Med3DVLM"), _case(shape)[0])


def _contour(shape, device) -> Callable[[], object]:
    from ctvlm_lib.prompt import contour

    return partial(contour, _case(shape)[1])


def _overlay(shape, device) -> Callable[[], object]:
    from ctvlm_lib.prompt import contour, overlay

    volume, liver = _case(shape)
    return partial(overlay, volume, [(contour(liver), "blue")])


def _encoder(kind: str, learns: bool, shape, device) -> Callable[[], object]:
    import torch

    from ctvlm_lib.encoder import dcformer, vit3d

    with torch.device(device):
        model = dcformer("phantom", seed=0) if kind == "DCFormer" else vit3d("phantom", seed=0, size_dhw_vox=shape)
        volume = torch.zeros(1, 1, *shape)
    return _passes(model, lambda: model.encode(volume)[1].sum(), learns)


def _decoder(learns: bool, tokens: int, width: int | None, device: str) -> Callable[[], object]:
    """The ladder's small decoder on one row; another width keeps its layers and its 32 numbers a head."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ctvlm_lib.vlm import ladder

    small = ladder.SIZES["small"]
    width = width or small.width
    inner, heads = width * small.inner // small.width, width * small.heads // small.width
    wider = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config.from_dict(ladder.config("small").to_dict() | wider))
        row = torch.zeros(1, tokens, dtype=torch.long)
    return _passes(model, lambda: model(input_ids=row, labels=row, attention_mask=CAUSAL, use_cache=False).loss, learns)


def _passes(model, forward: Callable[[], object], learns: bool) -> Callable[[], object]:
    """Forward alone, in eval mode and without gradients; or forward and backward, in train mode."""
    import torch

    model.train(learns)

    def work() -> None:
        with torch.set_grad_enabled(learns):
            value = forward()
        if learns:
            value.backward()
            model.zero_grad()  # the next run makes its gradients anew, as the first did

    return work


def _siglip(chunk: int | None, patients: int, device: str) -> Callable[[], object]:
    import torch

    from ctvlm_lib.alignment.siglip import RELEASED_INIT, siglip_loss

    torch.manual_seed(0)
    image, text = (torch.randn(patients, WIDTH, device=device, requires_grad=True) for _ in range(2))
    return lambda: torch.autograd.grad(siglip_loss(image, text, *RELEASED_INIT, chunk=chunk), (image, text))


def _ranks(patients: int, device: str) -> Callable[[], object]:
    import numpy as np

    from ctvlm_lib.evaluate.retrieval import ranks

    similarity = np.random.default_rng(0).standard_normal((patients, patients))
    return partial(ranks, similarity, np.arange(patients))


def _phantoms(patients: int, device: str) -> Callable[[], object]:
    from ctvlm_lib.records import phantom

    return lambda: [phantom.patient(i, shape=SHAPES[0]) for i in range(patients)]


_VOLUME, _ENCODER, _TOKENS, _WIDTH, _COHORT = (
    "prompt against volume", "encoder against volume", "decoder against tokens", "decoder against width",
    "cohort",
)  # fmt: skip
_EACH_VOXEL = "each voxel is read and written once"
_CONV = (
    "a convolution uses each weight once at each place of its grid, and places grow with the voxels; a depthwise one"
    " along up to 64 voxels is done as a product as long as the axis, whose length grows with the cube root"
)
_VIT = "weights are used once a token, attention once for each pair of tokens; no table of the pairs is kept"
_WEIGHTS = "weights go with the square of the width; words, attention and activations with the width itself"
_PASSES = ((False, "forward"), (True, "forward and backward"))

STAGES: tuple[Stage, ...] = (
    Stage(_VOLUME, "resample and scale (VISTA-3D's recipe)", "voxels", SCANS, _recipe, (1, 1), (1, 1), _EACH_VOXEL,
          counted=""),
    Stage(_VOLUME, "to a fixed size (Med3DVLM's recipe)", "voxels", SCANS, _fixed_input, (0, 1), (0, 1),
          "what is made is as large whatever comes in; only the search for its foreground reads all voxels",
          counted=""),
    Stage(_VOLUME, "contour", "voxels", SCANS, _contour, (1 / 3, 1), (1 / 3, 1),
          "a slice costs a fixed part and a part for its pixels: the number of slices grows with the cube root",
          counted=""),
    Stage(_VOLUME, "overlay", "voxels", SCANS, _overlay, (1, 1), (1, 1), _EACH_VOXEL, counted=""),
    *(Stage(_ENCODER, f"{kind}, {how}", "voxels", SHAPES[:last],
            partial(_encoder, kind, learns), (1, high), (1, 1), why)
      for kind, last, high, why in (("DCFormer", 6, 4 / 3, _CONV), ("ViT3D", 5, 2, _VIT)) for learns, how in _PASSES),
    *(Stage(_TOKENS, f"decoder, {how}", "tokens", TOKENS,
            lambda tokens, device, learns=learns: _decoder(learns, tokens, None, device), (1, 2), (1, 1), _VIT)
      for learns, how in _PASSES),
    *(Stage(_WIDTH, f"decoder of any width, {how}", "width", WIDTHS,
            lambda width, device, learns=learns: _decoder(learns, ROW, width, device), (1, 2), (1, 2), _WEIGHTS)
      for learns, how in _PASSES),
    Stage(_COHORT, "SigLIP, all pairs at once", "batch", PAIRS, partial(_siglip, None), (2, 2), (2, 2),
          "each image is compared with each text, and every comparison is kept for the gradient", counted="cpu"),
    Stage(_COHORT, f"SigLIP, {CHUNK} texts at a time", "batch", PAIRS, partial(_siglip, CHUNK), (2, 2), (1, 1),
          "as many comparisons, but only those with one chunk's texts are held at a time", counted=""),
    Stage(_COHORT, "ranks for retrieval", "gallery", GALLERY, _ranks, (2, 2), (2, 2),
          "each image is compared with each text", counted=""),
    Stage(_COHORT, "drawing phantoms", "patients", PATIENTS, _phantoms, (1, 1), (1, 1),
          "each patient is drawn for itself", counted=""),
)  # fmt: skip
STUDIES = tuple(dict.fromkeys(stage.study for stage in STAGES))


def stages_of(study: str | None = None) -> tuple[Stage, ...]:
    """The stages of a study; None means all.

    Raises:
        BadInput: no such study.
    """
    if study is not None and study not in STUDIES:
        raise BadInput(f"no study is called {study!r}; choose one of {', '.join(map(repr, STUDIES))}")
    return tuple(stage for stage in STAGES if study in (None, stage.study))


def stage_named(name: str) -> Stage:
    """A stage by its name.

    Raises:
        BadInput: no such stage.
    """
    found = {stage.name: stage for stage in STAGES}
    if name not in found:
        raise BadInput(f"no stage is called {name!r}; choose one of {', '.join(map(repr, found))}")
    return found[name]
