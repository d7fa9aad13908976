"""A small GGUF with random weights: it never ends a text by itself, and its texts vary.

It is a real model in every respect except meaning: llama architecture, grouped-query attention,
Q8_0 weights, a byte-level BPE vocabulary that any text passes through unchanged, control tokens
and a chat template.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.bench.models.vocabulary import CHAT_TEMPLATE, byte_spelling

_FOLDER = tempfile.TemporaryDirectory(prefix="cllm-random-model-")

CONTEXT = 2048
LAYERS = 4
WIDTH = 256  # a multiple of 256, so that K-quants can be made from it
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = WIDTH // HEADS
FEED_FORWARD = 512
ROPE_BASE = 10_000.0
RMS_EPSILON = 1e-5
SEED = 20_240_229

BOS, EOS, EOT, IM_START, IM_END = (
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
)
CONTROL = (BOS, EOS, EOT, IM_START, IM_END)
# As Qwen2.5-Coder spells them; llama.cpp knows them by that.
FIM = (
    *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)

# Separated by spaces. The most frequent English words, so that English takes few tokens.
_WORDS = """
the of and to in is that it was for on are as with his they at be this have from or one had by
word but not what all were we when your can said there use an each which she do how their if will
up other about out many then them these so some her would make like him into time has look two
more write go see number no way could people my than first water been call who oil its now find
long down day did get come made may part over new sound take only little work know place year live
me back give most very after thing our just name good sentence man think say great where help
through much before line right too mean old any same tell boy follow came want show also around
form three small set put end does another well large must big even such because turn here why ask
went men read need land different home us move try kind hand picture again change off play spell
air away animal house point page letter mother answer found study still learn should world
"""
_SYLLABLES = "ing er ed ion es ly al re th en st ar or on an it is in ou le"
_OTHER_SCRIPTS = "你 好 世 界 的 是 我 们 人 大 é ü ñ ß д а е и о 🙂 🌍 –"
_PUNCTUATION = [". ", ", ", "? ", "! ", "\n\n", "..."]

# Logit biases: speak in whole words, rarely in half ones, and end a text only by rare chance.
_WHOLE, _FRAGMENT, _NOT_TEXT, _CONTROL = 2.0, -1.0, -4.0, -6.0


@functools.cache
def random_path(fim: bool = False) -> Path:
    """The model's file, made when it is first asked for and removed with the process.

    fim: with control tokens by which a gap in a text is marked.
    """
    path = Path(_FOLDER.name) / f"random{'-fim' if fim else ''}-q8_0.gguf"
    write(path, fim)
    return path


def write(path: Path, fim: bool = False) -> None:
    """Writes the model to `path`."""
    import gguf

    vocabulary = _Vocabulary(CONTROL + FIM if fim else CONTROL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)

    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_vocab_size(len(vocabulary.tokens))

    # llama.cpp's name for byte-level BPE is "gpt2"; the "qwen2" way of splitting text is one of
    # those after which it does not tidy up spaces when it turns tokens into text.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.ids[BOS])
    writer.add_eos_token_id(vocabulary.ids[EOS])
    writer.add_eot_token_id(vocabulary.ids[EOT])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in _tensors(vocabulary):
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, q8_0), raw_dtype=q8_0)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Vocabulary:
    """256 bytes, the words above as chains of merges, and the control tokens.

    Tokens are spelled as byte-level BPE spells them: one printable character for each byte.
    `bias` is added to each token's logit (standard deviation 3) when the model speaks.
    """

    def __init__(self, control: tuple[str, ...]) -> None:
        import gguf

        self._spelling = byte_spelling()
        self.tokens: list[str] = list(self._spelling)
        self.merges: list[str] = []
        self.bias = [_FRAGMENT if 32 <= byte < 127 else _NOT_TEXT for byte in range(256)]
        self._known = set(self.tokens)

        words = [f" {word}" for word in _WORDS.split()]
        for word in words + _SYLLABLES.split() + _OTHER_SCRIPTS.split() + _PUNCTUATION:
            self._add_word(word.encode())
        self.types = [int(gguf.TokenType.NORMAL)] * len(self.tokens)

        self.tokens += control
        self.bias += [_CONTROL] * len(control)
        self.types += [int(gguf.TokenType.CONTROL)] * len(control)
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def _add_word(self, word: bytes) -> None:
        spelled = "".join(self._spelling[byte] for byte in word)
        for end in range(2, len(spelled) + 1):
            head, last = spelled[: end - 1], spelled[end - 1]
            if head + last not in self._known:
                self._known.add(head + last)
                self.tokens.append(head + last)
                self.merges.append(f"{head} {last}")
                self.bias.append(_FRAGMENT if _is_text(word[:end]) else _NOT_TEXT)
        self.bias[self.tokens.index(spelled)] = _WHOLE


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _tensors(vocabulary: _Vocabulary) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every tensor as (name, float32 array [out, in]).

    Channel 0 of the residual stream is a constant: every embedding holds it and no layer writes
    to it. Its column of the output matrix is therefore a bias for each token, which the
    architecture does not have.
    """
    random = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
        weights = random.standard_normal((rows, columns), dtype=np.float32)
        weights *= gain / columns**0.5
        return weights

    def into_residual(columns: int, gain: float) -> npt.NDArray[np.float32]:
        weights = matrix(WIDTH, columns, gain)
        weights[0] = 0.0
        return weights

    size = len(vocabulary.tokens)
    ones = np.ones(WIDTH, dtype=np.float32)

    embedding = random.standard_normal((size, WIDTH), dtype=np.float32)
    embedding[:, 0] = 4.0
    yield "token_embd.weight", embedding
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        yield name + "attn_norm.weight", ones
        # Sharp attention that mostly looks elsewhere than at the last token, and a strong way
        # into the residual: each next token depends on much of what stands before it.
        yield name + "attn_q.weight", matrix(WIDTH, WIDTH, 2.0)
        yield name + "attn_k.weight", matrix(HEAD_SIZE * KV_HEADS, WIDTH, 2.0)
        yield name + "attn_v.weight", matrix(HEAD_SIZE * KV_HEADS, WIDTH)
        yield name + "attn_output.weight", into_residual(WIDTH, 2.0)
        yield name + "ffn_norm.weight", ones
        yield name + "ffn_gate.weight", matrix(FEED_FORWARD, WIDTH)
        yield name + "ffn_up.weight", matrix(FEED_FORWARD, WIDTH)
        yield name + "ffn_down.weight", into_residual(FEED_FORWARD, 2.0)
    yield "output_norm.weight", ones
    output = matrix(size, WIDTH, 3.0)
    output[:, 0] = vocabulary.bias
    yield "output.weight", output
