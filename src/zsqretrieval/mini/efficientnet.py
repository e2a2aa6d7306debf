"""EfficientNet-Lite2 (Tan and Le, arXiv 1905.11946, in Google's Lite variant): the vision backbone.

Shapes: B images, C = 1000 ImageNet classes, S dimensions of the sentence vector of a class name.

    pictures [B, 260, 260, 3] --scale_pixels--> [B, 3, 260, 260] --trunk--> [B, 208, 9, 9]
        --own--> [B, 1280, 9, 9] --class_probabilities--> P(class) [B, C]
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import pad, relu6
from torch.nn.utils.fusion import fuse_conv_bn_eval
from typing_extensions import Self

from zsqretrieval.data.images import decode, in_threads
from zsqretrieval.mini.weights import without_values
from zsqretrieval.types import Image

IMAGE_SIZE = 260
_LIKELIEST = 30
_AT_ONCE = 4  # images in the trunk on a CPU: its largest tensor, 26 MB of them, stays near the caches
_ACTIVATION: Any = ("hardtanh", [0.0, 6.0], ""), ("none", [], "")  # ReLU6, or nothing, in oneDNN's words

# kernel, stride, expansion, channels of the first and of the other blocks, number of blocks
_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 3),
    (5, 2, 6, 24, 48, 3),
    (3, 2, 6, 48, 88, 4),
    (5, 1, 6, 88, 120, 4),
    (5, 2, 6, 120, 208, 5),
)
_TOP = (3, 1, 6, 208, 352)


class Conv(nn.Conv2d):
    """A convolution without bias whose output is ceil(input / stride), as TensorFlow pads it."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inside, outside, kernel, stride, groups=groups, bias=False)

    def normalised(self, x: Tensor, norm: nn.Module, *, act: bool) -> Tensor:
        """The convolution, its normalisation, and ReLU6 if ``act``: [B, C, H, W] to [B, C', H', W']."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        short = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1])
        around = short // 2
        if short % 2:
            x, around = pad(x, (around, around + 1, around, around + 1)), 0
        if isinstance(norm, nn.Identity) and x.is_cpu and x.dtype == torch.float32 and _POINTWISE is not None:
            fused: Tensor = _POINTWISE(
                x, self.weight, self.bias, [around] * 2, [stride] * 2, [1, 1], self.groups,
                *_ACTIVATION[not act],
            )  # fmt: skip
            return fused
        y: Tensor = norm(nn.functional.conv2d(x, self.weight, self.bias, stride, around, 1, self.groups))
        return relu6(y) if act else y


_mkldnn: Any = torch.backends.mkldnn  # unannotated

# The convolution of oneDNN with an activation in the same pass, which torch.compile uses on CPUs.
_POINTWISE = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if _mkldnn.is_available() else None


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual: 1 x 1 to more channels, a convolution of each channel, 1 x 1 to fewer."""

    def __init__(self, kernel: int, stride: int, expansion: int, inside: int, outside: int) -> None:
        super().__init__()
        wide = inside * expansion
        if expansion > 1:
            self.conv_pw, self.bn1 = Conv(inside, wide), _norm(wide)
        self.conv_dw, self.bn2 = Conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.conv_pwl, self.bn3 = Conv(wide, outside), _norm(outside)
        self._expands, self._residual = expansion > 1, stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        y = self.conv_pw.normalised(x, self.bn1, act=True) if self._expands else x
        y = self.conv_dw.normalised(y, self.bn2, act=True)
        y = self.conv_pwl.normalised(y, self.bn3, act=False)
        return x + y if self._residual else y


class Normalised(nn.Sequential):
    """Layers, of which the last two are a convolution and its normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        layers: list[Any] = list(self)
        *before, conv, norm = layers
        for layer in before:
            x = layer(x)
        result: Tensor = conv.normalised(x, norm, act=True)
        return result


class EfficientNetLite2(nn.Module):
    """The ImageNet classifier, cut below its last block, with a second copy of what is above, for tuning.

    It shares its tensors with ``base``; the second copy is its own.
    """

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__()
        with without_values():
            self.stem = Normalised(Conv(3, 32, 3, 2), _norm(32))
            self.lower = nn.Sequential(*_blocks())
            self.own_top = Normalised(nn.Sequential(Block(*_TOP)), Conv(352, 1280), _norm(1280))
            self.classifier = nn.Linear(1280, 1000)
        self.load_state_dict({_own_name(name): value for name, value in base.items()}, assign=True)
        self.tuned_top = copy.deepcopy(self.own_top)
        self.eval()

    def trunk(self, pixels: Tensor) -> Tensor:
        """Scaled pixels [B, 3, 260, 260] to [B, 208, 9, 9]."""
        size = _AT_ONCE if pixels.is_cpu else len(pixels)
        parts = (pixels[start : start + size] for start in range(0, len(pixels), size))
        return torch.cat([self.lower(self.stem(part)) for part in parts])

    def own(self, grid: Tensor) -> Tensor:
        """[B, 208, 9, 9] to the features of the ImageNet classifier, [B, 1280, 9, 9]."""
        features: Tensor = self.own_top(grid)
        return features

    def class_probabilities(self, own: Tensor) -> Tensor:
        """Output of :meth:`own` to P(ImageNet class | image) [B, C]."""
        probabilities: Tensor = self.classifier(own.mean((2, 3))).float().softmax(-1)
        return probabilities

    def fold(self) -> Self:
        """Multiply the normalisations into the convolutions, for inference; changes the state dict."""
        for part in [one for one in self.modules() if isinstance(one, (Block, Normalised))]:
            named: list[Any] = [
                (name, one) for name, one in part.named_children() if isinstance(one, (Conv, nn.BatchNorm2d))
            ]
            for (conv_name, conv), (norm_name, norm) in zip(named[::2], named[1::2], strict=True):
                folded = fuse_conv_bn_eval(conv, norm)
                folded.weight.data = folded.weight.data.contiguous(memory_format=torch.channels_last)
                setattr(part, conv_name, folded)
                setattr(part, norm_name, nn.Identity())
        return self


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


def _blocks() -> Iterator[Block]:
    for kernel, stride, expansion, inside, outside, count in _STAGES:
        yield Block(kernel, stride, expansion, inside, outside)
        for _ in range(count - 1):
            yield Block(kernel, 1, expansion, outside, outside)


_LAST = sum(stage[-1] for stage in _STAGES)
_OWN_NAMES = {
    "_conv_stem": "stem.0",
    "_bn0": "stem.1",
    f"_blocks.{_LAST}": "own_top.0.0",
    "_conv_head": "own_top.1",
    "_bn1": "own_top.2",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _own_name(name: str) -> str:
    """Rename a parameter: ``_blocks.4._bn0.weight`` in the file is ``lower.4.bn1.weight`` here."""
    block, part, leaf = re.fullmatch(r"(?:(_blocks\.\d+)\.)?(\w+)\.(\w+)", name).groups()  # type: ignore[union-attr]
    if block is None:
        return f"{_OWN_NAMES[part]}.{leaf}"
    return f"{_OWN_NAMES.get(block, block.replace('_blocks', 'lower'))}.{_IN_BLOCK[part]}.{leaf}"
