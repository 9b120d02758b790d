"""Multi-layer visual injection: features of an encoder's stages are added inside a decoder, where the image stands.

    equation (5)   h_j(v) = LM_j(h_{j−1}(v) + Proj_j(Align_r(f_{N−j+1}))),   h_j(t) = LM_j(h_{j−1}(t))

Pooling, padding, projections and which stage goes to which layer: :mod:`ctvlm_lib.vlm.stage_tokens`. Who sees whom:
:mod:`ctvlm_lib.vlm.hybrid_mask`. The paper and its released code differ, and both can be had:

    option        equation (5)                       released code
    where         "before the layer"                 "after attention": inside the layer, between attention and MLP
    at_input      False: h_0(v) isn't given; zeros   True: the input, too, is the projected reference stage
    shared        False: Proj_j, one a layer         True: one a stage, for all its layers
    masked        False: zeros are projected         True: zeros stay zero
    gate          None                               None, or with use_gate "sigmoid"

Added after attention, what the last layer gets reaches no word: it stands at the image's positions, and nothing looks
at these any more. With one layer a stage, that is the finest stage as a whole.

Text positions are never written to. With a cache the image is read once: nothing is added where only new words are
read. Weights lie in the module that :func:`inject` gives; the decoder's own tensors and code stay as they are.

Sources: uvlm.txt §2.2, equations (3) to (5); released code of U-VLM (5d7fde9), networks/uvlm.py.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.injection_sites import AFTER, BEFORE, Addition, AttentionSite, ImageVectors, blocks_of, make_gate
from ctvlm_lib.vlm.stage_tokens import INPUT_ONLY, SPREAD, StageProjection, align, layer_map, own_tokens, stage_number

# options of inject for the two readings of the module's table
AS_PRINTED = {"mapping": "as printed", "where": BEFORE, "at_input": False, "shared": False, "masked": False}
AS_RELEASED = {"mapping": "layers per stage", "where": AFTER, "at_input": True, "shared": True, "masked": True}


class LayerInjection(nn.Module):
    """Hooks on a decoder's layers and the projections behind them; made by :func:`inject`.

    Tell it of each batch with :meth:`image_at` before the decoder runs. With gradient checkpointing, finish the
    backward pass before the next batch is told of.

    Attributes:
        enabled: False leaves the decoder as it was, bit for bit.
        map: stage of each layer, None where nothing is added.
        projections: "layer_1" … and "input", or, shared, "stage_1" …; read: the stage that each reads.
        gates: "layer_1" …; empty without gates. The input has none.
    """

    def __init__(self, layers: Sequence[nn.Module], width: int, channels: Sequence[int], **options):
        super().__init__()
        self.enabled, self.channels = True, tuple(channels)
        self.where, self.shared = options["where"], options["shared"]
        self.reference = stage_number(options["reference"], len(channels))
        self.map = layer_map(options["stages"], len(layers), options["mapping"])
        self.at_input = options["at_input"] or options["mapping"] == INPUT_ONLY
        filled = [number for number, stage in enumerate(self.map) if stage]
        numbers = [*filled, None] if self.at_input else filled
        self.read = {self._key(n): self.reference if n is None else self.map[n] for n in numbers}
        self.projections = nn.ModuleDict(
            {
                key: StageProjection(channels[stage - 1], width, options["inner"], options["masked"])
                for key, stage in self.read.items()
            }
        )
        gated = filled if options["gate"] else []
        self.gates = nn.ModuleDict({f"layer_{n + 1}": make_gate(options["gate"], width) for n in gated})
        self._image: ImageVectors | None = None
        self._hooks: list[RemovableHandle] = []
        self._sites: list[AttentionSite] = []
        for number in sorted({*filled, 0} if self.at_input else filled):
            hook = partial(self._before, number)  # not a closure, so that a copied model's hooks are its own
            self._hooks.append(layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        if self.where == AFTER:
            self._sites = [AttentionSite(layers[number]) for number in filled]

    def image_at(self, positions: Tensor | None, features: Sequence[Tensor] | None = None) -> "LayerInjection":
        """Say where image vectors stand in the sequences that come next and what is added there, until said anew.

        Args:
            positions: bool ``(B, L)`` of the prompts, K true a row; what is generated behind them is words. None, with
                features None: only words.
            features: ``(B, C_i, D_i, H_i, W_i)`` of all N stages, finest first, or what
                :func:`ctvlm_lib.vlm.stage_tokens.pool` made of them.

        Returns:
            the module itself.

        Raises:
            BadInput: positions and features that don't fit each other or the encoder this was made for.
        """
        if (positions is None) != (features is None):
            raise BadInput("give positions and features together; both None says that there are only words")
        if positions is None:
            self._image = ImageVectors(None, {})
            return self
        self._check(positions, features)
        self._image = ImageVectors(positions, self.vectors(features))
        return self

    def vectors(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """What is added: Proj(Align(f)), ``(B, K, width)``, by projection, with its weights of now."""
        tokens, own = align(features, self.reference), own_tokens(features, self.reference)
        made = {}
        for key, stage in self.read.items():
            one = tokens[stage - 1]
            if not bool(torch.isfinite(one).all()):
                raise BadInput(f"features of stage {stage} hold values that are NaN or infinite; look at that volume")
            projection = self.projections[key]
            made[key] = projection(one.to(projection.inner.weight.dtype), own[stage - 1])
        return made

    def detach(self) -> None:
        """Take the hooks off; the decoder is as it was before :func:`inject`."""
        for hook in self._hooks:
            hook.remove()
        for site in self._sites:
            site.remove()
        self._hooks.clear()
        self._sites.clear()

    def _before(self, number: int, layer: nn.Module, args: tuple, kwargs: dict):
        """In front of a layer: add there, or hand on to its attention what is added behind that."""
        if not self.enabled:
            return None
        if self._image is None:
            raise BadInput(
                "the injection doesn't know the image; call image_at(positions, features) before the decoder runs, or"
                " image_at(None) for words alone"
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        place = self._image.within(hidden, 0 if cache is None else int(cache.get_seq_length(number)))
        if place is None:
            return None
        if number == 0 and self.at_input:
            hidden = Addition(*place, self._image.vectors[self._key(None)])(hidden)
        if self.map[number]:
            gate = self.gates[f"layer_{number + 1}"] if self.gates else None
            addition = Addition(*place, self._image.vectors[self._key(number)], gate)
            if self.where == BEFORE:
                hidden = addition(hidden)
            else:
                kwargs = kwargs | {AttentionSite.KEY: addition}
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _key(self, number: int | None) -> str:
        """Name of the projection for a layer, counted from 0, or for the input (None)."""
        stage = self.reference if number is None else self.map[number]
        if self.shared:
            return f"stage_{stage}"
        return "input" if number is None else f"layer_{number + 1}"

    def _check(self, positions: Tensor, features: Sequence[Tensor]) -> None:
        given = tuple(map_.shape[1] if map_.ndim == 5 else None for map_ in features)
        if given != self.channels:
            raise BadInput(
                f"features have {given} channels and the projections were made for {self.channels}; give all stages of"
                " that encoder, finest first, each (B, C, D, H, W)"
            )
        if positions.ndim != 2 or positions.dtype != torch.bool:
            raise BadInput(f"positions must be bool (B, L), got {positions.dtype} {tuple(positions.shape)}")
        length = max(own_tokens(features, self.reference))
        counts = positions.sum(dim=1).tolist()
        if counts != [length] * len(features[0]):
            raise BadInput(
                f"the rows have {counts} image positions and the features are {length} tokens for each of"
                f" {len(features[0])} volumes; make room for as many"
            )


def inject(
    decoder: nn.Module,
    channels: Sequence[int],
    *,
    reference: int = -1,
    stages: Sequence[int] | None = None,
    mapping: str = SPREAD,
    where: str = BEFORE,
    at_input: bool = False,
    shared: bool = False,
    inner: int | None = None,
    masked: bool = True,
    gate: str | None = None,
    seed: int | None = 0,
) -> LayerInjection:
    """Add an encoder's features inside a decoder; its source and its tensors aren't touched.

    Args:
        decoder: a causal language model of transformers whose layers lie in one list (Qwen2, Qwen3, Llama and their
            kin), with or without LoRA adapters; adapters may also be put on later.
        channels: C_i of all N stages, finest first.
        reference: stage r whose number of tokens is K, from 1; −1 the last, as released, −2 the text's "typically".
        stages: those that are injected, from 1; None: all.
        mapping: kind of :func:`ctvlm_lib.vlm.stage_tokens.layer_map`; "input only" injects into no layer.
        where: "before the layer" or "after attention".
        at_input: the reference stage's projection is added at the input, too. There, at the image's positions, the
            sequence should hold zeros.
        shared: one projection a stage, for all layers (and the input) that read it; else one a layer.
        inner: width inside projections; None is twice the decoder's.
        masked: see :class:`ctvlm_lib.vlm.stage_tokens.StageProjection`.
        gate: None, "sigmoid" as released, or "number", ours: what is added times a number that starts at zero, so
            that a pretrained decoder starts as it is.
        seed: of the weights; None draws from torch's running generator.

    Returns:
        the module that holds the weights, with :meth:`LayerInjection.image_at` and :meth:`LayerInjection.detach`.

    Raises:
        BadInput: options that aren't there, or don't fit the decoder.
    """
    layers, width = blocks_of(decoder, where)
    chosen = list(range(1, len(channels) + 1)) if stages is None else [stage_number(s, len(channels)) for s in stages]
    options = {
        "reference": reference, "stages": chosen, "mapping": mapping, "where": where, "at_input": at_input,
        "shared": shared, "inner": inner, "masked": masked, "gate": gate,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        made = LayerInjection(layers, width, channels, **options)
    like = next(decoder.parameters())
    return made.to(like.device, like.dtype)
