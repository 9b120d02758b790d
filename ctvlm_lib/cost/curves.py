"""Cost against size: each stage over its sizes, measured on this machine, counted, and with what theory expects.

    study                     varied                          stages
    prompt against volume     voxels                          the input recipes, contour, overlay
    encoder against volume    voxels                          DCFormer and ViT3D, forward and with backward
    decoder against tokens    tokens of a row                 the ladder's small decoder, at its own width
    decoder against width     width, with 128 tokens a row    the same with three layers of any width
    cohort                    patients                        SigLIP, ranks for retrieval, drawing phantoms

Each stage is run once before it is measured, at its smallest size: what is loaded and made at a first call isn't told.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ctvlm_lib.cost.measure import BUDGET_S, REPEATS, measure, operations, with_threads
from ctvlm_lib.cost.stages import STUDIES, Stage, forget, stages_of

if TYPE_CHECKING:
    import pandas


def volumes(**how) -> "pandas.DataFrame":
    """Preparing a volume and drawing its prompt, against voxels; arguments and columns as of :func:`study`."""
    return study(STUDIES[0], **how)


def encoders(**how) -> "pandas.DataFrame":
    """The quick profile's encoders, against voxels; arguments and columns as of :func:`study`."""
    return study(STUDIES[1], **how)


def decoder_tokens(**how) -> "pandas.DataFrame":
    """A decoder against the tokens of a row; arguments and columns as of :func:`study`."""
    return study(STUDIES[2], **how)


def decoder_width(**how) -> "pandas.DataFrame":
    """A decoder against its width; arguments and columns as of :func:`study`."""
    return study(STUDIES[3], **how)


def cohort(**how) -> "pandas.DataFrame":
    """What compares patients, and what makes them, against their number; arguments and columns as of :func:`study`."""
    return study(STUDIES[4], **how)


def all_studies(**how) -> "pandas.DataFrame":
    """The five studies in one table; arguments and columns as of :func:`study`."""
    return study(None, **how)


def study(
    name: str | None, *, threads: int = 1, repeats: int = REPEATS, budget_s: float = BUDGET_S, sizes: int | None = None
) -> "pandas.DataFrame":
    """Measure the stages of a study.

    Args:
        name: of ``stages.STUDIES``; None means all.
        threads: that PyTorch and SimpleITK may use.
        repeats, budget_s: of :func:`ctvlm_lib.cost.measure.measure`, for each stage and size.
        sizes: so many of each stage's, the smallest; None means all.

    Returns:
        A row a stage and size: study, stage, x name, x, seconds and CPU seconds (each of the best run), runs, MB (10⁶
        bytes, beyond what was held before), threads.

    Raises:
        BadInput: no such study, or fewer than one thread or run.
    """
    import pandas as pd

    rows = []
    with with_threads(threads):
        for stage, size in _cases(name, sizes):
            work = stage.prepare(size, "cpu")
            if size == stage.sizes[0]:
                work()
            made = measure(work, repeats, budget_s)
            rows.append(
                _place(stage, size)
                | {"seconds": made.seconds, "CPU seconds": made.cpu_seconds, "runs": made.runs, "MB": made.peak_mb}
                | {"threads": made.threads}
            )
    forget()
    return pd.DataFrame(rows)


def counted(name: str | None = None, sizes: int | None = None) -> "pandas.DataFrame":
    """Operations of the stages that PyTorch's counter sees, over the same sizes, on shapes alone; the same anywhere.

    Args:
        name, sizes: as of :func:`study`.

    Returns:
        A row a stage and size: study, stage, x name, x, operations (a multiplication and its addition are two).
    """
    import pandas as pd

    return pd.DataFrame(
        [
            _place(stage, size) | {"operations": operations(stage.prepare(size, stage.counted))}
            for stage, size in _cases(name, sizes)
            if stage.counted
        ]
    )


def reasons(name: str | None = None) -> "pandas.DataFrame":
    """What theory expects of each stage's exponents, and why: study, stage, seconds, MB, why."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "study": stage.study, "stage": stage.name, "seconds": as_range(stage.seconds),
                "MB": as_range(stage.memory), "why": stage.why,
            }
            for stage in stages_of(name)
        ]
    )  # fmt: skip


def as_range(ends: tuple[float, float]) -> str:
    """``"1"``, or ``"1…2"``."""
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low}…{high}"


def _cases(name: str | None, sizes: int | None) -> Iterator[tuple[Stage, object]]:
    for stage in stages_of(name):
        for size in stage.sizes[:sizes]:
            yield stage, size


def _place(stage: Stage, size) -> dict:
    return {"study": stage.study, "stage": stage.name, "x name": stage.x_name, "x": stage.x(size)}
