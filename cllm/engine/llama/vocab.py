"""A model's vocabulary: text to tokens and back, and which tokens are special."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
from llguidance import LLTokenizer

from cllm.engine.llama.arrays import IntArray
from cllm.engine.llama.held import held

_SENTENCES = re.compile(rb"[A-Za-z0-9\s.,!?;:'\-\x80-\xff]*")

_CONTROLS = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIALS = _CONTROLS | C.LLAMA_TOKEN_ATTR_USER_DEFINED
_STRIPS = C.LLAMA_TOKEN_ATTR_LSTRIP | C.LLAMA_TOKEN_ATTR_RSTRIP

_is_eog = held(C.llama_vocab_is_eog)
_token_to_piece = held(C.llama_token_to_piece)


class Vocab:
    """A model's vocabulary. Thread-safe, as llama.cpp's is, for as long as the model lives."""

    def __init__(self, handle: int, adds_space: bool) -> None:
        """adds_space: whether tokenizing puts a space before the text (SentencePiece)."""
        self.handle = handle
        self._adds_space = adds_space
        self.kind = int(C.llama_vocab_type(handle))
        self.n_tokens = int(C.llama_vocab_n_tokens(handle))
        self.bos = int(C.llama_vocab_bos(handle))
        self.eos = int(C.llama_vocab_eos(handle))
        self.eot = int(C.llama_vocab_eot(handle))
        self.sep = int(C.llama_vocab_sep(handle))
        self.adds_bos = bool(C.llama_vocab_get_add_bos(handle))
        self.adds_eos = bool(C.llama_vocab_get_add_eos(handle))
        self.bos_added = self.bos if self.adds_bos else None
        self.eos_added = self.eos if self.adds_eos else None
        self.adds_sep = bool(C.llama_vocab_get_add_sep(handle))
        # The texts of tokens of ASCII that were generated, from piece() and from spelled().
        self.texts_of_ascii: dict[int, str] = {}
        self.spelled_texts: dict[int, str] = {}
        self._pieces: dict[int, bytes] = {}
        self._spelled: dict[int, bytes] = {}
        self._prose: dict[int, bool] = {}
        self._ends: dict[int, bool] = {}
        self._eog: IntArray | None = None
        self._specials: list[tuple[int, int]] | None = None

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Text -> tokens. Raises UnicodeEncodeError for lone surrogates."""
        data = text.encode("utf-8")
        room = len(data) + 16  # a token has at least one byte; plus special tokens
        while True:
            tokens = np.empty(room, dtype=np.int32)
            pointer = tokens.ctypes.data_as(C.llama_token_p)
            count = C.llama_tokenize(
                self.handle, data, len(data), pointer, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count].tolist())
            if -count <= room:
                raise OverflowError("the text has too many tokens for llama.cpp")
            room = -count

    def token_to_piece(self, token: int, special: bool) -> bytes:
        """The bytes of a token; empty for a control token unless `special`."""
        if not 0 <= token < self.n_tokens:
            raise IndexError(f"token {token} is not among the vocabulary's {self.n_tokens}")
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = _token_to_piece(self.handle, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """token_to_piece(token, special=False), remembered."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.token_to_piece(token, special=False)
        return piece

    def spelled(self, token: int) -> bytes:
        """token_to_piece(token, special=True), remembered."""
        piece = self._spelled.get(token)
        if piece is None:
            piece = self._spelled[token] = self.token_to_piece(token, special=True)
        return piece

    def detokenize(self, tokens: list[int], special: bool) -> bytes:
        """Tokens -> the bytes of their text, without what tokenize adds around a text.

        Unlike llama_detokenize it never cleans up spaces, so it is the exact inverse of tokenize.
        """
        if self.adds_bos and tokens and tokens[0] == self.bos:
            tokens = tokens[1:]
        if self.adds_eos and tokens and tokens[-1] == self.eos:
            tokens = tokens[:-1]
        text = b"".join(self.token_to_piece(token, special) for token in tokens)
        return text[1:] if self._adds_space and text.startswith(b" ") else text

    def pieces_for_llguidance(self) -> list[bytes]:
        """The bytes of all tokens in llguidance's form; looks at every token."""
        control, user = C.LLAMA_TOKEN_ATTR_CONTROL, C.LLAMA_TOKEN_ATTR_USER_DEFINED
        pieces = []
        for token in range(self.n_tokens):
            piece = self.token_to_piece(token, special=True)
            attributes = C.llama_vocab_get_attr(self.handle, token)
            like_control = piece.startswith(b"<") and piece.endswith(b">")
            if attributes & control or (attributes & user and like_control):
                piece = b"\xff" + piece  # llguidance's mark of a token that text cannot spell
            pieces.append(piece)
        return pieces

    def for_llguidance(self, pieces: list[bytes]) -> LLTokenizer:
        """This vocabulary for llguidance; slow to build. It must not outlive the model."""
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
            tokens=pieces,
            vocab_ptr=self.handle,
            tokenize_fptr=ctypes.cast(C._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=self.eog_tokens().tolist(),
        )

    def is_prose(self, token: int) -> bool:
        """Whether the token's bytes are those of sentences: no brackets, quotes or operators."""
        prose = self._prose.get(token)
        if prose is None:
            piece = self.piece(token)
            prose = self._prose[token] = bool(piece and _SENTENCES.fullmatch(piece))
        return prose

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = bool(_is_eog(self.handle, token))
        return ends

    def eog_tokens(self) -> IntArray:
        """All tokens that end a generation."""
        if self._eog is None:
            found = [t for t in range(self.n_tokens) if C.llama_vocab_is_eog(self.handle, t)]
            self._eog = np.array(found, dtype=np.int32)
        return self._eog

    def fim_tokens(self) -> tuple[int, int, int, int, int]:
        """The tokens before prefix, suffix, middle, a repository and a file; -1: none."""
        v = self.handle
        return (
            C.llama_vocab_fim_pre(v),
            C.llama_vocab_fim_suf(v),
            C.llama_vocab_fim_mid(v),
            C.llama_vocab_fim_rep(v),
            C.llama_vocab_fim_sep(v),
        )

    def texts(self) -> Iterator[str]:
        """How the file spells each token, in order."""
        for token in range(self.n_tokens):
            yield C.llama_vocab_get_text(self.handle, token).decode("utf-8", "replace")

    def control_texts(self) -> list[str]:
        """The texts of control tokens, which tokenize finds only with parse_special.

        Looks at every token once; 50 ms for a vocabulary of 151 936.
        """
        text = C.llama_vocab_get_text
        found = self.control_tokens()
        return [text(self.handle, token).decode("utf-8", "replace") for token in found]

    def control_tokens(self) -> list[int]:
        """Tokens that no text has: they begin and end messages. Looks at every token once."""
        return [token for token, attributes in self._special_tokens() if attributes & _CONTROLS]

    def special_texts(self) -> list[bytes]:
        """The spellings that tokenize with parse_special looks for. Looks at every token once."""
        text = C.llama_vocab_get_text
        return [text(self.handle, token) for token, _ in self._special_tokens()]

    @property
    def cuts_texts(self) -> bool:
        """Whether what is between special tokens is tokenized as if it were alone: those of BPE,
        if no special token takes spaces from its neighbours. Looks at every token once.
        """
        bpe = self.kind == C.LLAMA_VOCAB_TYPE_BPE
        return bpe and not any(attributes & _STRIPS for _, attributes in self._special_tokens())

    def _special_tokens(self) -> list[tuple[int, int]]:
        """Tokens that are not found by merging, and their attributes."""
        if self._specials is None:
            attributes = C.llama_vocab_get_attr
            found = ((token, attributes(self.handle, token)) for token in range(self.n_tokens))
            self._specials = [(token, each) for token, each in found if each & _SPECIALS]
        return self._specials
