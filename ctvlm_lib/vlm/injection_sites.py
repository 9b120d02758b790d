"""Where in a decoder layer vectors are added: to what it reads, or between its attention and its MLP."""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctvlm_lib.errors import BadInput

BEFORE, AFTER = WHERE = ("before the layer", "after attention")
SIGMOID, NUMBER = GATES = ("sigmoid", "number")
_PRE_NORM = {"input_layernorm", "post_attention_layernorm"}  # the norms of a layer whose MLP reads x + attention(x)


class Addition(NamedTuple):
    """Vectors and the places that they are added at.

    Attributes:
        row, column: ``(n,)`` each, in what a layer reads.
        volume, vector: ``(n,)`` each, in ``vectors``.
        vectors: ``(B, K, width)``.
        gate: of the vectors, by what they are added to.
    """

    row: Tensor
    column: Tensor
    volume: Tensor
    vector: Tensor
    vectors: Tensor
    gate: nn.Module | None = None

    def __call__(self, hidden: Tensor, gated_by: Tensor | None = None) -> Tensor:
        """``hidden`` ``(B, L, width)`` with the vectors added; all other positions stay as they are, bit for bit.

        Args:
            hidden: gets the addition.
            gated_by: what the gate reads; None is ``hidden``.
        """
        added = self.vectors.to(hidden.device)[self.volume, self.vector]  # (n, width)
        if self.gate is not None:
            added = self.gate((hidden if gated_by is None else gated_by)[self.row, self.column]) * added
        return hidden.index_put((self.row, self.column), added.to(hidden.dtype), accumulate=True)


class ImageVectors:
    """What was told of a batch: where its images stand, and the vectors to add, by projection.

    Args:
        positions: bool ``(B, L)`` with K true a row; None says that there are only words.
        vectors: ``(B, K, width)`` each.
    """

    def __init__(self, positions: Tensor | None, vectors: dict[str, Tensor]):
        self.positions, self.vectors = positions, vectors

    def __deepcopy__(self, memo: dict) -> "ImageVectors":
        return self  # a copied model shares it: what was computed with gradients can't be copied

    def within(self, hidden: Tensor, past: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Row, column, volume and vector of each image position in ``hidden``, which stands behind ``past`` tokens.

        Returns:
            None where only words are read.

        Raises:
            BadInput: a batch that isn't the one that was told of.
        """
        if self.positions is None or past >= self.positions.shape[1]:
            return None
        batch, told = len(hidden), len(self.positions)
        if batch % told or past + hidden.shape[1] < self.positions.shape[1]:
            raise BadInput(
                f"the decoder reads {batch} rows of {past + hidden.shape[1]} tokens, and image_at was told of"
                f" {tuple(self.positions.shape)}; call image_at for each batch, with the whole prompt"
            )
        rows = self.positions.repeat_interleave(batch // told, dim=0).to(hidden.device)  # as beams repeat them
        row, column = rows[:, past : past + hidden.shape[1]].nonzero(as_tuple=True)
        vector = (rows.cumsum(dim=1) - 1)[row, past + column]
        return row, column, row // (batch // told), vector


class AttentionSite:
    """Hooks inside one layer that add to its attention's output, and so to x + attention(x) before the MLP reads it.

    What is added comes with the call, as an argument that the layer passes on to its attention, so that a layer that
    is computed a second time, for gradient checkpointing, gets the same again.
    """

    KEY = "ctvlm_addition"

    def __init__(self, layer: nn.Module):
        self._addition: Addition | None = None
        self._read: Tensor | None = None
        attention = layer.self_attn
        self._hooks = [
            layer.input_layernorm.register_forward_pre_hook(self._keep),
            attention.register_forward_pre_hook(self._take, with_kwargs=True),
            attention.register_forward_hook(self._add),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, norm: nn.Module, args: tuple) -> None:
        self._read = args[0]  # x, which a gate needs

    def _take(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._addition = kwargs.get(self.KEY)
        return args, {name: value for name, value in kwargs.items() if name != self.KEY}

    def _add(self, attention: nn.Module, args: tuple, output: tuple):
        addition, read = self._addition, self._read
        self._addition = self._read = None
        if addition is None:
            return None
        return addition(output[0], read + output[0]), *output[1:]


class SigmoidGate(nn.Module):
    """The released gate: a value in 0…1 for each channel, made from what the vector is added to; about ½ at first.

    Linear(D → D/4) → GELU → Linear(D/4 → D) → sigmoid. Its weights start as all of the released decoder's, normal with
    0.02: the 0.01 that its layer sets is written over.
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.out = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        for linear in (self.inner, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(n, width)`` to factors ``(n, width)``."""
        return torch.sigmoid(self.out(nn.functional.gelu(self.inner(hidden))))


class NumberGate(nn.Module):
    """One number a layer, zero at first."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """The number, whatever is read."""
        return self.factor


def make_gate(kind: str, width: int) -> nn.Module:
    """Build a gate.

    Raises:
        BadInput: no such gate.
    """
    if kind not in GATES:
        raise BadInput(f"gate is {kind!r}; choose None or one of {', '.join(map(repr, GATES))}")
    return SigmoidGate(width) if kind == SIGMOID else NumberGate()


def blocks_of(decoder: nn.Module, where: str = BEFORE) -> tuple[nn.ModuleList, int]:
    """A decoder's layers, and its width.

    Raises:
        BadInput: no causal language model of transformers, or layers inside which nothing can be added as the released
            code does.
    """
    if where not in WHERE:
        raise BadInput(f"where is {where!r}; choose one of {', '.join(map(repr, WHERE))}")
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    layers = getattr(base.get_decoder(), "layers", None) if hasattr(base, "get_decoder") else None
    if not isinstance(layers, nn.ModuleList):
        raise BadInput(
            f"{type(base).__name__} has no list of layers at get_decoder().layers; give a causal language model of"
            " transformers, such as Qwen3's or Llama's"
        )
    if where == AFTER and not all(map(_adds_attention_to_what_it_read, layers)):
        raise BadInput(
            f"layers of {type(base).__name__} don't add their attention's output to what they read and pass the sum on"
            f" to the MLP, as Qwen3's and Llama's do; inject {BEFORE!r}"
        )
    return layers, base.config.hidden_size


def _adds_attention_to_what_it_read(layer: nn.Module) -> bool:
    names = {name for name, _ in layer.named_children()}
    passes_on = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(layer.forward).parameters.values())
    return passes_on and "self_attn" in names and {name for name in names if name.endswith("norm")} == _PRE_NORM
