"""Text to tokens and back for any thread: input is checked, and the vocabulary stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cllm.engine.errors import EngineClosed, InvalidRequest, PromptTooLong
from cllm.engine.llama import Vocab
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.text.piece_cache import Owner, PieceCache

MAX_MARKS = 512  # remembered
MAX_MARK = 64  # characters of one


class Tokenizer:
    """A model's vocabulary; a method that uses it raises EngineClosed after close().

    close() waits for the threads that use the vocabulary, so that it can be freed. Uses on one
    thread are not nested.
    """

    def __init__(self, vocab: Vocab, process: OwnProcess) -> None:
        """process: the one that loaded the model; in a fork of it, EngineClosed is raised."""
        self.vocab = vocab
        self._process = process
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._borrowers: set[int] = set()  # threads
        self._closed = False
        self._marks: dict[str, int | None] = {}
        self._pieces = PieceCache(vocab)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Keep the vocabulary open while a block uses it."""
        self._process.check()
        thread = threading.get_ident()
        try:
            self._borrowers.add(thread)  # first: close() looks at it after `_closed` is set
            if self._closed:
                raise EngineClosed
            yield
        finally:
            self._borrowers.discard(thread)
            if self._closed:
                with self._lock:
                    self._left.notify_all()

    def close(self) -> None:
        """Refuse new users and wait for the present ones."""
        self._closed = True
        # This thread uses it no longer, even if Ctrl-C kept it from saying so.
        own = {threading.get_ident()}
        with self._lock:
            self._left.wait_for(lambda: self._borrowers <= own)

    def tokenize(
        self,
        text: str,
        add_special: bool,
        parse_special: bool,
        name: str = "text",
        owner: Owner | None = None,
    ) -> list[int]:
        """Text -> tokens. name: of the field, for errors. Raises InvalidRequest.

        owner: whose text it is, if its pieces with parse_special are to be remembered.
        """
        with self.borrowed():
            return self._tokenize(name, text, add_special, parse_special, owner)

    def mark(self, text: str) -> int | None:
        """The token that a mark of a template is, if it is a control token or looks like one.

        Remembered, within bounds: marks may have names that clients choose. Raises InvalidRequest.
        """
        mark = self._marks.get(text, -1)
        if mark != -1:
            return mark
        tokens = self.tokenize(text, False, parse_special=True)
        is_one = len(tokens) == 1 and (
            text[0] + text[-1] == "<>" or self.tokenize(text, False, False) != tokens
        )
        mark = tokens[0] if is_one else None
        if len(text) <= MAX_MARK:
            if len(self._marks) >= MAX_MARKS:
                self._marks.clear()
            self._marks[text] = mark
        return mark

    def detokenize(self, tokens: Sequence[int], special: bool) -> str:
        """Tokens -> text; bytes that are not UTF-8 become U+FFFD. Raises InvalidRequest."""
        with self.borrowed():
            checked = self.checked("tokens", tokens)
            return self.vocab.detokenize(checked, special).decode("utf-8", "replace")

    def pieces(self, tokens: Sequence[int], name: str = "tokens") -> list[bytes]:
        """The bytes of each token; control tokens are spelled out. Raises InvalidRequest."""
        with self.borrowed():
            return [self.vocab.spelled(token) for token in self.checked(name, tokens)]

    def control_texts(self) -> list[str]:
        """The texts of the vocabulary's control tokens."""
        with self.borrowed():
            return self.vocab.control_texts()

    def prompt(self, prompt: str | Sequence[int], ctx_size: int) -> list[int]:
        """The tokens of a prompt that leaves space for one more token in a sequence's context.

        Raises InvalidRequest, PromptTooLong.
        """
        with self.borrowed():
            if isinstance(prompt, str):
                if not prompt:
                    raise InvalidRequest("prompt", prompt, "non-empty text")
                tokens = self._tokenize("prompt", prompt, True, False)
            else:
                tokens = self.checked("prompt", prompt)
        check_prompt_length(len(tokens), ctx_size)
        return tokens

    def find_end_tokens(self) -> None:
        """Find the tokens that end a generation, here and not on the engine thread."""
        with self.borrowed():
            self.vocab.eog_tokens()

    def checked(self, name: str, tokens: Iterable[int]) -> list[int]:
        """The tokens as a list. Raises InvalidRequest unless all are in the vocabulary."""
        n_vocab = self.vocab.n_tokens
        checked = list(tokens)
        for token in checked:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise InvalidRequest(name, token, f"tokens from 0 to {n_vocab - 1}")
        return checked

    def _tokenize(
        self,
        name: str,
        text: str,
        add_special: bool,
        parse_special: bool,
        owner: Owner | None = None,
    ) -> list[int]:
        try:
            if owner is not None and parse_special:
                return self._pieces.tokenize(text, add_special, owner)
            return self.vocab.tokenize(text, add_special, parse_special)
        except UnicodeEncodeError as error:
            found = f"a lone surrogate at character {error.start}"
            raise InvalidRequest(name, found, "text that UTF-8 can express") from None
        except OverflowError:
            raise InvalidRequest(name, f"{len(text)} characters", "a shorter text") from None


def check_prompt_length(n_tokens: int, ctx_size: int) -> None:
    """Raise InvalidRequest for an empty prompt, PromptTooLong if no space is left for a token."""
    if not n_tokens:
        raise InvalidRequest("prompt", [], "at least one token")
    if n_tokens >= ctx_size:
        raise PromptTooLong(n_tokens, ctx_size)
