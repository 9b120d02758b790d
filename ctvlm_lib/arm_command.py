"""``ctvlm arm NAME``: train what one row of a table needs, predict, score, store."""

import argparse

from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import check_profile, check_seed, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm arm``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the arm; without it, the list")
    parser.add_argument("--profile", default="full", help="quick, full (default) or paper: how many patients")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--out", default="", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out)")


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm arm``; what is finished is kept, and the same command goes on from there."""
    check_profile(args.profile)
    check_seed(args.seed)
    from ctvlm_lib.alignment import arms

    if args.name is None:
        for name, arm in arms.ARMS.items():
            after = f", goes on from {arm.start}" if arm.start else ""
            steps = f"{arm.training.steps:,} steps of {arm.batch}"
            print(f"{name:20} {arm.encoder}, {arm.objective}, {arm.loss}, {steps}{after}")
        return 0
    if args.name not in arms.ARMS:
        raise BadInput(f"no arm is called {args.name!r}; there are: {', '.join(arms.ARMS)}")
    home = run_folder(args.profile, args.out)
    label = args.name if args.seed == 0 else f"{args.name}-seed{args.seed}"
    result = arms.run(
        args.name,
        folder=home / "training" / label,
        checkpoint_folder=home / "checkpoints",
        results=home / "results",
        profile=args.profile,
        seed=args.seed,
    )
    ceiling = result.record["test"]["ceiling"]
    print(f"{label}: ceiling on test {ceiling['four_way']:.3f} ({ceiling['low']:.3f} to {ceiling['high']:.3f}),")
    print(f"tables in {home / 'results' / label}, weights in {home / 'checkpoints' / label}")
    return 0
