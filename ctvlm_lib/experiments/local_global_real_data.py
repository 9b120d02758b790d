"""A user's CT-RATE and RadGenome-ChestCT made ready for a local–global arm: tables, volumes, vectors of texts."""

import time
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from ctvlm_lib.alignment import radgenome_pairs
from ctvlm_lib.alignment.radgenome_pairs import Pairs
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome
from ctvlm_lib.alignment.radgenome_training import Corpus, texts_of
from ctvlm_lib.alignment.radgenome_volumes import Volumes, prepare_all
from ctvlm_lib.alignment.text_vectors import TextVectors
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.local_global_real_scores import prompts
from ctvlm_lib.notebook_progress import duration
from ctvlm_lib.records.table import plural, some
from ctvlm_lib.sources import Sources

Tell = Callable[[str], None]
EVERY = 60  # seconds between two lines on how far something is


def read(config: OnRadGenome, given: Sources, home: Path, tell: Tell = lambda line: None) -> dict[str, Corpus]:
    """All splits; volumes are made ready first where the sources file names a folder for them.

    Several processes share the work, each beginning with its own part, and none waits for another.

    Args:
        config: what is trained.
        given: where data and text tower lie.
        home: gets ``texts``, the vectors.
        tell: called with a line now and then.

    Raises:
        BadInput: tables, or a text tower, that can't be used, or a split without a volume that can be read.
    """
    state = PartialState()
    share = state.process_index, state.num_processes
    pairs = radgenome_pairs.read(given.folder("ct_rate"), given.folder("radgenome"), config)
    tell("\n".join(note for split in pairs.values() for note in split.notes))
    volumes = volumes_of(config, given)
    if given.prepared:
        pairs = {split: _usable(split, some, volumes, config.workers, share, tell) for split, some in pairs.items()}
    every = [*prompts(), *texts_of(pairs.values())]
    texts = TextVectors.of(every, given.cxr_bert, home / "texts", state.device, tell, share)
    tell(f"{len(texts.number):,} different texts, {texts.too_long:,} of them cut to what the text tower takes")
    return {split: Corpus.of(some, volumes, texts) for split, some in pairs.items()}


def volumes_of(config: OnRadGenome, given: Sources) -> Volumes:
    """What makes an arm's volumes ready, on its encoder's patches."""
    encoder = config.shapes
    size = encoder.config.size_dhw_vox
    return Volumes(config.regions, size, encoder.grids(size)[0], given.prepared)


def pace(what: str, count: int, tell: Tell) -> Callable[[int], None]:
    """A function that is called with how many of ``count`` are done, and tells so now and then, with an estimate."""
    begun = time.monotonic()
    told = [begun]

    def one(done: int) -> None:
        now = time.monotonic()
        if done == count or now - told[0] > EVERY:
            told[0] = now
            left = (now - begun) / done * (count - done)
            tell(f"{what}: {done:,} of {count:,}" + (f" (about {duration(left)} left)" if done < count else ""))

    return one


def data_record(corpora: dict[str, Corpus]) -> dict:
    """What the data were: of each split volumes, patients and a hash; and what is missing, a sentence each."""
    splits, notes = {}, []
    for split, corpus in corpora.items():
        each = corpus.pairs.each
        splits[split] = {
            "volumes": len(each), "patients": len({pair.patient for pair in each}),
            "RadGenome-ChestCT's own volumes": sum(pair.own for pair in each), "sha256": corpus.pairs.digest(),
        }  # fmt: skip
        notes += [*corpus.pairs.notes, *_on_the_way(split, corpus)]
    return {"name": "CT-RATE and RadGenome-ChestCT", "splits": splits, "notes": notes}


def _on_the_way(split: str, corpus: Corpus) -> list[str]:
    """Regions that turned out not to be there when volumes were read."""
    if not corpus.notes:
        return []
    return [f"{split}: {plural(len(corpus.notes), 'region')} not aligned: {some(sorted(corpus.notes), 20)}"]


def _usable(split: str, pairs: Pairs, volumes: Volumes, workers: int, share: tuple[int, int], tell: Tell) -> Pairs:
    """Those volumes of a split that could be made ready, and a sentence on each that couldn't."""
    found = prepare_all(pairs.each, volumes, workers, share, pace(f"{split}: volumes ready", len(pairs), tell))
    both = list(zip(pairs.each, found, strict=True))
    notes = [f"{split}: {pair.name} left out: {why}" for pair, (why, _) in both if why]
    lost = [note for _, regions in found for note in regions]
    if lost:
        tell(f"{split}: {plural(len(lost), 'region')} not aligned: {some(lost, 3)}")
    tell("\n".join(notes) or f"{split}: every volume can be used")
    kept = tuple(pair for pair, (why, _) in both if not why)
    if not kept:
        raise BadInput(f"no volume of the {split} split can be used, e.g. {notes[0]}")
    return Pairs(kept, (*pairs.notes, *notes))
