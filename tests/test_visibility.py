"""What DCFormer's first layer can see: the closed form against convolutions of PyTorch."""

import numpy as np
import pytest

from ctvlm_lib.encoder import seen_by_stem
from ctvlm_lib.errors import BadInput


def read_by_convolutions(shape, stride, kernel):
    """A voxel is seen if the sum of the three convolutions' outputs has a gradient there."""
    torch = pytest.importorskip("torch")
    image = torch.zeros(1, 1, *shape, requires_grad=True)
    total = 0
    for axis in range(3):
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = kernel, kernel // 2
        total = total + torch.nn.functional.conv3d(image, torch.ones(1, 1, *size), stride=stride, padding=padding).sum()
    total.backward()
    return image.grad[0, 0].numpy() > 0


@pytest.mark.parametrize(
    ("shape", "stride", "kernel"), [((16, 16, 16), 4, 7), ((9, 14, 11), 4, 7), ((12, 8, 10), 2, 3), ((10, 13, 9), 4, 3)]
)
def test_seen_voxels_are_those_with_a_gradient(shape, stride, kernel):
    assert np.array_equal(seen_by_stem(shape, stride, kernel), read_by_convolutions(shape, stride, kernel))


def test_the_released_stem_sees_ten_voxels_in_sixty_four():
    assert seen_by_stem((128, 64, 64)).mean() == 10 / 64


def test_a_stem_with_stride_one_sees_everything():
    assert seen_by_stem((5, 6, 7), stride=1, kernel=1).all()


def test_an_even_kernel_is_refused():
    with pytest.raises(BadInput, match="kernel odd"):
        seen_by_stem((8, 8, 8), kernel=4)
