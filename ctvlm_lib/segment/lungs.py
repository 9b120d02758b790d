"""Lungs without a model: air that the body encloses."""

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap, bounding_box, largest_component
from ctvlm_lib.volume import Volume

SMALLEST_ML = 20
LARGEST_PARTS = 6  # how many parts of enclosed air are looked at


def lungs_by_threshold(volume: Volume, threshold_hu: float = -400, airway_hu: float = -930) -> LabelMap:
    """Find the lungs: air that the body encloses, without trachea and main bronchi, split into left and right.

    It fails where lung isn't dark or isn't enclosed: consolidation, effusion, masses and larger vessels are left out,
    a lung that the image's side cuts is lost, and in severe emphysema lung and gas look alike. It is no substitute
    for a checked mask.

    Args:
        volume: a CT in HU that holds at least the bases of the lungs.
        threshold_hu: a darker voxel is lung or gas.
        airway_hu: what is darker, smoothed over 3×3×3 voxels, is gas.

    Returns:
        a LabelMap with ``left lung`` (1) and ``right lung`` (2) on the volume's grid; its note says how it was made.

    Raises:
        BadInput: nothing here looks like lung.
    """
    from scipy import ndimage

    lungs = _lung_like(_enclosed(volume.hu < threshold_hu), volume, airway_hu)
    airway = _airway(lungs & (ndimage.uniform_filter(volume.hu, 3) < airway_hu), lungs)
    lungs &= ~ndimage.binary_dilation(airway)
    labels, how = _left_right(lungs)
    note = (
        f"lungs by threshold ({threshold_hu:g} HU) and connected components, not by a model; {how};"
        f" left out as airway: {airway.sum() * _voxel_ml(volume):.0f} mL"
    ).replace("-", "−")
    return LabelMap(labels, volume.affine.copy(), {1: "left lung", 2: "right lung"}, volume.orientation, (note,))


def _enclosed(air: np.ndarray) -> np.ndarray:
    """Number the 6-connected parts of air that don't touch the image's sides; its top and bottom may cut the lungs."""
    import cc3d

    parts = cc3d.connected_components(air, connectivity=6, out_dtype=np.uint32)
    sides = np.unique(np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()]))
    parts[np.isin(parts, sides)] = 0
    return parts


def _lung_like(parts: np.ndarray, volume: Volume, airway_hu: float) -> np.ndarray:
    """The largest part, and a second of at least a fifth of it; a part whose median is gas is bowel or airway."""
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = np.argsort(-sizes)[:LARGEST_PARTS]
    lung = [n for n in largest if sizes[n] and np.median(volume.hu[parts == n]) > airway_hu]
    if not lung or sizes[lung[0]] * _voxel_ml(volume) < SMALLEST_ML:
        raise BadInput(
            f"nothing in {volume.name} looks like lung (at least {SMALLEST_ML} mL of enclosed air that isn't pure gas);"
            " is the chest in the image, and is it in HU?"
        )
    return np.isin(parts, [n for n in lung[:2] if sizes[n] >= 0.2 * sizes[lung[0]]])


def _airway(gas: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Trachea and main bronchi: the largest connected gas; none if it is over a tenth of the lungs (emphysema)."""
    airway = largest_component(gas)
    return airway if airway.sum() <= 0.1 * lungs.sum() else np.zeros_like(airway)


def _left_right(lungs: np.ndarray) -> tuple[np.ndarray, str]:
    """1 on the patient's left, 2 on the right: erosion parts the lungs, then a voxel goes to the nearer core."""
    from scipy import ndimage

    labels, box = np.zeros(lungs.shape, np.uint16), bounding_box(lungs)
    inside = lungs[box]
    for erosions in (0, 1, 2):
        core = _two_parts(ndimage.binary_erosion(inside, iterations=erosions) if erosions else inside)
        if core is not None:
            nearest = ndimage.distance_transform_edt(core == 0, return_distances=False, return_indices=True)
            labels[box] = np.where(inside, core[tuple(nearest)], 0)
            how = f"left and right parted by an erosion of {erosions} voxel{'s' * (erosions > 1)}"
            return labels, how if erosions else "left and right are separate parts"
    side = np.where(np.arange(lungs.shape[2]) >= lungs.shape[2] / 2, 1, 2)
    labels[lungs] = np.broadcast_to(side, lungs.shape)[lungs]
    return labels, "left and right cut at the middle of the image, as they are one part"


def _two_parts(mask: np.ndarray) -> np.ndarray | None:
    """The two largest parts, 1 = the one further to the patient's left; None if the second is under a tenth."""
    import cc3d

    parts = cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32)
    sizes = np.bincount(parts.ravel(), minlength=3)
    sizes[0] = 0
    first, second = np.argsort(-sizes)[:2]
    if sizes[second] == 0 or sizes[second] < 0.1 * sizes[first]:
        return None
    two = sorted((parts == first, parts == second), key=lambda one: -np.nonzero(one)[2].mean())  # w grows to the left
    return two[0] + 2 * two[1].astype(np.uint16)


def _voxel_ml(volume: Volume) -> float:
    return abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
