"""Chat templates: which characters of a rendered conversation the model is to learn.

The conversation is rendered once, by the tokenizer's own template. A turn starts where the rendering of the messages
before it, with the generation prompt, ends: exactly what the model will be given when it is used. It ends after the
end-of-turn token, which is always learned, since a model that does not learn it never stops. Templates that mark what
the assistant generates with `{% generation %}` say the start themselves.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlean.data.format import Chat, Message
from jaxlean.errors import DataError

_SIGN = re.compile(r"[<>\[\]{}|]")  # in the names that tokenizers give to what is no text


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: all of it, special tokens spelled out (BOS too, where the template writes one).
        spans: the characters that are learned, as ascending (start, end).
        add_end: the template ends the last turn without any special token, so EOS is to follow, learned.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    add_end: bool = False


class Template:
    """A tokenizer's chat template.

    Raises:
        DataError: the tokenizer has none.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "messages need a chat template, and the tokenizer has none",
                where=getattr(tokenizer, "name_or_path", None) or None,
                fix="set model.chat_template to a Jinja file, or train on plain prompts and completions",
            )
        self.tokenizer = tokenizer
        # words that became tokens (`data.term_tokens`) are text like any other
        signs = [
            token for token in tokenizer.added_tokens_decoder.values() if token.special or _SIGN.search(str(token))
        ]
        added = [str(token) for token in signs] + list(tokenizer.all_special_tokens)
        # Some tokenizers keep runs of spaces as added tokens; those end no turn.
        names = sorted({token for token in added if token.strip()}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(name) for name in names) or r"(?!)")

    def prompt(self, chat: Chat, origin: str) -> tuple[str, str]:
        """What the model is given before the last learned assistant turn, and the text of that turn."""
        last = max(i for i, m in enumerate(chat.messages) if m["role"] == "assistant" and i >= chat.learn_from)
        return self._render(chat, origin, upto=last, generate=True), chat.messages[last]["content"]

    def render(self, chat: Chat, origin: str) -> Rendered:
        """Render a conversation and find what is learned.

        Raises:
            DataError: the template refuses the conversation, or writes a turn in a way that its place cannot be
                told for sure (names the origin and the turn).
        """
        text, marked = self._render_marked(chat, origin)
        turns = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant" and i >= chat.learn_from]
        if marked is not None:
            # Marks of turns that are part of a prompt (before learn_from) are not learned.
            skipped = sum(m["role"] == "assistant" for m in chat.messages[: chat.learn_from])
            marked = marked[skipped:]
            if len(marked) < len(turns):
                raise DataError(
                    "the chat template marks fewer {% generation %} blocks than there are assistant turns",
                    where=origin,
                    got=f"{len(marked)} blocks, {len(turns)} turns",
                    fix="set model.chat_template to one that marks every assistant turn, or none",
                )
        spans: list[tuple[int, int]] = []
        add_end = False
        for n, i in enumerate(turns):
            if marked is not None and len(marked) == len(turns):
                start, content_end = marked[n]
                end = self._turn_end(chat, i, text, content_end, origin)
            else:
                start, end = self._locate(chat, i, text, spans[-1][1] if spans else 0, origin)
            end, closed = self._trim(text, start, end)
            spans.append((start, end))
            add_end = i == len(chat.messages) - 1 and not closed
        return Rendered(text, tuple(spans), add_end)

    def _locate(self, chat: Chat, i: int, text: str, after: int, origin: str) -> tuple[int, int]:
        """Start and end of assistant turn i in the text."""
        content = chat.messages[i]["content"].strip()
        head = self._render(chat, origin, upto=i, generate=True) if i else ""
        if i and text.startswith(head):
            start = len(head)
        else:
            # The template opens a generated turn otherwise than a given one: look for the content itself.
            bare = self._render(chat, origin, upto=i) if i else ""
            start = text.find(content, max(after, len(bare))) if content and text.startswith(bare) else -1
        if start < 0:
            raise self._unstable(i, origin)
        done = self._render(chat, origin, upto=i + 1) if i + 1 < len(chat.messages) else text
        if text.startswith(done) and len(done) >= start:
            return start, len(done)
        # Templates such as Qwen3's write a turn anew once others follow it.
        found = text.find(content, start) if content else -1
        between = text[start:found] if found >= 0 else ""
        if found < 0 or (between.strip() and self._special.search(between)):
            raise self._unstable(i, origin)
        return start, self._close(chat, i, text, found + len(content), origin)

    def _turn_end(self, chat: Chat, i: int, text: str, content_end: int, origin: str) -> int:
        """Where a marked turn ends: behind the end-of-turn token, also if the mark stops before it."""
        done = self._render(chat, origin, upto=i + 1) if i + 1 < len(chat.messages) else text
        if text.startswith(done) and len(done) >= content_end:
            return len(done)
        return self._close(chat, i, text, content_end, origin)

    def _close(self, chat: Chat, i: int, text: str, end: int, origin: str) -> int:
        """Extend `end` over the special token that follows, unless that one opens the next turn."""
        follows = re.compile(r"\s*").match(text, end)
        special = self._special.match(text, follows.end() if follows else end)
        if special is None:
            return end
        bare, head = self._render(chat, origin, upto=i), self._render(chat, origin, upto=i, generate=True)
        openers = self._special.findall(head[len(bare) :]) if head.startswith(bare) else []
        return end if special[0] in openers else special.end()

    def _trim(self, text: str, start: int, end: int) -> tuple[int, bool]:
        """Leave out the blanks behind the end-of-turn token; says also whether there is such a token."""
        specials = list(self._special.finditer(text, start, end))
        if specials and not text[specials[-1].end() : end].strip():
            return specials[-1].end(), True
        return end, False

    def _unstable(self, i: int, origin: str) -> DataError:
        return DataError(
            "the chat template rewrites an assistant turn, so what is learned from it cannot be told for sure",
            where=f"{origin}, message {i + 1}",
            fix="set model.chat_template to one that keeps every turn as it is, or marks it with {% generation %}",
        )

    def _render(self, chat: Chat, origin: str, *, upto: int, generate: bool = False) -> str:
        return self._apply(chat.messages[:upto], chat.tools, origin, add_generation_prompt=generate) if upto else ""

    def _render_marked(self, chat: Chat, origin: str) -> tuple[str, list[tuple[int, int]] | None]:
        """The whole conversation, and the (start, end) of the template's own {% generation %} blocks, if it has any."""
        text = self._apply(chat.messages, chat.tools, origin)
        if not re.search(r"\{%-?\s*generation\s*-?%\}", self.tokenizer.get_chat_template(tools=chat.tools)):
            return text, None
        from transformers.utils.chat_template_utils import render_jinja_template

        marks: Any = render_jinja_template(
            conversations=[chat.messages],
            tools=chat.tools,
            chat_template=self.tokenizer.get_chat_template(tools=chat.tools),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return text, [(start, end) for start, end in marks[1][0]]

    def _apply(self, messages: Sequence[Message], tools: Any, origin: str, **options: Any) -> str:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                "the chat template refuses the conversation",
                where=origin,
                got=f"{error} (roles {', '.join(m['role'] for m in messages)})",
                fix="change the row, or set model.chat_template to a template that takes it",
            ) from error


def stop_tokens(tokenizer: Any) -> list[int]:
    """Token ids that end a generation: EOS, and the end-of-turn token of the chat template where it is another."""
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if getattr(tokenizer, "chat_template", None):
        template = Template(tokenizer)
        sample = Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        rendered = template.render(sample, "the chat template")
        _, end = rendered.spans[-1]
        last = tokenizer(rendered.text[:end], add_special_tokens=False)["input_ids"][-1:]
        if not rendered.add_end and last and last[0] not in found:
            found.append(int(last[0]))
    return found
