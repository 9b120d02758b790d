"""What is measured: an answer and a LoRA step of a vision–language model, a pass of its encoder. Weights are random.

The model is the workbook's own: DCFormer-small, the mixer and a decoder, all in 16 bits and frozen, attention through
PyTorch's fused kernels. Its numbers mean nothing, and time and memory don't depend on them. In a step adapters of rank
16 learn under autocast, in 32 bits, with AdamW; logits are computed for all places of the sequence. Each call draws its
own volumes and words, on the device.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ctvlm_lib.cost.layouts import in_released_layout
from ctvlm_lib.cost.timing import REPEATS, TOO_LARGE, WARM_UP, Taken, free, taken
from ctvlm_lib.encoder.config import DCFormerConfig, variant_config
from ctvlm_lib.encoder.inference import for_inference
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm import memory
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.lora_counts import qwen_config
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.projector import QWEN_WIDTHS
from ctvlm_lib.vlm.splice import IGNORED

ANSWER, FIRST, FURTHER, STEP = "answer", "first token", "further token", "LoRA step"
FORWARD, BOTH = "encoder, forward", "encoder, forward + backward"
RELEASED, OURS, FOLDED = "released layout", "ours", "ours, folded"
_PRECISION = torch.bfloat16


@dataclass(frozen=True)
class Plan:
    """How much is measured; the defaults are the papers' sizes.

    Attributes:
        decoders: name → configuration.
        batches: rows of a question or step.
        encoder: configuration of the DCFormer, with BatchNorm. size_dhw_vox: of volumes.
        question_tokens: of a question, image vectors included. answer_tokens: written for it, ≥ 2.
        step_tokens: of a row in training, image vectors included.
        repeats: timed calls of each. warm_up: calls before these.
        encoder_batch: volumes of an encoder's pass.
        compiled: measure the encoder under ``torch.compile`` as well.
    """

    decoders: Mapping[str, PretrainedConfig] = field(default_factory=lambda: {n: qwen_config(n) for n in QWEN_WIDTHS})
    batches: tuple[int, ...] = (1, 4)
    encoder: DCFormerConfig = field(default_factory=lambda: variant_config("small"))
    size_dhw_vox: tuple[int, int, int] = (128, 256, 256)
    question_tokens: int = 384
    answer_tokens: int = 32
    step_tokens: int = 512
    repeats: int = REPEATS
    warm_up: int = WARM_UP
    encoder_batch: int = 4
    compiled: bool = True

    def __post_init__(self) -> None:
        if self.answer_tokens < 2:
            raise BadInput(f"answer_tokens is {self.answer_tokens}; the time of a further token needs 2 or more")

    def described(self) -> dict:
        """What a record says of it."""
        return {
            "batches": list(self.batches), "encoder": self.encoder.variant, "size_dhw_vox": list(self.size_dhw_vox),
            "question_tokens": self.question_tokens, "answer_tokens": self.answer_tokens,
            "step_tokens": self.step_tokens, "repeats": self.repeats, "encoder_batch": self.encoder_batch,
        }  # fmt: skip


def of_decoder(name: str, plan: Plan, device: torch.device | str, seed: int = 0) -> Iterator[dict]:
    """Measure one model: its answers, then its LoRA steps with and without checkpointing.

    Args:
        name: in ``plan.decoders``.
        plan: how much. device: where. seed: of the random weights.

    Yields:
        rows of :func:`row`. What doesn't fit on the device has a row that says so.
    """
    try:
        model = build(plan.decoders[name], plan, device, seed)
    except torch.OutOfMemoryError:
        model = None
    free(device)
    for batch in plan.batches:
        yield from _answers(name, model, batch, plan, device)
    try:
        model = model and adapted(model)
    except torch.OutOfMemoryError:
        model = None
    free(device)
    for checkpointing in (False, True):
        if checkpointing and model:
            memory.recompute(model.decoder)
        for batch in plan.batches:
            run = model and lora_step(model, batch, plan.step_tokens, device)
            yield row(STEP, name, batch, _taken(run, plan, device), checkpointing=checkpointing)


def of_encoder(plan: Plan, device: torch.device | str, seed: int = 0) -> Iterator[dict]:
    """Measure the encoder alone in its layouts, forward and with the way back, and under ``torch.compile``.

    The folded form is made for inference and has no backward pass; it isn't compiled.

    Yields:
        rows of :func:`row`; a layout that can't be compiled has a row that says why.
    """
    for layout in (RELEASED, OURS):
        for compiled in (False, True)[: 1 + plan.compiled]:
            for what in (FORWARD, BOTH):
                found = _encoder_pass(layout, what, compiled, plan, device, seed)
                yield row(what, layout, plan.encoder_batch, found, compiled=compiled)
    found = _encoder_pass(FOLDED, FORWARD, False, plan, device, seed)
    yield row(FORWARD, FOLDED, plan.encoder_batch, found, compiled=False)


def row(what: str, model: str, batch: int, found: Taken, checkpointing: bool | None = None,
        compiled: bool | None = None) -> dict:  # fmt: skip
    """One measurement: what, model, batch, checkpointing, compiled, seconds, peak and reserved GB, status."""
    return {
        "what": what, "model": model, "batch": batch, "checkpointing": checkpointing, "compiled": compiled,
        "seconds": found.seconds, "peak, GB": found.peak_gb, "reserved, GB": found.reserved_gb, "status": found.status,
    }  # fmt: skip


def build(decoder: PretrainedConfig, plan: Plan, device: torch.device | str, seed: int = 0) -> CtvlmModel:
    """A whole model with random weights in 16 bits, made on the device; nothing is downloaded."""
    torch.manual_seed(seed)
    with _made_on(device):
        encoder = DCFormer(plan.encoder)
        made = AutoModelForCausalLM.from_config(decoder, attn_implementation="sdpa", dtype=_PRECISION)
        model = CtvlmModel.assemble(
            encoder, made, size_dhw_vox=plan.size_dhw_vox, image_token_id=decoder.vocab_size, seed=seed
        )
    return model.freeze(encoder=True, projector=True, decoder=None).eval()


def adapted(model: CtvlmModel) -> CtvlmModel:
    """Put adapters into the model's decoder; nothing else learns. The model is changed in place."""
    model.decoder = with_lora(model.decoder)
    return model.train()


def batch_of(model: CtvlmModel, rows: int, tokens: int, device: torch.device | str) -> dict[str, Tensor]:
    """Random volumes, and rows of the image's placeholders with random words behind them.

    Raises:
        BadInput: no place for a word.
    """
    config = model.config
    if tokens <= config.image_tokens:
        raise BadInput(f"{tokens} tokens leave no place for words beside {config.image_tokens} of the image; give more")
    ids = torch.randint(0, config.vocab_size, (rows, tokens), device=device)
    ids[:, : config.image_tokens] = config.image_token_id
    volumes = torch.rand(rows, model.encoder.config.in_channels, *config.size_dhw_vox, device=device, dtype=_PRECISION)
    return {"input_ids": ids, "images": volumes}


def lora_step(model: CtvlmModel, rows: int, tokens: int, device: torch.device | str) -> Callable[[], None]:
    """A step of training as a call: the encoder's pass, the decoder's both ways, AdamW on the adapters."""
    learns = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        batch = batch_of(model, rows, tokens, device)
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, IGNORED)
        with torch.autocast(torch.device(device).type, _PRECISION):
            loss = model(**batch, labels=labels, use_cache=False).loss
        loss.backward()
        optimiser.step()

    return step


def _answers(name: str, model: CtvlmModel | None, batch: int, plan: Plan, device) -> Iterator[dict]:
    """The time to the first token, with the encoder's pass, to the whole answer, and from these to each further one."""
    found = {}
    for what, length in ((FIRST, 1), (ANSWER, plan.answer_tokens)):

        def run(length: int = length) -> Tensor:
            question = batch_of(model, batch, plan.question_tokens, device)
            return model.generate(**question, max_new_tokens=length, min_new_tokens=length)

        found[what] = _taken(model and run, plan, device)
        yield row(what, name, batch, found[what])
    first, whole = found[FIRST], found[ANSWER]
    if first.seconds is not None and whole.seconds is not None:
        whole = replace(whole, seconds=(whole.seconds - first.seconds) / (plan.answer_tokens - 1))
    yield row(FURTHER, name, batch, whole)


def _encoder_pass(layout: str, what: str, compiled: bool, plan: Plan, device, seed: int) -> Taken:
    torch.manual_seed(seed)
    try:
        with _made_on(device):
            encoder = DCFormer(plan.encoder)
            volume = torch.rand(plan.encoder_batch, plan.encoder.in_channels, *plan.size_dhw_vox)
        encoder = in_released_layout(encoder) if layout == RELEASED else encoder
        run = for_inference(encoder) if layout == FOLDED else torch.compile(encoder) if compiled else encoder
        both = what == BOTH
        encoder.train(both)
        return taken(lambda: _pass(run, volume, both), device, plan.repeats, plan.warm_up)
    except torch.OutOfMemoryError:
        return Taken(status=TOO_LARGE)
    except Exception as error:
        if not compiled:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Taken(status=f"torch.compile failed: {type(error).__name__}: {reason}"[:200])
    finally:
        torch.compiler.reset()  # what was compiled holds memory


def _pass(encoder: nn.Module, volume: Tensor, both: bool) -> None:
    with torch.set_grad_enabled(both):
        tokens = encoder(volume)
    if both:
        sum(stream.float().square().mean() for stream in tokens[-2:]).backward()  # the streams that a projector reads
        encoder.zero_grad(set_to_none=True)


def _taken(run: Callable[[], object] | None, plan: Plan, device: torch.device | str) -> Taken:
    return taken(run, device, plan.repeats, plan.warm_up) if run else Taken(status=TOO_LARGE)


@contextmanager
def _made_on(device: torch.device | str) -> Iterator[None]:
    """New tensors are 16-bit ones on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(_PRECISION)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
