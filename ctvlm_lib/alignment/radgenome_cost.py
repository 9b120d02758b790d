"""What a configuration of :mod:`ctvlm_lib.alignment.radgenome_recipe` costs, before anything is read or trained.

Operations are counted on shapes alone, bytes for the backward pass on short sequences of the real width, so both take
a second and no GPU. How the regions share a volume's tokens depends on the masks: here evenly, without overlap and
padding, so that time and memory of the local pathway are what is needed at least. Neither was measured on a GPU.
"""

from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ctvlm_lib.alignment.radgenome_recipe import VOLUMES, OnRadGenome
from ctvlm_lib.alignment.radgenome_volumes import Volumes
from ctvlm_lib.encoder.dual_pathway import DualPathway
from ctvlm_lib.notebook_progress import duration

SUSTAINED = 120e12  # operations a second: assumed, about 40 % of what an A100 has in 16 bits on paper
IN_TRAINING = 16 + 2  # bytes a parameter: weight, gradient, AdamW's two means, each 32 bits; and its 16-bit copy
BACKWARD = 2  # times the forward pass: gradients of inputs and of weights
_SHORT = 64  # tokens


@dataclass(frozen=True)
class Cost:
    """What a configuration costs.

    Attributes:
        volumes, steps, batch: what is counted.
        parameters: that are trained, of the encoder.
        tokens: of a volume.
        operations_each: of one volume, forward and backward; a multiplication and an addition are two.
        memory_bytes: of a whole batch on one GPU, at least.
        prepared_bytes: of all volumes, where they are kept.
    """

    volumes: int
    steps: int
    batch: int
    parameters: int
    tokens: int
    operations_each: int
    memory_bytes: int
    prepared_bytes: int

    @property
    def operations(self) -> int:
        """Of all steps."""
        return self.operations_each * self.batch * self.steps

    def __str__(self) -> str:
        hours = duration(self.operations / SUSTAINED)
        return "\n".join([
            f"{self.steps:,} steps of {self.batch}, {self.steps * self.batch / self.volumes:.3g} times through"
            f" {self.volumes:,} volumes",
            f"compute: {self.operations_each / 1e12:.2f} TFLOP a volume forward and backward,"
            f" {self.operations / 1e18:.1f} EFLOP in all: about {hours} of one GPU at {SUSTAINED / 1e12:.0f} TFLOP/s",
            f"memory: at least {self.memory_bytes / 1e9:.0f} GB for a batch on one GPU"
            f" ({self.parameters / 1e6:.0f} million parameters, {self.tokens:,} tokens a volume); shared by processes",
            f"disk: {self.prepared_bytes / 1e9:,.0f} GB where prepared volumes are kept, none where they aren't",
        ])  # fmt: skip


def cost(config: OnRadGenome, volumes: int = VOLUMES) -> Cost:
    """Count what a configuration costs.

    Args:
        config: what is trained.
        volumes: of the training split.

    Raises:
        BadInput: fewer volumes than a batch, or an encoder that can't be.
    """
    config = config.for_volumes(volumes)
    encoder = config.shapes
    size, regions = encoder.config.size_dhw_vox, len(config.regions)
    grid = encoder.grids(size)[0]
    tokens, parameters = grid[0] * grid[1] * grid[2], sum(p.numel() for p in encoder.parameters())
    local = regions if any(part.startswith("local") for part in config.recipe.parts) else 0
    held = Volumes(config.regions, size, grid).bytes_each()
    batch, voxels = config.recipe.batch, size[0] * size[1] * size[2]
    passed = encoder.config.layers * (1 + tokens)
    passed += len(encoder.config.local_blocks()) * (tokens + regions) * bool(local)
    kept = batch * (kept_by_block(encoder) * passed + (4 + 2) * voxels)  # a picture in 32 bits, its patches in 16
    return Cost(
        volumes, config.recipe.training.steps, batch, parameters, tokens,
        (1 + BACKWARD) * forward_operations(encoder, local), IN_TRAINING * parameters + kept, held * volumes,
    )  # fmt: skip


def forward_operations(encoder: DualPathway, regions: int = 0) -> int:
    """Operations of one volume and its regions, forward.

    Args:
        encoder: on the meta device.
        regions: among which the volume's tokens are shared out; 0 leaves the local pathway out.
    """
    tokens = encoder.patch_embedding.position_embeddings.shape[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.encode(torch.empty(1, encoder.config.in_channels, *encoder.config.size_dhw_vox, device="meta"))
        for number in encoder.config.local_blocks() if regions else ():
            each = torch.empty(regions, 1 + tokens // regions, encoder.config.hidden_size, device="meta")
            encoder.blocks[number](each)
    return counter.get_total_flops()


def kept_by_block(encoder: DualPathway) -> int:
    """Bytes that a block keeps of each token between forward and backward pass, in 16 bits where autocast has them."""
    config = type(encoder.config)(**encoder.config.to_dict() | {"layers": 1, "pooled_before": 0})
    block = type(encoder)(config).blocks[0].train()
    few, many = (_kept(block, n, config.hidden_size) for n in (_SHORT, 2 * _SHORT))
    return (many - few) // _SHORT


def _kept(block: torch.nn.Module, tokens: int, width: int) -> int:
    """Bytes that autograd keeps; what is kept twice counts once."""
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(1, tokens, width, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(note, lambda tensor: tensor):
        made = block(x)
    del made
    return sum(found.values())
