"""The equations of slice attention, (2) to (4), in two forms: as printed, and as probably meant."""

import torch
from torch import Tensor, nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.slice_memory import Memory

FORMS = ("as meant", "as printed")


def slice_attention(queries: Tensor, answers: Tensor, form: str = "as meant") -> Tensor:
    """Equation (2), SSA(V, T): each query takes in the answers by its likeness to them; there are no weights.

    Args:
        queries: V, ``(…, n, d)``.
        answers: T, ``(…, m, d)``.
        form: "as printed", (V Tᵀ √d) T, which grows with the cube of the states and soon drowns them; or "as meant",
            softmax(V Tᵀ / √d) T, a weighted mean.

    Returns:
        ``(…, n, d)``.

    Raises:
        BadInput: no such form, or different widths.

    Source: contour.txt §3.2, equation (2).
    """
    check_form(form)
    if queries.shape[-1] != answers.shape[-1]:
        raise BadInput(
            f"queries are {queries.shape[-1]} wide and answers {answers.shape[-1]}: equation (2) has no weights to"
            " change widths; project both to the decoder's"
        )
    return _weights(queries @ answers.mT, queries.shape[-1], form) @ answers


class MultiHeadSliceAttention(nn.Module):
    """Equations (3) and (4), MSSA: heads with weights, and a learned bias for the distance between slices.

    Args:
        width: d.
        heads: h; d_k = d / h.
        slices: S; R has an entry for each distance −(S−1) … S−1, in each head.
        form: "as meant", H = softmax(Q Kᵀ / √d_k + R) V and heads side by side; or "as printed",
            H = (Q Kᵀ √d_k + R) V and heads multiplied element by element.

    Raises:
        BadInput: a width that the heads can't share.

    Source: contour.txt §3.2, equations (3) and (4).
    """

    def __init__(self, width: int, heads: int = 4, slices: int = 256, form: str = "as meant"):
        super().__init__()
        check_form(form)
        if heads < 1 or slices < 1 or width % heads:
            raise BadInput(
                f"a width of {width} can't be shared by {heads} heads with {slices} slices; choose a number of heads"
                " that divides the width, and at least one slice"
            )
        self.heads, self.slices, self.form = heads, slices, form
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in "QKV")
        joined = width if form == "as meant" else width // heads
        self.out = nn.Linear(joined, width, bias=False)  # W_O
        nn.init.zeros_(self.out.weight)  # starts as nothing
        self.relative = nn.Parameter(torch.zeros(heads, 2 * slices - 1))  # R

    def forward(self, z: Tensor, seen: Tensor, slice_of: Tensor, memory: Memory | None = None) -> Tensor:
        """Attend.

        Args:
            z: Z = [V; T], ``(B, n, width)``; with a memory, only the tokens that are new.
            seen: bool ``(B, n, m)``, which of all m tokens each of the n may take in.
            slice_of: ``(B, m)``, slice of each token; −1 at words.
            memory: keys and values of the m − n tokens before.

        Returns:
            ``(B, n, width)``.
        """
        q, k, v = (self._split(layer(z)) for layer in (self.query, self.key, self.value))  # (B, h, n, d_k)
        if memory is not None:
            k, v = memory.update(k, v)
        bias = self.bias(slice_of[:, -z.shape[1] :], slice_of)
        h = _weights(q @ k.mT, q.shape[-1], self.form, bias, seen[:, None]) @ v  # (3): (B, h, n, d_k)
        joined = h.transpose(1, 2).flatten(2) if self.form == "as meant" else h.prod(dim=1)
        return self.out(joined)  # (4)

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """R between tokens by the difference of their slices, ``(B, h, n, m)``; 0 where either is a word."""
        distance = (queries[:, :, None] - keys[:, None]).clamp(1 - self.slices, self.slices - 1) + self.slices - 1
        both = (queries >= 0)[:, :, None] & (keys >= 0)[:, None]
        return (self.relative[:, distance] * both).transpose(0, 1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def seen_by(image: Tensor, attended: Tensor, past: int) -> Tensor:
    """Who may take in whom: bool ``(B, n, m)`` for the n tokens behind the first ``past`` of all m.

    Everyone takes in what comes before, and itself; image vectors take in one another in both directions. So no word
    learns of a later word, neither directly nor through the image.

    Args:
        image: bool ``(B, m)``, image positions, in one run a row.
        attended: bool ``(B, m)``, false at padding.
        past: m − n.
    """
    place = torch.arange(image.shape[1], device=image.device)
    before = place <= place[past:, None]  # (n, m)
    return (before | (image[:, past:, None] & image[:, None])) & attended[:, None]


def check_form(form: str) -> None:
    """Raise BadInput unless ``form`` is one of the two."""
    if form not in FORMS:
        raise BadInput(f"form is {form!r}; choose 'as printed', or 'as meant', which adds the softmax")


def _weights(scores: Tensor, d: int, form: str, bias: Tensor | float = 0.0, seen: Tensor | None = None) -> Tensor:
    """Scores to weights; as printed there is no softmax, and what isn't seen weighs 0."""
    if form == "as printed":
        weights = scores * d**0.5 + bias
        return weights if seen is None else weights * seen
    scores = scores / d**0.5 + bias
    if seen is not None:  # a finite number: rows of padding see nothing, and −∞ would make them NaN
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
