"""Who sees whom where a decoder reads an image: image vectors see each other, words see what stands before them.

    ■ sees, · doesn't     start  v1  v2  v3  end  w1        as released   start  v1  v2  v3  end  w1
    start                   ■     ·   ·   ·   ·   ·                         ■    ■   ■   ·   ·   ·
    v1                      ■     ■   ■   ■   ·   ·                         ■    ■   ■   ·   ·   ·
    v2                      ■     ■   ■   ■   ·   ·                         ■    ■   ■   ·   ·   ·
    v3                      ■     ■   ■   ■   ·   ·                         ■    ■   ■   ■   ·   ·
    end                     ■     ■   ■   ■   ■   ·                         ■    ■   ■   ■   ■   ·
    w1                      ■     ■   ■   ■   ■   ■                         ■    ■   ■   ■   ■   ■

The released code builds its mask as if the image began at position 0, where ``<|vision_start|>`` stands: that token
counts as an image vector, and the last image vector as a word that the others don't see.

In a decoder, :func:`attend` puts the mask in when the image is read; what is generated later with a cache is words, and
causal as ever. It gives transformers' decoders a prepared 4-D mask, which they take as it is.

Sources: uvlm.txt §2.2 ("vision tokens attend bidirectionally while text tokens use causal attention"); released code of
U-VLM (5d7fde9), networks/uvlm.py.
"""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ctvlm_lib.errors import BadInput

_BACKENDS = ("sdpa", "eager")  # those whose kernels take any mask


def image_block(vision: Tensor, as_released: bool = False) -> Tensor:
    """Positions that see each other in both directions, bool ``(B, L)``.

    Args:
        vision: bool ``(B, L)``, where image vectors stand, whatever stands before, between or behind them.
        as_released: one earlier than that.

    Raises:
        BadInput: not bool ``(B, L)``; as released, an image at position 0, before which nothing stands.
    """
    if vision.ndim != 2 or vision.dtype != torch.bool:
        raise BadInput(f"image positions must be bool (B, L), got {vision.dtype} {tuple(vision.shape)}")
    if not as_released:
        return vision
    if bool(vision[:, :1].any()):
        raise BadInput("the released mask begins one token before the image; put vision_start in front of it")
    return vision.roll(-1, dims=1)


def hybrid_mask(vision: Tensor, attention_mask: Tensor | None = None, as_released: bool = False) -> Tensor:
    """What each position sees.

    Args:
        vision: bool ``(B, L)``, where image vectors stand.
        attention_mask: ``(B, L)``, 0 at padding, which nobody sees; None if nothing is padded.
        as_released: see the module.

    Returns:
        bool ``(B, 1, L, L)``, from (queries) to (keys); rows of padding hold what they may see, which can be nothing.

    Raises:
        BadInput: shapes that don't fit.
    """
    block = image_block(vision, as_released)
    length = vision.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=vision.device).tril()
    seen = causal | (block[:, :, None] & block[:, None])  # (B, L, L)
    if attention_mask is not None:
        if attention_mask.shape != vision.shape:
            raise BadInput(
                f"attention_mask is {tuple(attention_mask.shape)} and the image's positions {tuple(vision.shape)}; give"
                " one value a position, 0 at padding"
            )
        seen = seen & (attention_mask != 0)[:, None].to(vision.device)
    return seen[:, None]


def additive(seen: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A mask to be added to scores: 0 where something is seen, else the type's least number.

    A row that sees nothing, as of padding on the left, becomes a mean of everything and not NaN.
    """
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


class HybridAttention:
    """A hook in front of a decoder that gives it the hybrid mask; made by :func:`attend`.

    Attributes:
        enabled: False leaves the decoder as it was.
    """

    def __init__(self, base: nn.Module, as_released: bool = False):
        self.as_released, self.enabled = as_released, True
        self._vision: Tensor | None = None
        self._told = False
        self._hook = base.register_forward_pre_hook(self._before, with_kwargs=True)

    def image_at(self, positions: Tensor | None) -> "HybridAttention":
        """Say where image vectors stand in the sequences that come next, until it is said anew.

        Args:
            positions: bool ``(B, L)`` of the prompts; what is generated behind them is words. None: only words.

        Returns:
            the object itself.

        Raises:
            BadInput: not such positions.
        """
        if positions is not None:
            image_block(positions, self.as_released)
        self._vision, self._told = positions, True
        return self

    def detach(self) -> None:
        """Take the hook off; the decoder is as it was before :func:`attend`."""
        self._hook.remove()

    def _before(self, model: nn.Module, args: tuple, kwargs: dict):
        if not self.enabled:
            return None
        if not self._told:
            raise BadInput(
                "the hybrid mask doesn't know where the image stands; call image_at(positions) before the decoder runs,"
                " or image_at(None) for words alone"
            )
        read = kwargs.get("inputs_embeds")
        read = read if read is not None else kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if self._vision is None or past >= self._vision.shape[1]:  # words alone
            return None
        mask = self._mask(read, past, kwargs.get("attention_mask"))
        if _backend(model.config) == "eager":  # which adds it to the scores; the other takes true and false
            mask = additive(mask, read.dtype if read.is_floating_point() else model.dtype)
        return args, kwargs | {"attention_mask": mask}

    def _mask(self, read: Tensor, past: int, padding: Tensor | None) -> Tensor:
        """What the ``n`` positions of ``read`` see of those in the cache and of themselves, ``(B, 1, n, past + n)``."""
        if padding is not None and (not isinstance(padding, Tensor) or padding.ndim != 2):
            raise BadInput(
                "the decoder was given a prepared mask, or a cache of fixed length, which brings one; give a padding"
                " mask (B, length) and transformers' DynamicCache, the default: the hybrid mask is made of it"
            )
        vision = fitted(self._vision, len(read), past + read.shape[1]).to(read.device)
        if past and bool(self._vision[:, past:].any()):
            raise BadInput("the cache ends before or within the image; give the decoder the whole prompt in one piece")
        return hybrid_mask(vision, padding, self.as_released)[:, :, past:]


def attend(decoder: nn.Module, as_released: bool = False) -> HybridAttention:
    """Let a decoder read images with the hybrid mask; its source and its tensors aren't touched.

    Args:
        decoder: a causal language model of transformers whose attention takes a prepared mask (Qwen2, Qwen3, Llama and
            their kin), with or without LoRA adapters.
        as_released: see the module.

    Returns:
        the object to tell where the image stands.

    Raises:
        BadInput: no such decoder, an attention that can't take any mask (flash, flex), or one with sliding windows.
    """
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    if not hasattr(base, "get_decoder"):
        raise BadInput(f"{type(base).__name__} is no causal language model of transformers; give one, such as Llama's")
    _backend(base.config)
    kinds = getattr(base.config, "layer_types", None)
    sliding = set(kinds) != {"full_attention"} if kinds else getattr(base.config, "sliding_window", None) is not None
    if sliding:
        raise BadInput("the decoder has layers that see only a window of the sequence; give one with full attention")
    return HybridAttention(base.get_decoder(), as_released)


def _backend(config: PretrainedConfig) -> str:
    """Which kernel computes attention.

    Raises:
        BadInput: one that can't take any mask.
    """
    backend = getattr(config, "_attn_implementation", None) or "eager"
    if backend not in _BACKENDS:
        raise BadInput(
            f"the decoder's attention is {backend!r}, which can't take a mask of this form; load it with"
            " attn_implementation='sdpa'"
        )
    return backend


def fitted(rows: Tensor, batch: int, length: int) -> Tensor:
    """Positions of prompts for what a decoder reads: rows repeated, as beams are, and words behind the prompt.

    Raises:
        BadInput: a batch that isn't the one that was told of.
    """
    if batch % len(rows) or length < rows.shape[1]:
        raise BadInput(
            f"the decoder reads {batch} rows of {length} tokens, and image_at was told of {tuple(rows.shape)}; call"
            " image_at for each batch, with the whole prompt"
        )
    repeated = rows.repeat_interleave(batch // len(rows), dim=0)
    return nn.functional.pad(repeated, (0, length - rows.shape[1]))
