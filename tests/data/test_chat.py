import pytest

from jaxlean.data.chat import Template, stop_tokens
from jaxlean.data.format import Chat
from jaxlean.errors import DataError

ONE = Chat([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho, 1"}])
TWO = Chat([*ONE.messages, {"role": "user", "content": "Ho, 1"}, {"role": "assistant", "content": "No, 2"}])
END = {"llama3": "<|eot|>", "gemma": "<end_of_turn>", **dict.fromkeys(("chatml", "marked", "thinking"), "<|im_end|>")}


def learned(tokenizer, chat: Chat) -> list[str]:
    rendered = Template(tokenizer).render(chat, "f:1")
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "marked"])
def test_every_assistant_turn_is_learned_with_its_end(make_tokenizer, name: str) -> None:
    assert learned(make_tokenizer(name), TWO) == [f"Ho, 1{END[name]}", f"No, 2{END[name]}"]


def test_a_turn_that_is_written_anew_once_others_follow(make_tokenizer) -> None:
    # What is learned of the last turn is what must be generated: the empty <think> block too.
    assert learned(make_tokenizer("thinking"), TWO) == ["Ho, 1<|im_end|>", "<think>\n\n</think>\n\nNo, 2<|im_end|>"]


def test_a_template_without_an_end_of_turn_asks_for_eos(make_tokenizer) -> None:
    template = Template(make_tokenizer("plain"))
    assert template.render(TWO, "f:1").add_end
    assert learned(make_tokenizer("plain"), TWO) == ["Ho, 1\n", "No, 2\n"]
    trailing = Chat([*ONE.messages, {"role": "user", "content": "x"}])
    assert not template.render(trailing, "f:1").add_end


def test_the_token_that_opens_the_next_turn_is_no_end(make_tokenizer) -> None:
    tokenizer = make_tokenizer("thinking")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    assert learned(tokenizer, TWO) == ["Ho, 1", "<think>\n\n</think>\n\nNo, 2\n"]


def test_a_template_that_drops_what_was_said_is_an_error(make_tokenizer) -> None:
    template = Template(make_tokenizer("rewriting"))
    assert template.render(ONE, "f:1").spans
    with pytest.raises(DataError, match=r"rewrites an assistant turn(.|\n)*f:1, message 2"):
        template.render(TWO, "f:1")


def test_a_generation_prompt_unlike_the_turn(make_tokenizer) -> None:
    # As DeepSeek-R1: the generation prompt opens a <think> block that finished turns do not have.
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% e", "assistant\n<think>\n{% e")
    assert learned(tokenizer, TWO) == ["Ho, 1<|im_end|>", "No, 2<|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_only_turns_of_the_completion_are_learned(make_tokenizer, name: str) -> None:
    assert learned(make_tokenizer(name), Chat(TWO.messages, learn_from=3)) == ["No, 2<|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_tools_and_an_assistant_that_begins(make_tokenizer, name: str) -> None:
    said = [("assistant", "Ho"), ("tool", "42"), ("assistant", "42")]
    chat = Chat([{"role": role, "content": content} for role, content in said])
    assert learned(make_tokenizer(name), chat)[-1] == f"42{END[name]}"
    assert learned(make_tokenizer(name), chat)[0].endswith(f"Ho{END[name]}")


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "marked", "thinking", "plain"])
def test_the_prompt_is_what_comes_before_the_last_turn(make_tokenizer, name: str) -> None:
    template = Template(make_tokenizer(name))
    prompt, wanted = template.prompt(TWO, "f:1")
    rendered = template.render(TWO, "f:1")
    assert wanted == "No, 2"
    assert rendered.text[: rendered.spans[-1][0]] == prompt


def test_a_conversation_that_the_template_refuses(make_tokenizer) -> None:
    chat = Chat([{"role": "system", "content": "x"}, *ONE.messages])
    with pytest.raises(DataError, match=r"f:1(.|\n)*System role not supported(.|\n)*system, user, assistant"):
        Template(make_tokenizer("gemma")).render(chat, "f:1")


def test_no_chat_template(make_tokenizer) -> None:
    with pytest.raises(DataError, match=r"the tokenizer has none(.|\n)*model\.chat_template"):
        Template(make_tokenizer(None))


@pytest.mark.parametrize("name", sorted(END))
def test_stop_tokens(make_tokenizer, name: str) -> None:
    tokenizer = make_tokenizer(name)
    assert tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)) == ["</s>", END[name]]


def test_stop_tokens_without_an_end_of_turn(make_tokenizer) -> None:
    for tokenizer in (make_tokenizer("plain"), make_tokenizer(None)):
        assert tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)) == ["</s>"]


def test_words_that_became_tokens_end_no_turn(make_tokenizer) -> None:
    from jaxlean.data.term_tokens import grown

    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = [{"role": "user", "content": "a chargeback"}, {"role": "assistant", "content": "no chargeback"}]
    rendered = Template(grown(tokenizer, ["chargeback"])).render(Chat(rows), "memory")
    assert rendered.add_end, "no special token ends this template's turn"
    assert rendered == Template(tokenizer).render(Chat(rows), "memory")
