"""Rewriting reports and region sentences with a chat model, as MedVista3D does; what it writes is kept on disk.

The paper prompts GPT-4o and Qwen2.5 with the words of Figure A.5. Here any instruct model does, by default
SmolLM2-135M. The figure's words ask for clarity and faithfulness; they don't ask for the presence-or-absence statements
of §3.2, and their three examples show rewritten texts without the originals. Both are sent as printed.

What comes out has to pass :func:`ctvlm_lib.alignment.enrichment.guarded` before anything is trained on it.

Source: medvista3d.txt §3.2, Figure A.5.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctvlm_lib import assets
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.vlm import smollm2
from ctvlm_lib.vlm.smollm2 import Chat

SYSTEM = (
    "You are a medical expert in radiology, specializing in chest CT. You will read concise image findings, and then"
    " rewrite with improved clarity. Always maintain faithfulness in your rewrite. Do not include new diagnostic"
    " information. Do not include bullet points or any other symbols, or explain your thinking. Only generate"
    " sentences."
)
EXAMPLES = (
    "Subsegmental atelectatic changes were observed in the right lung middle lobe.",
    "Peripheral consolidations observed in the apicoposterior segment of the left upper lobe demonstrate a pattern"
    " suggestive of COVID-19 pneumonia.",
    "Atherosclerosis is present in the aorta and coronary arteries.",
)  # fmt: skip


def system_prompt() -> str:
    """The words of Figure A.5, its examples included."""
    shown = "\n".join(f"Few-shot example {k}: {text}" for k, text in enumerate(EXAMPLES, start=1))
    return f"{SYSTEM}\n{shown}"


@dataclass
class ChatRewriter:
    """Texts to rewrites, each text rewritten once and then read from the cache.

    Attributes:
        chat: the model; its ``system`` is what it is told first.
        name: of the model, part of the cache's key.
        most: largest number of new tokens of a rewrite.
        cache: folder for rewrites; None takes the workbook's cache.
    """

    chat: Chat = field(repr=False)
    name: str
    most: int = 64
    cache: Path | None = None

    @classmethod
    def of(cls, model: str = smollm2.ASSET, profile: str = "quick", **options) -> "ChatRewriter":
        """Load a model.

        Args:
            model: "smollm2", or in profile ``paper`` any instruct model by folder or repository id.
            profile: quick, full or paper.
            options: other attributes.

        Raises:
            BadInput: a hub outside profile ``paper``, or a model that can't be had or has no chat template.
        """
        if model == smollm2.ASSET:
            return cls(Chat(*smollm2.load(), system=system_prompt()), model, **options)
        if profile != "paper":
            raise BadInput(f"chat model {model!r} lies on a hub, which is asked only in profile paper; take 'smollm2'")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
            network = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        except (OSError, ValueError) as error:
            raise BadInput(f"no chat model can be had from {model!r} ({str(error).splitlines()[0]})") from error
        if not tokenizer.chat_template:
            raise BadInput(f"{model!r} has no chat template; give an instruct model, e.g. Qwen/Qwen2.5-0.5B-Instruct")
        return cls(Chat(network, tokenizer, system=system_prompt()), model, **options)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Rewrite texts, greedily, one sequence of sentences each."""
        path = self._path()
        known = _read(path)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= dict(zip(new, map(_one_line, self.chat.ask_all(new, self.most)), strict=True))
            with atomic_path(path) as partial:
                partial.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
        return [known[text] for text in texts]

    def _path(self) -> Path:
        key = hashlib.sha256(json.dumps([self.name, self.chat.system, self.most]).encode()).hexdigest()[:16]
        return (assets.cache_dir() if self.cache is None else self.cache) / "rewrites" / f"{key}.json"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path) -> dict[str, str]:
    """What was rewritten before; nothing if there is no file or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        return {}
    return content if isinstance(content, dict) else {}
