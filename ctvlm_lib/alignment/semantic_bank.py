"""The radiology semantic matching bank: a queue of recent text vectors, asked for the nearest to a new one.

An enriched text is not compared with its image directly; the text in the bank that is nearest to it is (medvista3d.txt
§3.2). What the paper leaves open, and what is decided here:

- *Empty*: Algorithm 1 doesn't say what lies in the queue at first. ``start="empty"``: only what was pushed counts, and
  while nothing was, each text is its own neighbour. ``start="random"``: random directions that are overwritten one by
  one, as in other work with such queues; they can win a search.
- *Full*: Algorithm 1 writes what fits behind the pointer, drops the rest of the batch and goes back to the start
  (``overflow="as printed"``). A queue goes on with the rest at the start (``overflow="wrap"``).
- *Oneself*: the text of the same patient that was pushed an epoch ago is the trivial one. ``exclude_self`` leaves it
  out; how often it won is counted either way.
- *Several neighbours* (Figure 3 says top-k, the text top-1): their mean, brought to length one.
- *Gradients*: the bank holds detached vectors, so a semantic loss trains the image side and the temperature only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctvlm_lib.alignment.gather import gathered
from ctvlm_lib.errors import BadInput

PAPER_SIZE = 65_536  # "64k-sized"
OVERFLOWS = ("wrap", "as printed")
STARTS = ("empty", "random")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What the bank answered.

    Attributes:
        text: ``(n, width)`` of length one, without gradient.
        similarity: ``(n,)``: cosine of each query and its best neighbour; 1 where the bank was empty.
        own: bool ``(n,)``: the best neighbour is an older vector of the same owner.
        place: int ``(n,)``: its place in the bank, −1 where the bank was empty.
    """

    text: Tensor
    similarity: Tensor
    own: Tensor
    place: Tensor


class SemanticBank(nn.Module):
    """A first-in-first-out queue of text vectors with nearest-neighbour search by cosine.

    Args:
        width: of the vectors.
        size: how many it holds.
        neighbours: of each query, averaged.
        overflow: "wrap" or "as printed".
        start: "empty" or "random".
        exclude_self: a query doesn't find vectors of its own owner.
        seed: of the random start.

    Raises:
        BadInput: an unknown option, or a size below the number of neighbours.

    Source: medvista3d.txt §3.2, Figure 3b, Algorithm 1.
    """

    def __init__(
        self,
        width: int,
        size: int = PAPER_SIZE,
        neighbours: int = 1,
        overflow: str = "wrap",
        start: str = "empty",
        exclude_self: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        for what, value, known in (("overflow", overflow, OVERFLOWS), ("start", start, STARTS)):
            if value not in known:
                raise BadInput(f"{what} is {value!r}; choose one of {', '.join(known)}")
        if not 1 <= neighbours <= size:
            raise BadInput(f"neighbours must be from 1 to the bank's size, got {neighbours} of {size}")
        self.size, self.neighbours = size, neighbours
        self.overflow, self.start, self.exclude_self = overflow, start, exclude_self
        texts = torch.zeros(size, width)
        if start == "random":
            drawn = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
            texts = functional.normalize(drawn, dim=1)
        self.register_buffer("texts", texts)
        self.register_buffer("owners", torch.full((size,), -1))
        self.register_buffer("pointer", torch.tensor(0))  # the next place to write
        self.register_buffer("filled", torch.tensor(size if start == "random" else 0))  # so many places count

    def __len__(self) -> int:
        """How many vectors a search looks at."""
        return int(self.filled)

    @torch.no_grad()
    def nearest(self, query: Tensor, owners: Tensor | None = None) -> Neighbours:
        """Find each query's nearest vectors.

        Args:
            query: ``(n, width)`` of length one.
            owners: int ``(n,)``: whose texts they are, numbers from 0; None: nobody's.

        Raises:
            BadInput: another width.
        """
        self._check(query)
        query = query.detach().float()
        owners = torch.full((len(query),), -2, device=query.device) if owners is None else owners
        held = len(self)
        if not held:
            ones = torch.ones(len(query), device=query.device)
            return Neighbours(query, ones, ones < 0, torch.full_like(owners, -1))
        alike = query @ self.texts[:held].T  # (n, held)
        if self.exclude_self:
            alike = alike.masked_fill(owners[:, None] == self.owners[None, :held], -torch.inf)
        best, place = alike.topk(min(self.neighbours, held), dim=1)
        found = self.texts[place] * best.isfinite()[..., None]
        text = functional.normalize(found.sum(dim=1), dim=1)
        alone = ~best[:, :1].isfinite()  # everything in the bank is its own
        text = torch.where(alone, query, text)
        return Neighbours(text, best[:, 0], self.owners[place[:, 0]] == owners, place[:, 0])

    @torch.no_grad()
    def push(self, texts: Tensor, owners: Tensor | None = None, real: Tensor | None = None) -> None:
        """Add vectors at the end of the queue, those of all processes; the oldest make room.

        Args:
            texts: ``(n, width)``.
            owners: int ``(n,)``.
            real: bool ``(n,)``: the others are not texts and are left out; None: all are.

        Raises:
            BadInput: more vectors than the bank holds, or another width.
        """
        self._check(texts)
        owners = torch.full((len(texts),), -1, device=texts.device) if owners is None else owners
        real = torch.ones_like(owners, dtype=torch.bool) if real is None else real
        texts, owners, real = gathered(texts.detach().float()), gathered(owners), gathered(real)
        texts, owners = texts[real], owners[real]
        if len(texts) > self.size:
            raise BadInput(
                f"{len(texts)} texts at once don't fit a bank of {self.size}; make it larger than a batch's texts"
            )
        at = int(self.pointer)
        if self.overflow == "as printed":
            kept = texts[: self.size - at]
            self.texts[at : at + len(kept)], self.owners[at : at + len(kept)] = kept, owners[: len(kept)]
            self.pointer.fill_(0 if at + len(texts) > self.size else at + len(texts))
            self.filled.clamp_(min=at + len(kept))
            return
        places = (at + torch.arange(len(texts), device=texts.device)) % self.size
        self.texts[places], self.owners[places] = texts, owners
        self.pointer.fill_((at + len(texts)) % self.size)
        self.filled.clamp_(min=min(self.size, at + len(texts)))

    def _check(self, texts: Tensor) -> None:
        if texts.ndim != 2 or texts.shape[1] != self.texts.shape[1]:
            raise BadInput(f"the bank holds vectors of width {self.texts.shape[1]}, got {tuple(texts.shape)}")
