"""A head for closed questions: it chooses an answer from the decoder's state at a question's end, and writes nothing.

The contour paper's loss "drives the closed-ended head", and its decoder "generates either a class label (closed-ended
VQA) or an autoregressive free-text answer"; what the head is, where it sits and what its classes are isn't said. Here
it is one matrix with a bias, on the state behind the decoder's norm at the token in front of the answer, where a causal
decoder has read picture and question and not the answer. Its classes are the answers of closed questions, by their
words and without their letters, so that it needn't know in which order choices stand. With a head, closed answers
aren't learnt as text.

Training and answering differ. The loss is over all classes, so that the head has to learn, too, which answers a
question can have; in answering only those that the question offers count, see :meth:`ClosedHead.chances`. The read-out
(:mod:`ctvlm_lib.experiments.read_out_model`) learns among the offered ones alone.

Source: contour.txt §3.2 and §4.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.splice import IGNORED

if TYPE_CHECKING:
    from ctvlm_lib.vlm.lessons import Packed


class ClosedHead(nn.Linear):
    """State ``(…, width)`` → logits ``(…, answers)``; it starts at zero, where all answers are equally likely.

    Args:
        width: of the decoder.
        answers: its classes, two or more different ones.

    Raises:
        BadInput: fewer, or one that stands twice.
    """

    def __init__(self, width: int, answers: Sequence[str]):
        if len(answers) < 2 or len(set(answers)) < len(answers):
            raise BadInput(f"a head chooses among different answers, at least two, and was given {list(answers)}")
        super().__init__(width, len(answers))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.answers = tuple(answers)
        self._place = {answer: place for place, answer in enumerate(answers)}

    def forward(self, states: Tensor) -> Tensor:
        """Logits in float32, whatever the decoder computes in."""
        return functional.linear(states.float(), self.weight.float(), self.bias.float())

    def chances(self, state: Tensor, offered: Sequence[str]) -> Tensor:
        """Log-probability of each offered answer among them, ``(offered,)``, of one question's state ``(width,)``.

        Raises:
            BadInput: an answer that isn't among its classes.
        """
        lost = [answer for answer in offered if answer not in self._place]
        if lost:
            raise BadInput(
                f"the closed-ended head has no class {lost[0]!r}, which a question offers; name all answers in"
                " head_answers and train it with them"
            )
        return self(state)[[self._place[answer] for answer in offered]].log_softmax(0).cpu()


def begins(rows: "Packed") -> Tensor:
    """bool ``(B, length − 1)``: where the first token of an answer is foretold; picture and question are read there."""
    learnt = rows.labels != IGNORED
    return learnt[:, 1:] & ~learnt[:, :-1]
