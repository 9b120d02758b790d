"""All readers under attack, by name."""

from fuzz.target import Target
from fuzz.targets_images import IMAGES
from fuzz.targets_records import RECORDS
from fuzz.targets_tables import TABLES
from fuzz.targets_weights import WEIGHTS

TARGETS: dict[str, Target] = {one.name: one for one in (*IMAGES, *RECORDS, *WEIGHTS, *TABLES)}


def warm_up() -> None:
    """Import what the readers import when they are first called: it is no part of a case's time and memory."""
    import monai.networks.nets  # noqa: F401
    import peft  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import SimpleITK  # noqa: F401
    import transformers  # noqa: F401
