"""A small VISTA-3D: MONAI's own network class in few channels, trained on phantoms, prompted by class or by points.

The released network begins with 48 channels and has voxels of 1.5 mm and thousands of CTs behind it. This one begins
with 8, has voxels of 5.3 mm, and has seen nothing but phantom patients (:mod:`ctvlm_lib.segment.small_training`). It
shows how promptable segmentation works and what a model does outside its training data; it is no tool for real CT.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib import anatomy, checkpoints
from ctvlm_lib.errors import BadInput

if TYPE_CHECKING:
    import torch

NAME = "vista3d_phantom"
EMBEDDINGS, SUPPORTED = 512, 132  # class prompts that the heads have room for, and those with a meaning


@dataclass(frozen=True)
class SmallVista:
    """Shape of the network.

    Attributes:
        width: channels of the features that both heads read, a multiple of 8.
        filters: channels of the encoder's first level, a multiple of 8.
        blocks: residual blocks of each level; every further level has half the size and twice the channels.
    """

    width: int = 16
    filters: int = 8
    blocks: tuple[int, ...] = (1, 2, 2, 2)

    def build(self) -> "torch.nn.Module":
        """MONAI's VISTA3D with random weights, put together as ``vista3d132`` is.

        Source: monai.networks.nets.vista3d.vista3d132, which has 48 channels in both places and blocks
            (1, 2, 2, 4, 4).
        """
        from monai.networks.nets.segresnet_ds import SegResNetDS2
        from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, PointMappingSAM

        encoder = SegResNetDS2(
            in_channels=1, out_channels=self.width, init_filters=self.filters, blocks_down=tuple(self.blocks),
            norm="instance", dsdepth=1,
        )  # fmt: skip
        by_class = ClassMappingClassify(n_classes=EMBEDDINGS, feature_size=self.width, use_mlp=True)
        by_points = PointMappingSAM(feature_size=self.width, n_classes=EMBEDDINGS, last_supported=SUPPORTED)
        return VISTA3D(image_encoder=encoder, class_head=by_class, point_head=by_points)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with what it was trained for.

    Attributes:
        network: MONAI's VISTA3D.
        name: for notes.
        classes: canonical names of the structures that it can be prompted with.
        spacing_mm: (z, y, x) of its voxels.
        patch: its sliding window, voxels along X, Y, Z.
        record: how it was made.
    """

    network: "torch.nn.Module"
    name: str
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    record: dict = field(default_factory=dict, repr=False)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """VISTA-3D's numbers of the classes."""
        return tuple(anatomy.structure(name).vista3d for name in self.classes)


def save_small(trained: Trained, config: SmallVista, record: dict, folder: str | Path = checkpoints.FOLDER) -> Path:
    """Write a trained network as a checkpoint, with what is needed to use it."""
    use = {"config": asdict(config), "classes": list(trained.classes)}
    use |= {"spacing_mm": list(trained.spacing_mm), "patch": list(trained.patch)}
    return checkpoints.save(trained.name, trained.network.state_dict(), use | record, folder)


def load_small(name: str = NAME, folder: str | Path = checkpoints.FOLDER) -> Trained:
    """Load the small network that ships with the workbook, ready to predict.

    Raises:
        BadInput: as :func:`ctvlm_lib.checkpoints.load`.
    """
    tensors, record = checkpoints.load(name, folder)
    try:
        network = SmallVista(**record["config"]).build()
        network.load_state_dict(tensors)
        classes, spacing, patch = (tuple(record[key]) for key in ("classes", "spacing_mm", "patch"))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"the record of {name} describes no network of its weights ({reason}); restore both") from error
    return Trained(network.eval().requires_grad_(False), name, classes, spacing, patch, record)
