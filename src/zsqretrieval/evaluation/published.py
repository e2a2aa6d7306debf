"""What others have published on the same question, to be read beside our numbers and never as ours.

Models, training data, galleries and numbers of candidates differ between the rows, so they are anchors and no
competitors. Each row names where it was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RETRIEVAL", "STATEMENTS", "Published"]


@dataclass(frozen=True, slots=True)
class Published:
    """Recalls at 1, 5 and 10 in percent, as printed; None where a paper does not say.

    Attributes:
        system: what was measured.
        kind: ``dual encoder``, ``likelihood`` of the text given the image, or ``trained matching``.
        dataset: whose test images.
        direction: who looks for whom.
        recalls: at 1, 5 and 10.
        source: where it stands.
    """

    system: str
    kind: str
    dataset: str
    direction: str
    recalls: tuple[float, float | None, float | None]
    source: str


_T2I, _I2T = "text to image", "image to text"
_F30K, _COCO = "Flickr30k", "COCO"
_VGPT = "VisualGPTScore (arXiv 2306.01879)"
_OPEN_CLIP = "open_clip's table of retrieval results (June 2026)"

RETRIEVAL: Sequence[Published] = (
    Published("CLIP ViT-B/32 (OpenAI)", "dual encoder", _F30K, _T2I, (58.8, 83.6, 90.0), _OPEN_CLIP),
    Published("CLIP ViT-B/32 (LAION-2B)", "dual encoder", _F30K, _T2I, (66.8, 88.4, 93.1), _OPEN_CLIP),
    Published("CLIP ViT-L/14 (OpenAI)", "dual encoder", _F30K, _T2I, (65.0, 87.2, 92.0), _OPEN_CLIP),
    Published("CLIP ViT-L/14 (LAION-2B)", "dual encoder", _F30K, _T2I, (75.5, 92.9, 95.9), _OPEN_CLIP),
    Published("SigLIP ViT-B/16", "dual encoder", _F30K, _T2I, (74.7, 92.3, 95.6), _OPEN_CLIP),
    Published("SigLIP SO400M/14, 384 pixels", "dual encoder", _F30K, _T2I, (83.0, 96.1, 98.0), _OPEN_CLIP),
    Published("BLIP, log P(text | image)", "likelihood", _F30K, _T2I, (76.8, 93.4, None), _VGPT),
    Published("BLIP, ITM head", "trained matching", _F30K, _T2I, (77.8, 93.9, None), _VGPT),
    Published(
        "BLIP-2, ITM with ITC, tuned on COCO", "trained matching", _F30K, _T2I, (89.7, 98.1, 98.9),
        "BLIP-2 (arXiv 2301.12597), as InternVL's table 7 has it",
    ),
    Published("CLIP ViT-L/14 (OpenAI)", "dual encoder", _COCO, _T2I, (36.5, 61.1, 71.1), _OPEN_CLIP),
    Published("CLIP ViT-L/14 (LAION-2B)", "dual encoder", _COCO, _T2I, (46.5, 71.1, 79.8), _OPEN_CLIP),
    Published("SigLIP ViT-B/16", "dual encoder", _COCO, _T2I, (47.8, 72.4, 81.0), _OPEN_CLIP),
    Published("BLIP, log P(text | image)", "likelihood", _COCO, _T2I, (55.6, 79.2, None), _VGPT),
    Published("BLIP, ITM head", "trained matching", _COCO, _T2I, (54.8, 79.0, None), _VGPT),
    Published("CLIP ViT-L/14 (OpenAI)", "dual encoder", _F30K, _I2T, (85.2, None, None), _OPEN_CLIP),
    Published("SigLIP ViT-B/16", "dual encoder", _F30K, _I2T, (89.1, None, None), _OPEN_CLIP),
    Published("BLIP, log P(text | image)", "likelihood", _F30K, _I2T, (34.6, 59.0, None), _VGPT),
    Published("BLIP, the same less 0.72 log P(text)", "likelihood", _F30K, _I2T, (63.6, 89.2, None), _VGPT),
    Published("BLIP, ITM head", "trained matching", _F30K, _I2T, (88.8, 98.2, None), _VGPT),
    Published(
        "BLIP-2, ITM with ITC, tuned on COCO", "trained matching", _F30K, _I2T, (97.6, 100.0, 100.0),
        "BLIP-2 (arXiv 2301.12597), as InternVL's table 7 has it",
    ),
)  # fmt: skip
"""Zero-shot retrieval, in percent."""

STATEMENTS: Sequence[str] = (
    "UPR itself (arXiv 2204.07496), passages in place of images: on Natural Questions, re-ranking 1,000 "
    "passages of BM25 by T0-3B's log P(question | passage) takes top-20 accuracy from 62.9 to 78.6 %.",
    'VQAScore (arXiv 2404.01291) ranks by P("Yes") after a question that holds the caption, which is our '
    "`yes_no`. It is evaluated on Winoground and its like; no recall on COCO or Flickr30k is published.",
    "MHyS (arXiv 2412.14880) writes questions for every image beforehand, which is our `expand`, with "
    "contrastive training: +14.5 points over CLIP on the questions of RETVQA, by its abstract.",
    "Cost, in one table of RAM++: CLIP 0.6 ms a query at R@1 68.7, BLIP's ITM re-ranking 402 ms at R@1 85.0 "
    "(Flickr30k, text to image).",
    "Kosmos-1 (arXiv 2302.14045) reports no retrieval at all.",
    "No paper known to us compares re-ranking by generated questions with CLIP on LAION-5B; LAION has no "
    "relevance labels.",
)
"""Single numbers and their absence."""
