"""Notebook 50: Med3DVLM's two towers on the user's M3D-Cap, trained or only scored."""

import pandas as pd

from ctvlm_lib import arm_command
from ctvlm_lib.damaged import read_csv
from ctvlm_lib.own_data import begin
from ctvlm_lib.sources import Sources

ARM = "dcformer-siglip-m3d"


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Run the arm of M3D-Cap as the sources file says, and show its recalls."""
    begun = begin("50_dcformer_siglip", profile, seed, out_dir)
    if begun and begun[1].m3d:
        run, given = begun
        if not list((run.folder / "results").glob(f"{ARM}*/record.json")):
            arm_command.run_arm([*words(given), "--seed", str(seed), "--out", str(run.folder.parent)])
        found = [read_csv(path) for path in sorted((run.folder / "results").glob(f"{ARM}*/test.csv"))]
        run.table(pd.concat(found).round(3), "own_retrieval", "Recall on your copy of M3D-Cap's test split.")


def words(given: Sources) -> list[str]:
    """The arm's command line: ``epochs = 0`` scores the released towers, without it new ones are trained.

    Only what differs from the recipe is said, as an arm that was run otherwise doesn't take the recipe's name.
    """
    options, usual = dict(given.pretraining), Sources()
    if options.get("epochs") == 0:
        options["start"] = given.two_towers
    sizes = {"size": "x".join(map(str, given.size_dhw_vox))} if given.size_dhw_vox != usual.size_dhw_vox else {}
    options |= {name: getattr(given, name) for name in ("text", "variant")
                if getattr(given, name) != getattr(usual, name)} | sizes  # fmt: skip
    told = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [ARM, "--profile", "paper", "--data", given.folder("m3d"), *told]
