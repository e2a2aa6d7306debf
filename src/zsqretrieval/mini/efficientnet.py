"""EfficientNet-Lite2 (Tan and Le, arXiv 1905.11946, in Google's Lite variant): the vision backbone.

Shapes: B images, C = 1000 ImageNet classes, S dimensions of the sentence vector of a class name.

    pictures [B, 260, 260, 3] --scale_pixels--> [B, 3, 260, 260] --trunk--> [B, 208, 9, 9]
        --own--> [B, 1280, 9, 9] --class_probabilities--> P(class) [B, C]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor, nn

from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.images import decode, in_threads
from zsqretrieval.types import Image

IMAGE_SIZE = 260
_LIKELIEST = 30


class EfficientNetLite2(nn.Module):
    """The ImageNet classifier, cut below its last block."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__()
        cnn = _load(base)
        self.stem = nn.Sequential(cnn.conv_stem, cnn.bn1)
        self.lower = nn.Sequential(*cnn.blocks[:-1])
        self.own_top = _top(cnn)
        self.classifier = cnn.classifier

    def trunk(self, pixels: Tensor) -> Tensor:
        """Scaled pixels [B, 3, 260, 260] to [B, 208, 9, 9]."""
        grid: Tensor = self.lower(self.stem(pixels))
        return grid

    def own(self, grid: Tensor) -> Tensor:
        """[B, 208, 9, 9] to the features of the ImageNet classifier, [B, 1280, 9, 9]."""
        features: Tensor = self.own_top(grid)
        return features

    def class_probabilities(self, own: Tensor) -> Tensor:
        """Output of :meth:`own` to P(ImageNet class | image) [B, C]."""
        probabilities: Tensor = self.classifier(own.mean((2, 3))).float().softmax(-1)
        return probabilities


def another_top(base: Mapping[str, Tensor]) -> nn.Sequential:
    """A second copy of the layers of :meth:`EfficientNetLite2.own`, for tuning."""
    return _top(_load(base))


def picture(image: Image) -> NDArray[np.uint8]:
    """Decode an image and resize all of it to uint8 [260, 260, 3], whatever its aspect ratio."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    resized = decode(image).resize(size, PILImage.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(resized, dtype=np.uint8)


def pictures(images: Sequence[Image]) -> Tensor:
    """Decode and resize images on a few threads: uint8 [B, 260, 260, 3]."""
    return torch.from_numpy(np.stack(in_threads(picture, images)))


def scale_pixels(pixels: Tensor) -> Tensor:
    """uint8 [B, 260, 260, 3] to EfficientNet-Lite's input (x - 127) / 128, [B, 3, 260, 260]."""
    x = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    return x.contiguous(memory_format=torch.channels_last)


def likely_names(probabilities: Tensor, names: Tensor) -> Tensor:
    """ConSE: the mean name of the likeliest classes, weighted by the roots of their probabilities.

    Takes P(class | image) [B, C] and the sentence vectors of the class names [C, S]; returns [B, S].
    """
    weight, classes = probabilities.sqrt().topk(_LIKELIEST, dim=-1)  # [B, 30]
    weight = weight / weight.sum(-1, keepdim=True)
    return (weight[..., None] * names[classes]).sum(1)


def _top(cnn: Any) -> nn.Sequential:
    return nn.Sequential(cnn.blocks[-1], cnn.conv_head, cnn.bn2)


def _load(base: Mapping[str, Tensor]) -> Any:
    ensure_torchvision()
    import timm

    cnn = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    depths = [len(stage) for stage in cnn.blocks]
    cnn.load_state_dict({_timm_name(name, depths): value for name, value in base.items()})
    return cnn.eval()


_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str, depths: list[int]) -> str:
    """Rename a parameter: ``_blocks.4._bn0`` in the file is ``blocks.2.0.bn1`` in timm."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        module, leaf = name.split(".")
        return f"{_OUTSIDE_BLOCKS[module]}.{leaf}"
    block, module, leaf = int(match[1]), match[2], match[3]
    stage = 0
    while block >= depths[stage]:
        block -= depths[stage]
        stage += 1
    renamed = (_LATER_STAGES if stage else _FIRST_STAGE)[module]
    return f"blocks.{stage}.{block}.{renamed}.{leaf}"
