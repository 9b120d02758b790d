"""Write tests/reference_resenc.json: what nnU-Net's own residual U-Net is called, and what it gives.

It runs in an environment of its own, as dynamic-network-architectures brings torchvision, and imports nothing of the
workbook:

    python3 -m venv ENV
    ENV/bin/pip install torch==2.13.0 dynamic-network-architectures==0.4.4
    ENV/bin/python tests/make_resenc_reference.py
"""

import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

FILE = Path(__file__).with_name("reference_resenc.json")
DIGITS = 6
LARGE = {  # nnU-Net's ResEnc-L as U-VLM has it
    "channels": [32, 64, 128, 256, 320, 320], "blocks": [1, 3, 4, 6, 6, 6],
    "stage_strides_dhw": [[1, 1, 1]] + [[2, 2, 2]] * 5,
}  # fmt: skip
SMALL = {"channels": [4, 8, 8], "blocks": [1, 2, 1], "stage_strides_dhw": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
CLASSES, VOLUME = 3, (1, 1, 4, 8, 12)


def main() -> None:
    """Make the file."""
    with torch.device("meta"):
        large = network(LARGE)
    small = network(SMALL).double()
    by_formula(small)
    with torch.no_grad():
        scales = small(wave(VOLUME))
    content = {
        "made with": {name: version(name) for name in ("dynamic-network-architectures", "torch")},
        "classes": CLASSES,
        "large": LARGE | {"tensors": tree({name: list(one.shape) for name, one in large.state_dict().items()})},
        "small": SMALL | {"volume": VOLUME, "shapes": [list(one.shape) for one in scales],
                          "outputs": [[round(x, DIGITS) for x in one.flatten().tolist()] for one in scales]},
    }  # fmt: skip
    FILE.write_text(json.dumps(content, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="ascii")
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


def network(shape: dict) -> nn.Module:
    """The published network with random weights."""
    theirs = import_module("dynamic_network_architectures.architectures.unet")  # the workbook doesn't depend on it
    stages = len(shape["channels"])
    return theirs.ResidualEncoderUNet(
        1, stages, shape["channels"], nn.Conv3d, 3, shape["stage_strides_dhw"], shape["blocks"], CLASSES,
        [1] * (stages - 1), True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU,
        {"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def wave(shape: tuple[int, ...], start: int = 0) -> torch.Tensor:
    """cos(start), cos(start + 1), … in 64 bits."""
    return torch.cos(torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64)).reshape(shape)


@torch.no_grad()
def by_formula(model: nn.Module) -> None:
    """Give each parameter, in the order of their names, the next numbers of one wave."""
    start = 0
    for _, parameter in sorted(model.named_parameters()):  # each tensor once, under the first of its names
        parameter.copy_(wave(tuple(parameter.shape), start))
        start += parameter.numel()


def tree(flat: dict[str, list[int]]) -> dict:
    """Names at their points: {"a.b": x, "a.c": y} as {"a": {"b": x, "c": y}}, which is a third as long."""
    made: dict = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = made
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return made


if __name__ == "__main__":
    main()
