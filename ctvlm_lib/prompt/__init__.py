"""Visual prompts: contours and boxes from masks, distractors, and their rendering over the CT."""

from ctvlm_lib.prompt import distractor
from ctvlm_lib.prompt.agreement import Agreement, agreement
from ctvlm_lib.prompt.box import box_outline
from ctvlm_lib.prompt.contour import contour
from ctvlm_lib.prompt.overlay import COLOURS, overlay

__all__ = ["COLOURS", "Agreement", "agreement", "box_outline", "contour", "distractor", "overlay"]
