"""How messages become a prompt: parts, open endings, further variables."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.errors import ArtifactError, InvalidRequestError
from router.text_process.chat_template import ChatTemplate

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As those of models that take images are written.
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}</>{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}S:{{ m.content }}{% else %}L:{{ m.content[0].text }}"
    "{% endif %}{% endfor %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("source", "takes_parts", "prompt"),
    [
        (CHATML, False, "<user>hi</><assistant>"),
        (PARTS, True, "<user>hi</>"),
        (EITHER, False, "S:hi"),
        ("a fixed text", False, "a fixed text"),
        ("{{ raise_exception('no') if messages[0].content != 'hi' }}ok", False, "ok"),
    ],
)
def test_content_comes_in_the_form_that_the_template_reads(
    source: str, takes_parts: bool, prompt: str
) -> None:
    template = ChatTemplate(source, {})
    assert template.takes_parts is takes_parts
    assert template.render([user("hi")]) == prompt


@pytest.mark.parametrize(
    ("content", "end"),
    [
        ("well", "<user>well</><assistant>well"),
        ("  well  ", "<user>well</><assistant>well"),  # this template strips
        ("a</>b", "<user>well</><assistant>a</>b"),
    ],
)
def test_the_last_message_goes_on_where_its_content_ends(content: str, end: str) -> None:
    template = ChatTemplate(CHATML, {})
    messages = [user("well"), answer(content)]
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == end


def test_spaces_that_a_template_keeps_are_kept() -> None:
    template = ChatTemplate("{{ messages[-1].content }}</>", {})
    assert template.render([answer(" so ")], continue_final_message=True) == " so "


@pytest.mark.parametrize(("source", "content"), [(CHATML, " "), ("{{ messages | length }}", "gone")])
def test_what_cannot_be_continued(source: str, content: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(source, {}).render([answer(content)], continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_variables_reach_the_template_and_hide_none_of_its_own() -> None:
    template = ChatTemplate("{{ bos_token }}{{ 'think' if enable_thinking }}", {"bos_token": "<s>"})
    assert template.render([user("hi")], variables={"enable_thinking": True}) == "<s>think"
    hidden: dict[str, Any]
    for hidden in ({"bos_token": "x"}, {"messages": []}, {"tools": [{}]}, {"add_generation_prompt": False}):
        with pytest.raises(InvalidRequestError) as caught:
            template.render([user("hi")], variables=hidden)
        assert caught.value.param == "chat_template_kwargs"


def test_templates_have_the_names_they_expect() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
        "{% if loop.first %}{% continue %}{% endif %}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    rendered = ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "<é>"}])
    assert rendered == '<s>{"role": "user", "content": "<é>"}4'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ 10 ** 100000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ (9 ** 999) * (9 ** 999) * (9 ** 999) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * ('ab', 'c') }}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ range(100000000) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_fails_is_the_request_refused(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        pytest.param("{{" + "(" * 5000 + "}}", id="nested"),
        pytest.param("{{ 'a' | center(100000000) }}", id="long constant"),
    ],
)
def test_a_text_that_is_no_template_is_a_broken_model(source: str) -> None:
    with pytest.raises(ArtifactError, match="not a valid template"):
        ChatTemplate(source, {})


def test_arithmetic_that_templates_need_is_served() -> None:
    source = "{{ '=' * 3 }}{{ 2 ** 10 }}{{ 7 * 6 }}{{ 0.5 * 3 }}{{ 7 % 4 }}{{ '%03d' % 5 }}{{ 2 ** -1 }}"
    assert ChatTemplate(source, {}).render([user("hi")]) == "===1024421.530050.5"
