"""``ctvlm arm NAME``: train what one row of a table needs, predict, score, store."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from ctvlm_lib import cost, sources
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import check_profile, check_seed, run_folder

MORE = """\
arms whose name ends in -m3d are of profile paper and train on your copy of M3D-Cap:
  ctvlm arm dcformer-siglip-m3d --profile paper --data DIR
  ctvlm arm dcformer-siglip-m3d --profile paper --data DIR --start MagicXin/DCFormer_SigLIP --epochs 0
the second only scores the released weights.

DATA-CONDITION-DECODER[-PROJECTOR] is a vision-language model on your RadGenome-ChestCT or M3D, such as
radgenome-contour-0.5B, m3d-none-7B-2xMLP, m3d-none-released; FILE says where data and weights lie
(ctvlm_lib/sources.py shows one):
  ctvlm arm radgenome-contour-0.5B --profile paper --sources FILE

align-NAME trains MedVista3D's encoder on your CT-RATE and RadGenome-ChestCT, after saying what that costs:
  ctvlm arm align-full --profile paper --sources FILE

uvlm-NAME trains U-VLM's stages on your CT-RATE and ReXGroundingCT, uvlm-NAME-abdomen on your AbdomenAtlas 3.0; arms
that it begins with are trained first:
  ctvlm arm uvlm-rep-FL-cls-skip --profile paper --sources FILE
  ctvlm arm uvlm-rep-CL-cls-skip-abdomen --profile paper --sources FILE

several GPUs, or several processes on a CPU (an ordinary `accelerate launch --cpu` starts one process only):
  accelerate launch --config_file "$(python -m ctvlm_lib.launch ddp)" -m ctvlm_lib arm NAME …
  ACCELERATE_USE_CPU=true accelerate launch --config_file "$(python -m ctvlm_lib.launch cpu_pair)" -m ctvlm_lib arm …
a step's batch is shared by the processes; the same command goes on where it stopped. Encoders' arms and those of
profile paper can be trained so; the others are small, and refuse it.
"""


def size(text: str) -> tuple[int, int, int]:
    """ "64x128x128" → (64, 128, 128)."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a size such as 64x128x128")
    return tuple(int(side) for side in text.split("x"))


CHANGES = {  # option: (type, placeholder, help)
    "patients": (int, "N", "a trial with fewer patients in each split"),
    "steps": (int, "N", "a trial with fewer optimiser steps"),
    "batch": (int, "N", "volumes a step, over all processes, e.g. 64 for one GPU in profile paper"),
    "epochs": (int, "N", "profile paper: how often each volume is seen; 0 only scores what --start names"),
    "start": (str, "WEIGHTS", "profile paper: a folder, file or repository of weights to begin with"),
    "text": (str, "DIR", "profile paper: text tower, a folder or a repository instead of medicalai/ClinicalBERT"),
    "variant": (str, "NAME", "profile paper: a smaller or larger encoder, e.g. tiny instead of small"),
    "size": (size, "DxHxW", "profile paper: voxels that volumes are brought to, instead of 128x256x256"),
    "workers": (int, "N", "profile paper: threads that read volumes, in each process (8)"),
}


PATTERNS = """\
readout-ENCODER-CONDITION[-out-of-window], e.g. readout-B-none: cross-attention from the question's names to the tokens,
                     without a language model; ENCODER A, B; --patients N learns from fewer
vlm-ENCODER-CONDITION-DECODER[-VARIANT], e.g. vlm-B-contour-small: a vision-language model
                     ENCODER A, A-continued, B; CONDITION none, contour, box, dual;
                     DECODER small, middle, large, smollm2;
                     VARIANT scratch, blind, longer, patients100, patients200, patients400, pictures4, a projector:
                     2xMLP, 2xMLP-H, 1xMLP-Mixer-H, 2xMLP-Mixer-H, slice attention: SSA, MSSA, MSSA-by-slice,
                     SSA-as-printed, the contour paper's loss: focal, focal-head, lines of values that no tissue has:
                     out-of-window, or of small and middle distilled, from the large decoder, undistilled, the same
                     epoch without it"""
NAMES = {"size_dhw_vox": "size", "train_text": "textTrained"}  # in a folder's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm arm``."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, MORE
    parser.add_argument("name", nargs="?", metavar="NAME", help="the arm; without it, the list")
    parser.add_argument("--profile", default="full", help="quick, full (default) or paper: how many patients")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--out", default="", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out)")
    parser.add_argument("--data", default="", metavar="DIR", help="profile paper: the folder that holds M3D_Cap_npy")
    parser.add_argument("--sources", default="", metavar="FILE", help="profile paper: where your data and weights lie")
    parser.add_argument("--check", action="store_true", help="profile paper: read every volume to its end first (slow)")
    parser.add_argument(
        "--frozen-text", action="store_true", help="profile paper: keep the text tower as it was pretrained"
    )
    for option, (kind, placeholder, text) in CHANGES.items():
        parser.add_argument(f"--{option}", type=kind, metavar=placeholder, help=text)


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm arm``; what is finished is kept, and the same command goes on from there."""
    check_profile(args.profile)
    sources.check_profile(args.sources, args.profile)
    check_seed(args.seed)
    if args.name == cost.ARM:
        return _cost(args)
    from ctvlm_lib.alignment import arms
    from ctvlm_lib.experiments import chat_arms, local_global, predicted_prompts, probes, uvlm_arms

    if args.name is None:
        for name, arm in arms.ARMS.items():
            print(f"{name:20} {_described(arm)}")
        for name, encoder in probes.PROBES.items():
            print(f"{name:20} linear read-outs of encoder {encoder}, under every prompt and control")
        for name, recipe in local_global.ARMS.items():
            print(f"{name:20} local and global alignment: {local_global.described(recipe)}")
        for name, told in chat_arms.DESCRIBED.items():
            print(f"{name:20} a vision-language model: {told}")
        for name, stage in uvlm_arms.ARMS.items():
            print(f"{name:20} U-VLM, {uvlm_arms.described(stage)}")
        print(f"{arms.FACTS:20} report retrieval by readers who know facts of a patient and see no image")
        print(f"{predicted_prompts.NAME:20} shipped prompted models, with prompts on masks that U-VLM's stage 1 finds")
        print(f"{cost.ARM:20} time and memory of the papers' decoders and of the encoder, measured on a GPU")
        print(PATTERNS)
        return 0
    if args.name in probes.PROBES:
        return _probe(args)
    if args.name.startswith("vlm-"):
        return _vlm(args)
    if args.name.startswith("readout-"):
        return _read_out(args)
    if args.name.startswith("align-"):
        return _align(args)
    if args.name.startswith("chat-"):
        return _chat(args)
    if args.name.startswith("uvlm-"):
        return _uvlm(args)
    if args.name == predicted_prompts.NAME:
        return _predicted(args)
    if args.name == arms.FACTS:
        return _facts(args)
    if args.name.startswith(("radgenome-", "m3d-")):
        return _real(args)
    if args.name not in arms.ARMS:
        patterns = ("readout-ENCODER-CONDITION[-out-of-window]", "vlm-ENCODER-CONDITION-DECODER[-VARIANT]",
                    "DATA-CONDITION-DECODER[-PROJECTOR] (profile paper)")  # fmt: skip
        there = (*arms.ARMS, *probes.PROBES, *local_global.ARMS, *chat_arms.ARMS, *uvlm_arms.ARMS,
                 arms.FACTS, predicted_prompts.NAME, cost.ARM)  # fmt: skip
        there += patterns
        raise BadInput(f"no arm is called {args.name!r}; there are: {', '.join(there)}")
    home, changes = run_folder(args.profile, args.out), _changes(args)
    label = arms.of_seed(args.name + _suffix(changes), args.seed)
    result = arms.run(
        args.name,
        folder=home / "training" / label,
        checkpoint_folder=home / "checkpoints",
        results=home / "results",
        profile=args.profile,
        seed=args.seed,
        changes=changes,
        label=label,
    )
    if "test" in result.record:  # of several processes only the first has scored
        print(f"{label}: {_score(result.record['test'])},")
        weights = f", weights in {home / 'checkpoints' / label}" if result.curve else ""
        print(f"tables in {home / 'results' / label}{weights}")
    return 0


def run_arm(words: Sequence[str]) -> int:
    """Run ``ctvlm arm`` with the words of a command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return command(parser.parse_args(list(words)))


def _probe(args: argparse.Namespace) -> int:
    """Fit and ask the pointing reader; it has no seed and no settings."""
    from ctvlm_lib.experiments import probes

    if args.seed or _changes(args):
        raise BadInput(f"{args.name} has no seed and no settings: what ships is asked; give --profile and --out only")
    home = run_folder(args.profile, args.out)
    results = home / "results"
    probes.run(args.name, results=results, folder=home / "training" / args.name, profile=args.profile, progress=print)
    print(f"answers in {results / args.name}; notebook 80 shows what follows from them")
    return 0


def _facts(args: argparse.Namespace) -> int:
    """Write what readers without an image retrieve; nothing is trained and nothing drawn at random."""
    from ctvlm_lib.alignment import arms

    if args.seed or _changes(args):
        raise BadInput(f"{args.name} has no seed and no settings; give --profile and --out only")
    results = run_folder(args.profile, args.out) / "results"
    arms.run_facts(args.profile, results)
    print(f"tables in {results / args.name}; notebook 50 shows what follows from them")
    return 0


def _vlm(args: argparse.Namespace) -> int:
    """Train a vision–language model on the cohort, ask it everything, store its answers."""
    from ctvlm_lib.alignment.arm_tables import of_seed
    from ctvlm_lib.experiments import vlm_arms, vlm_run
    from ctvlm_lib.experiments.vlm_tables import by_kind, of_table

    changes = _only(args, "patients", "steps")
    label = of_seed(args.name + _suffix(changes), args.seed)
    changes |= {"lora_steps": changes.pop("steps")} if "steps" in changes else {}
    vlm_arms.recipe_of(args.name, args.seed, changes)  # a wrong name is told before a cohort is drawn
    home = run_folder(args.profile, args.out)
    results = home / "results"
    said = vlm_run.run(
        args.name, args.profile, args.seed, changes=changes, label=label, results=results,
        folder=home / "training" / label, checkpoint_folder=home / "checkpoints",
    )  # fmt: skip
    print(by_kind([of_table(args.name, said["test"], args.seed)]).to_string(index=False))
    print(f"closed accuracy on test, region named, in %; answers in {results / label}")
    return 0


def _real(args: argparse.Namespace) -> int:
    """Train or load a model of profile paper, ask it about the user's data, store its answers."""
    from ctvlm_lib.experiments import real_arms

    real_arms.arm_of(args.name)  # a wrong name is told before anything is read
    if args.profile != "paper":
        raise BadInput(f"{args.name} is of profile paper: give --profile paper and --sources FILE")
    extra = sorted(_changes(args))
    if extra:
        raise BadInput(f"{args.name} takes --seed and --sources, not --{extra[0]}; write it into the sources file")
    home = run_folder(args.profile, args.out)
    real_arms.run(args.name, sources.load(args.sources), args.seed, home=home)
    print(f"answers in {home / 'results'}; `ctvlm ledger --profile paper` shows what follows from them")
    return 0


def _read_out(args: argparse.Namespace) -> int:
    """Train a cross-attention read-out of an encoder's tokens, ask it, store its answers."""
    from ctvlm_lib.experiments import read_out

    _only(args, "patients")
    recipe = read_out.recipe_of(args.name, args.seed, args.patients or 0)
    home, label = run_folder(args.profile, args.out), read_out.label_of(recipe)
    results = home / "results"
    read_out.run(args.name, args.profile, args.seed, patients=recipe.patients, results=results,
                 folder=home / "training" / label)  # fmt: skip
    print(f"answers in {results / label}")
    return 0


def _align(args: argparse.Namespace) -> int:
    """Train a local–global arm, ask it about validation, test and external patients, store its scores."""
    if args.profile == "paper":
        from ctvlm_lib.experiments import local_global_real

        changes = _changes(args)
        return local_global_real.command(args.name, args.seed, args.sources, args.out, changes, _suffix(changes))
    from ctvlm_lib.experiments import local_global
    from ctvlm_lib.experiments.local_global_tables import Store, over_seeds
    from ctvlm_lib.ledger.local_global import write_table

    changes = _only(args, "patients", "steps", "batch")
    local_global.recipe_of(args.name, args.seed, changes)  # a wrong name is told before a cohort is drawn
    home, label = run_folder(args.profile, args.out), local_global.of_seed(args.name + _suffix(changes), args.seed)
    world = local_global.World(args.profile)
    local_global.run(
        args.name, args.seed, world, changes=changes, label=label, results=home / "results",
        folder=home / "training" / label, checkpoint_folder=home / "checkpoints",
    )  # fmt: skip
    local_global.store_truth(world, home / "results")
    write_table(home / "results" / label)
    store, name = Store((home / "results",)), args.name + _suffix(changes)
    for measure in ("global AUROC", "local AUROC", "R@10", "grounding top-50"):
        one = over_seeds(store, name, measure)
        print(f"{measure}: {one['value']:.1f} % ({one['low']:.1f} to {one['high']:.1f}), {one['seeds']} seed(s)")
    print(f"on test; scores in {home / 'results' / label}")
    return 0


def _chat(args: argparse.Namespace) -> int:
    """Train a chat arm, ask it the four tasks of MedVista3D's Table 3, store its answers."""
    from ctvlm_lib.experiments import chat_arms
    from ctvlm_lib.experiments.chat_tables import read_table
    from ctvlm_lib.ledger.chat import write_table

    changes = _only(args, "patients", "steps")
    label = chat_arms.of_seed(args.name + _suffix(changes), args.seed)
    changes |= {"lora_steps": changes.pop("steps")} if "steps" in changes else {}
    chat_arms.recipe_of(args.name, args.seed, changes)  # a wrong name is told before a cohort is drawn
    home = run_folder(args.profile, args.out)
    results = home / "results"
    chat_arms.run(
        args.name, args.profile, args.seed, changes=changes, label=label, results=results,
        folder=home / "training" / label, checkpoint_folder=home / "checkpoints",
    )  # fmt: skip
    write_table(results / label)
    print(read_table(results / label).loc["test"].to_string())
    print(f"on test, in the paper's scale; answers in {results / label}")
    return 0


def _uvlm(args: argparse.Namespace) -> int:
    """Train an arm of U-VLM, and before it those that it begins with; ask it, store what it said."""
    if args.profile == "paper":
        from ctvlm_lib.experiments import uvlm_real

        changes = _changes(args)
        return uvlm_real.command(args.name, args.seed, args.sources, args.out, changes, _suffix(changes))
    from ctvlm_lib.experiments import uvlm, uvlm_arms
    from ctvlm_lib.experiments.uvlm_tables import Store
    from ctvlm_lib.ledger.uvlm import write_table

    changes = _only(args, "patients", "steps", "batch")
    suffix, given = _suffix(changes), dict(changes)
    uvlm_arms.arm_of(args.name)  # a wrong name is told before a cohort is drawn
    fewer = {"train": given.pop("patients")} if "patients" in given else None
    home, label = run_folder(args.profile, args.out), uvlm.of_seed(args.name + suffix, args.seed)
    world, results = uvlm.World(args.profile, fewer), home / "results"
    uvlm.run(
        args.name, args.seed, world, changes=given, label=label, results=results, folder=home / "training",
        checkpoint_folder=home / "checkpoints",
    )  # fmt: skip
    uvlm.store_truth(world, results)
    store = Store((results,))
    for name, seeds in store.arms().items():
        for seed in seeds:
            write_table(results / uvlm.of_seed(name, seed))
    found = store.scores(args.name + suffix, args.seed)
    for measure in (one for one in uvlm.SHOWN if one in found):
        low, high = found[measure].interval()
        print(f"{measure}: {100 * found[measure].value:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    print(f"on test; what it said is in {results / label}")
    return 0


def _predicted(args: argparse.Namespace) -> int:
    """Ask the shipped prompted models with prompts from true masks, from found ones, and without; store the answers."""
    from ctvlm_lib import checkpoints
    from ctvlm_lib.experiments import predicted_prompts

    _only(args)
    home, source = run_folder(args.profile, args.out), predicted_prompts.of_seed(predicted_prompts.SOURCE, args.seed)
    own = home / "checkpoints"
    folder = own if (own / source).is_dir() else checkpoints.FOLDER
    said = predicted_prompts.run(args.seed, args.profile, checkpoint_folder=folder, results=home / "results",
                                 progress=print)  # fmt: skip
    lost = predicted_prompts.loss_table(said).round(3)
    print(lost[["condition", "stratum", "masks", "questions", "accuracy", "less than true", "not drawn"]].to_string())
    print(f"closed accuracy on test; answers in {home / 'results' / predicted_prompts.of_seed(args.name, args.seed)}")
    return 0


def _cost(args: argparse.Namespace) -> int:
    """Measure time and memory on a GPU; PyTorch, transformers and peft are enough."""
    from ctvlm_lib.cost import gpu

    _only(args)
    return gpu.command(args.seed, args.profile, args.out)


def _described(arm) -> str:
    if arm.corpus:
        return (
            f"{arm.encoder}, {arm.objective}, {arm.loss}, M3D-Cap: {arm.corpus.epochs} epochs, batches of {arm.batch}"
        )
    after = f", goes on from {arm.start}" if arm.start else ""
    return f"{arm.encoder}, {arm.objective}, {arm.loss}, {arm.training.steps:,} steps of {arm.batch}{after}"


def _changes(args: argparse.Namespace) -> dict:
    given = {name: getattr(args, name) for name in CHANGES if getattr(args, name) is not None}
    given |= {"size_dhw_vox": given.pop("size")} if "size" in given else {}
    given |= {"folder": args.data} if args.data else {}
    given |= {"check": True} if args.check else {}
    return given | ({"train_text": False} if args.frozen_text else {})


def _only(args: argparse.Namespace, *known: str) -> dict:
    """What was asked for otherwise, if an arm of this kind has it."""
    changes = _changes(args)
    if extra := sorted(set(changes) - set(known)):
        options = ["--seed", *(f"--{one}" for one in known)]
        told = " and ".join(filter(None, (", ".join(options[:-1]), options[-1])))
        raise BadInput(f"{args.name} takes {told}, not --{extra[0]}; leave it out")
    return changes


def _suffix(changes: dict) -> str:
    """What was run otherwise than the recipe says doesn't take the recipe's name: ``-batch64-epochs0``."""
    told = {k: v for k, v in changes.items() if k not in ("folder", "workers", "check")}
    return "".join(f"-{NAMES.get(k, k)}{_in_a_name(v)}" for k, v in told.items())


def _in_a_name(value) -> str:
    plain = "x".join(map(str, value)) if isinstance(value, tuple) else Path(str(value)).name
    return re.sub(r"[^A-Za-z0-9_.]+", "_", plain)[:40]


def _score(test: dict) -> str:
    if "ceiling" in test:
        ceiling = test["ceiling"]
        return f"ceiling on test {ceiling['four_way']:.3f} ({ceiling['low']:.3f} to {ceiling['high']:.3f})"
    largest = max(row["gallery"] for row in test["recall"])
    first = [r for r in test["recall"] if r["k"] == 1 and r["gallery"] == largest and r["counted"] == "own text"]
    told = ", ".join(f"{row['direction']} {row['recall']:.3f}" for row in first)
    return f"R@1 on test, gallery of {largest}: {told}"
