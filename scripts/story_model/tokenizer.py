"""The byte-level BPE vocabulary: training, encoding, and the chat format as token ids.

Text is split as llama.cpp's "gpt-2" pre-tokenizer does it. While merges are learned, Chinese is cut
further, into the words of the lexicon and single characters, so that no token spans a slot's edge;
merges that were never learned are never applied, so encoding needs no such cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .dialogue import ASSISTANT, Turn
from .lexicon import (
    COLOURS,
    KINDS,
    NAMES_ZH,
    PLACES,
    RECIPIENTS,
    THINGS,
    TRAITS,
)

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|startoftext|>")
END_OF_TEXT, TURN_START, TURN_END, START_OF_TEXT = range(len(SPECIALS))

# Function words of every Chinese story; each becomes at most one token.
COMMON_ZH = (
    *("从前", "有一天", "故事", "名字", "后来", "可是"),
    *("于是", "因为", "大家", "知道", "早上", "晚上"),
    *("朋友", "一起", "时候", "高兴", "难过", "终于"),
    *("马上", "不久", "原来", "邻居", "有人", "没有"),
    *("什么", "怎么", "为什么", "我们", "你们", "它们"),
    *("他们", "她们", "自己", "已经", "从此", "最好"),
    *("快乐", "幸福", "生活", "那天", "起来", "下来"),
    *("出来", "回来", "过来", "实在", "大树", "石头"),
    *("山洞", "池塘", "灌木", "一个", "一只", "发生"),
    *("帮忙", "帮助", "谢谢", "一直", "眼睛", "还是"),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether the model learns to predict it."""

    ids: npt.NDArray[np.uint16]
    learned: npt.NDArray[np.bool_]


def _lexicon_zh() -> list[str]:
    words = {*COMMON_ZH, *NAMES_ZH, *(c.zh for c in COLOURS.values()), *(t.zh for t in TRAITS)}
    words |= {k.zh for k in KINDS} | {t.zh for t in THINGS} | {r.zh for r in RECIPIENTS}
    words |= {part for p in PLACES for part in re.split("一[片个座]", p.zh) if 1 < len(part) < 4}
    return sorted((w for w in words if len(w) > 1), key=lambda w: (-len(w), w))


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer over the texts, with the specials as ids 0 to 3."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    chinese = Regex("|".join((*map(re.escape, _lexicon_zh()), "[\u3000-\u9fff\uff00-\uffef“”]")))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(chinese, "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = byte_level
    return tokenizer


def load(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote."""
    return Tokenizer.from_file(str(path))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # Specials spelled out in a user's text stay text, as with parse_special=False.
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", text):
        if part:
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return ids


def _pack(ids: list[int], learned: list[bool]) -> Encoded:
    return Encoded(np.array(ids, np.uint16), np.array(learned, np.bool_))


def encode_text(tokenizer: Tokenizer, text: str, prefix: str = "") -> Encoded:
    """A plain document; the prefix is context that is not learned."""
    before = [START_OF_TEXT, *_ids(tokenizer, prefix)] if prefix else [START_OF_TEXT]
    after = [*_ids(tokenizer, text), END_OF_TEXT]
    return _pack([*before, *after], [False] * len(before) + [True] * len(after))


def encode_turns(tokenizer: Tokenizer, turns: Iterable[Turn]) -> Encoded:
    """A conversation in the chat format; the assistant's text and turn end are learned."""
    ids, learned = [START_OF_TEXT], [False]
    newline = _ids(tokenizer, "\n")
    for turn in turns:
        head = [TURN_START, *_ids(tokenizer, turn.role + "\n")]
        body = _ids(tokenizer, f"{turn.role}\n{turn.text}")[len(head) - 1 :]
        mine = turn.role == ASSISTANT
        ids += [*head, *body, TURN_END, *newline]
        learned += [False] * len(head) + [mine] * (len(body) + 1) + [False] * len(newline)
    return _pack(ids, learned)
