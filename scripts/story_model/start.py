"""Read a finished GGUF file to continue training: its vocabulary and its weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from . import tokenizer
from .export import gguf_names
from .model import Shape, StoryModel


def vocabulary(path: Path) -> Tokenizer:
    """The vocabulary of a file from `export`."""
    fields = gguf.GGUFReader(path).fields
    names = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    bpe.add_special_tokens(list(tokenizer.SPECIALS))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def load(path: Path) -> StoryModel:
    """The file's model, its matrices as Q8_0 has rounded them.

    Raises:
        ValueError: the file has other weights than `export` writes.
    """
    reader = gguf.GGUFReader(path)
    layers = int(reader.fields["qwen3.block_count"].contents())
    model = StoryModel(Shape(vocabulary(path).get_vocab_size(), layers=layers))
    stored = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    names = gguf_names(model.shape)
    if set(names.values()) != set(stored):
        raise ValueError(f"unexpected weights in {path}: {set(names.values()) ^ set(stored)}")
    model.load_state_dict({ours: stored[theirs] for ours, theirs in names.items()})
    return model
