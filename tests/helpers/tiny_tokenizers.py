"""Tiny tokenizers of every kind, with their special tokens where the real ones have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tiny_vlms import hf

LETTERS = "abcdefghijklmnopqrstuvwxyz_|<>[]/"


def _of(backend: Tokenizer, decoder: Any, **tokens: str) -> Any:
    backend.decoder = decoder
    made = hf.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<fim>", normalized=True)])
    made.add_tokens(["\n\n"])
    return made


MARKS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def unigram(scheme: str = "always") -> Any:
    """As of XLM-R, T5 and Kosmos-2, whose special tokens are pieces of the model's vocabulary."""
    pieces = [(one, 0.0) for one in MARKS.values()]
    pieces += [(letter, -6.0) for letter in f"▁{LETTERS}"] + [("▁dog", -3.0), ("s>", -4.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _of(backend, decoders.Metaspace(prepend_scheme=scheme), **MARKS)


def merging_bpe() -> Any:
    """As of Llama 2, where merges of letters give the end token."""
    words = [*MARKS.values(), *f"▁{LETTERS}", "</", "s>", "</s>", "do", "dog", "▁dog"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("d", "o"), ("do", "g"), ("▁", "dog")]
    model = models.BPE(
        {word: i for i, word in enumerate(dict.fromkeys(words))}, merges, unk_token="<unk>", fuse_unk=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _of(backend, decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), **MARKS)


def byte_bpe() -> Any:
    """As of GPT-2 and Qwen: bytes, and whole words of the vocabulary without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "Ġdog", "</s>"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], ignore_merges=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return _of(backend, decoders.ByteLevel(), eos_token="</s>", pad_token="<|endoftext|>")


def word_pieces() -> Any:
    """As of BERT."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*special.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), "dog"]
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _of(backend, decoders.WordPiece(), **special)


def whole_words() -> Any:
    """A vocabulary of whole words, of which special tokens are some."""
    words = {word: i for i, word in enumerate([*MARKS.values(), "dog", "a"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _of(backend, decoders.WordPiece(), **MARKS)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "unigram": cache(unigram),
    "unigram, first": cache(lambda: unigram("first")),
    "unigram, never": cache(lambda: unigram("never")),
    "merging bpe": cache(merging_bpe),
    "byte bpe": cache(byte_bpe),
    "word pieces": cache(word_pieces),
    "whole words": cache(whole_words),
    "bytes in Python": cache(hf.ByT5Tokenizer),
}
