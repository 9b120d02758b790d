"""What a stage of :mod:`ctvlm_lib.experiments.uvlm_real_options` costs, before anything is read or trained.

Operations, and bytes that are kept for the way back, are counted on shapes alone, with networks that hold no numbers:
no GPU is needed. Of stage 3 the projections, which are small, are left out. Weights of a pretrained decoder get no
gradient, so its way back is half as long. Nothing was measured on a GPU, and the time is that at an assumed rate.

Source: uvlm.txt §3.1 for the sizes; the rate and the bytes of a parameter are those of
:mod:`ctvlm_lib.alignment.radgenome_cost`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from ctvlm_lib.alignment.classification import QueryClassifier
from ctvlm_lib.alignment.radgenome_cost import BACKWARD, IN_TRAINING, SUSTAINED
from ctvlm_lib.encoder.unet import unet, unet_encoder
from ctvlm_lib.experiments.uvlm_arms import CLS, SEG, Arm
from ctvlm_lib.experiments.uvlm_real_data import LABELS
from ctvlm_lib.experiments.uvlm_real_options import ALPHA, RANK, OnReal
from ctvlm_lib.notebook_progress import duration
from ctvlm_lib.segment import unet_training
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.training import SGD
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.stage_tokens import own_tokens
from ctvlm_lib.vlm.uvlm_config import paper_decoder

BY_SGD = IN_TRAINING - 4  # one mean, not two
WORDS_OF_QWEN3 = 151_669  # of its tokenizer, those around the image among them: for the cost, before it is read


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Attributes:
        volumes, steps, batch: what is counted. what: a batch is made of.
        parameters: that are trained.
        operations_each: of one volume or patch, forward and backward; a multiplication and an addition are two.
        memory_bytes: of a whole batch on one GPU, at least. prepared_bytes: of all volumes and targets that are kept.
    """

    volumes: int
    steps: int
    batch: int
    what: str
    parameters: int
    operations_each: int
    memory_bytes: int
    prepared_bytes: int

    def __str__(self) -> str:
        all_of_them = self.operations_each * self.batch * self.steps
        return "\n".join([
            f"{self.steps:,} steps of {self.batch}, {self.steps * self.batch / self.volumes:.3g} times through"
            f" {self.volumes:,} volumes" + (", a patch of each" if self.what == "patch" else ""),
            f"compute: {self.operations_each / 1e12:.3g} TFLOP a {self.what} forward and backward,"
            f" {all_of_them / 1e18:.2g} EFLOP in all: about {duration(all_of_them / SUSTAINED)} of one GPU at"
            f" {SUSTAINED / 1e12:.0f} TFLOP/s",
            f"memory: at least {self.memory_bytes / 1e9:.3g} GB for a batch on one GPU"
            f" ({self.parameters / 1e6:.3g} million parameters are trained); shared by processes",
            f"disk: {self.prepared_bytes / 1e9:.3g} GB for volumes that are made ready",
        ])  # fmt: skip


def cost(
    arm: Arm, scope: str, config: OnReal, volumes: int, kept: int = 0, words: int = WORDS_OF_QWEN3,
    language: PretrainedConfig | None = None,
) -> Cost:  # fmt: skip
    """Count what a stage costs, on shapes alone: nothing is read, and no GPU is needed. None of it was measured.

    Args:
        arm: which. scope: its data. config: how.
        volumes: of the training split. kept: of all splits; 0 takes the training split's.
        words: of the decoder's tokenizer. language: shape of the pretrained decoder, of an arm with LoRA.

    Raises:
        BadInput: fewer volumes than a batch, or a network that can't be.
    """
    steps = config.training(volumes).steps
    learns = arm.stage == SEG or arm.encoder_rate > 0
    size = config.patch_dhw_vox if arm.stage == SEG else config.size_dhw_vox
    with torch.device("meta"):
        model, forward = _shapes(arm, scope, config, language or paper_decoder(words, **config.decoder))
        one, batch = (torch.empty(n, 1, *size) for n in (1, config.batch))
    model.encoder.requires_grad_(learns)
    forwards = _counted(model, lambda: forward(one))[0]
    unlearnt = 0 if learns else _counted(model, lambda: model.encoder.features(one))[0]
    with model.decoder.disable_adapter() if arm.lora else nullcontext():
        halved = _counted(model, lambda: forward(one))[0] - unlearnt if arm.lora else 0
    if config.precision == "bf16":
        model, batch = model.bfloat16(), batch.bfloat16()
    held = _counted(model, lambda: forward(batch))[1]
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    voxels = config.size_dhw_vox[0] * config.size_dhw_vox[1] * config.size_dhw_vox[2]
    learning = BY_SGD if config.optimizer == SGD else IN_TRAINING
    resting = 4 * (parameters - trained)
    if arm.lora and config.precision == "bf16":  # the decoder is kept in 16 bits
        resting -= 2 * sum(p.numel() for p in model.decoder.parameters() if not p.requires_grad)
    bytes_each = 2 + (arm.stage == SEG)  # of a voxel: HU, and the target's class
    return Cost(
        volumes, steps, config.batch, "patch" if arm.stage == SEG else "volume", trained,
        (1 + BACKWARD) * forwards - BACKWARD * unlearnt - halved, learning * trained + resting + held,
        (kept or volumes) * voxels * bytes_each,
    )  # fmt: skip


def _shapes(
    arm: Arm, scope: str, config: OnReal, shape: PretrainedConfig
) -> tuple[nn.Module, Callable[[Tensor], object]]:
    """A stage's network without numbers, and its pass forward; of stage 3 without the small projections."""
    if arm.stage == SEG:
        model = unet(ClassMap.of(scope, arm.granularity).names, **config.switches)
        loss = partial(unet_training.segmentation_loss, as_nnunet=True)
        return model, lambda x: loss([one.float() for one in model(x)], torch.zeros_like(x[:, 0]))
    if arm.stage == CLS:
        model = QueryClassifier(unet_encoder(**config.switches), LABELS[scope])
        return model, model
    model = nn.Module()
    model.encoder = unet_encoder(**config.switches)
    model.decoder = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    if arm.lora:
        model.decoder = with_lora(model.decoder, RANK, ALPHA, dropout=0.0)

    def forward(x: Tensor) -> object:
        tokens = max(own_tokens(model.encoder.features(x), arm.reference)) + 2 + config.longest
        embedded = x.new_empty(len(x), tokens, shape.hidden_size)
        mask = x.new_zeros(len(x), 1, tokens, tokens)  # as large as the hybrid one
        few = {"logits_to_keep": config.longest + 1, "use_cache": False}
        return model.decoder(inputs_embeds=embedded, attention_mask=mask, **few)

    return model, forward


def _counted(model: nn.Module, forward: Callable[[], object]) -> tuple[int, int]:
    """Operations of a pass forward, and bytes that it keeps for the way back; weights aren't counted."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held: dict[int, Tensor] = {}  # by storage, which is kept alive, so that no other takes its number

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(note, lambda tensor: tensor):
        made = forward()
    del made
    kept = sum(one.untyped_storage().nbytes() for key, one in held.items() if key not in own)
    return counter.get_total_flops(), kept
