"""Templates without end, and templates that make much of little: each is stopped, and leaves the process well."""

import resource
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.chat_template import ChatTemplate
from orcinus.engine.text.template_process import MAX_CHARS, Job, render_in_child
from orcinus.engine.text.template_sandbox import RenderLimitError, UnboundedCostError, time_limit
from tests.effort import slow_but_for
from tests.unit.server.reading.tools import templates

MESSAGES = [{"role": "user", "content": "hi"}]
FORTY_TIMES = "{% for i in range(40) %}%s{% endfor %}"
GROWING = (
    "{% set n = namespace(x=[1], y=[1]) %}"
    "{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.x, n.x] %}{% endfor %}%s"
)

ENDLESS = {
    "loops": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "loops that pass everything over": "{% set r = range(99999) %}{% for a in r %}{% for b in r if false %}"
    "{% endfor %}{% endfor %}",
    "a loop that passes everything over": "{% set x = 'a' * 999999 %}{% for a in 'a' * 99999 if 'b' in x %}"
    "{% endfor %}",
    "macros that call themselves twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(90) }}",
    "a loop that goes down twice": "{% for a in [1] recursive %}{% if loop.depth < 90 %}{{ loop([1]) }}{{ loop([1]) }}"
    "{% endif %}{% endfor %}",
}

LARGE = {
    "text times a number": "{{ 'a' * 10**9 }}",
    "a number times text": "{{ 10**9 * 'a' }}",
    "a list times a number": "{{ ([0] * 10**9) | length }}",
    "a long list times a number": "{{ (range(99999) | list * 99999) | length }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "products": "{% set n = namespace(x=9**999) %}" + FORTY_TIMES.replace("%s", "{% set n.x = n.x * n.x %}"),
    "doubled by ~": "{% set n = namespace(x='abcd') %}" + FORTY_TIMES.replace("%s", "{% set n.x = n.x ~ n.x %}"),
    "doubled by +": "{% set n = namespace(x='abcd') %}" + FORTY_TIMES.replace("%s", "{% set n.x = n.x + n.x %}"),
    "lists doubled by +": "{% set n = namespace(x=[1, 2]) %}" + FORTY_TIMES.replace("%s", "{% set n.x = n.x + n.x %}"),
    "a long text again and again": "{% set x = 'a' * 999999 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
    "a long block": "{% set x = 'a' * 999999 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
    "a long macro": "{% set x = 'a' * 999999 %}{% macro f() %}{% for i in range(9999) %}{{ x }}{% endfor %}"
    "{% endmacro %}{{ f() | length }}",
    "a wide %": "{{ '%9999999999d' % 1 }}",
    "a % of computed width": "{{ '%*d' % (10**9, 1) }}",
    "the filter format": "{{ '%9999999999d' | format(1) }}",
    "a wide format": "{{ '{:9999999999}'.format(1) }}",
    "a format of computed width": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "the filter center": "{{ 'a' | center(10**9) }}",
    "the filter indent": "{{ 'a' | indent(width=10**9, first=true) }}",
    "the filter batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "wide formats by the thousand": "{{ ('{:>99999}' * 99999).format(*range(99999)) }}",
    "wide % by the thousand": "{{ ('%99999d' * 9999) % (range(9999) | list) }}",
    "replace": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "the filter replace": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "replace between all letters": "{% set x = 'a' * 99999 %}{{ x.replace('', x) }}",
    "join": "{% set x = 'a' * 99999 %}{{ x.join(x) }}",
    "the filter join": "{% set x = 'a' * 99999 %}{{ x | join(x) }}",
    "join of what is long": "{% set x = 'a' * 99999 %}{{ ''.join(range(99999) | map('default', x, true)) }}",
    "a table of letters": "{% set x = 'a' * 99999 %}{{ x.translate({97: x}) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "zeros": "{{ '1'.zfill(10**9) }}",
    "a method fetched before it is called": "{% set f = 'a'.ljust %}{{ f(10**9) }}",
    "a method by its name": "{{ 'a'['ljust'](10**9) }}",
    "bytes of a number": "{{ (1).to_bytes(8 * 10**9, 'big') | length }}",
    "a number of many digits": "{{ ('f' * 9999999) | int(0, 16) // 3 }}",
    "rounded": "{{ 1.5 | round(999999999, 'ceil') }}",
    "a computed %": "{{ '%d' % 1 ** 10**9 }}",
    "the filter indent by a text": "{% set x = '\n' * 99999 %}{{ x | indent(x) }}",
    "the filter wordwrap": "{{ ('a' * 99999) | wordwrap(1, wrapstring='a' * 99999) }}",
    "the filter slice": "{{ [1] | slice(10**9) | list | length }}",
    "the filter xmlattr": "{% set x = 'a' * 99999 %}{{ dict.fromkeys(range(99999), x) | xmlattr }}",
    "the filter tojson, indented": "{{ [1] | tojson(indent=10**9) }}",
    "the filter tojson, indented deeply": "{% set n = namespace(x=range(9999) | list) %}"
    + FORTY_TIMES.replace("%s", "{% set n.x = [n.x] %}")
    + "{% for i in range(99999) %}{{ n.x | tojson(indent=8) }}{% endfor %}",
    "the filter tojson, separated": "{{ range(99999) | list | tojson(separators=('a' * 99999, ':')) }}",
    "the filter sum of lists": "{{ range(99999) | map('list') | sum(start=[]) }}",
    "text by many loops": "{% set x = 'a' * 9999999 %}{% set n = namespace(x=[]) %}{% for i in range(9999) %}"
    "{% set n.x = n.x + [x ~ i] %}{% endfor %}",
    "slices in many calls": "{% macro f(x) %}{% set y = x[1:] %}{{ f(y) }}{{ y | length }}{% endmacro %}"
    "{{ f('a' * 9999999) }}",
    "stripped in many calls": "{% macro f(n, x) %}{% set y = (x ~ ' ').strip() %}"
    "{{ f(n + 1, y) }}{{ y | length }}{% endmacro %}"
    "{{ f(0, 'a' * 9999999) }}",
    "lists in many calls": "{% macro f(n) %}{% set y = range(99999) | list %}"
    "{{ f(n + 1) }}{{ y | length }}{% endmacro %}{{ f(0) }}",
    "split": "{% set n = namespace(x=[]) %}{% for i in range(9999) %}"
    "{% set n.x = [n.x, ('a,' * 99999).split(',')] %}{% endfor %}",
    "the same list in a list again and again, written": GROWING.replace("%s", "{{ n.x }}"),
    "and as JSON": GROWING.replace("%s", "{{ n.x | tojson }}"),
    "and compared": GROWING.replace("%s", "{{ n.x == n.y }}"),
    "and joined": GROWING.replace("%s", "{{ '' ~ n.x }}"),
    "and tuples as a key": GROWING.replace("[n.x, n.x]", "(n.x, n.x)")
    .replace("[1]", "(1, 2)")
    .replace("%s", "{{ {n.x: 1} | length }}"),
    "and objects": GROWING.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}").replace("%s", "{{ n.x }}"),
    "and views of objects": GROWING.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}.items()").replace("%s", "{{ n.x }}"),
    "and by +": GROWING.replace("[n.x, n.x]", "[n.x] + [n.x]").replace("%s", "{{ n.x }}"),
    "and arguments of a macro": "{% macro f(n) %}{% if n < 40 %}{{ f(n + 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ f(0) }}",
    "letters one by one": "{{ ('a' * 9999999) | map('upper') | list | length }}",
    "letters one by one, none chosen": "{{ ('a' * 9999999) | select('none') | list | length }}",
    "a layout of time": "{{ strftime_now('%c' * 999999) }}",
    "blocks in blocks": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "views as sets": "{% set d = dict(range(9999) | map('string') | map('list')) %}{{ d.keys() | list | length }}",
    "lipsum": "{{ lipsum(n=99999) }}",
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """So much more than there is now that no test needs it, and so little that the machine survives a failure."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def nothing_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(template: ChatTemplate, *args: Any) -> str:
        raise UnboundedCostError("it has to be rendered elsewhere")

    monkeypatch.setattr(ChatTemplate, "_render_in_child", refused)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_without_end_is_stopped(template: str) -> None:
    compiled = ChatTemplate(template, {})
    with pytest.raises(RenderLimitError, match=r"longer than 0\.05 s"), time_limit(0.05):
        compiled.render(MESSAGES)


@pytest.mark.usefixtures("little_memory", "nothing_apart")
@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE.keys())
def test_a_template_that_makes_too_much_is_stopped(template: str) -> None:
    """Before it has made it: here, where others wait for it, it is not done."""
    with pytest.raises(UnboundedCostError):
        ChatTemplate(template, {}).render(MESSAGES)


APART = (
    "text times a number",
    "a power",
    "replace",
    "text by many loops",
    "and as JSON",
    "and tuples as a key",
    "rounded",
)


@pytest.mark.parametrize("name", slow_but_for(APART, "a power"))
def test_what_is_stopped_is_tried_in_a_process_that_may_be_lost_by_it(name: str) -> None:
    job = Job(
        LARGE[name], {}, MESSAGES, {"tools": None, "add_generation_prompt": True, "continue_final_message": False}
    )
    with pytest.raises(InvalidRequestError, match=r"takes (too much memory|more than 1 s or 512 MiB)|makes more than"):
        render_in_child(msgspec.structs.replace(job, limit_s=1))


USUAL = [templates.QWEN_2_5, templates.LLAMA_3_1, templates.MISTRAL_V13, templates.PHI_3, templates.DEEPSEEK_R1]


@pytest.mark.usefixtures("nothing_apart")
@pytest.mark.parametrize("template", [*USUAL, templates.LLAMA_4_PYTHONIC, templates.HERMES_2_PRO, templates.TOOLACE])
def test_the_templates_of_models_are_rendered_here(template: str) -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    conversation = [*MESSAGES, {"role": "assistant", "content": "yes"}, *MESSAGES]
    compiled = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"})
    assert compiled.render(conversation, tools=tools if "tools" in template else None)


def test_what_is_in_a_namespace_is_not_written() -> None:
    nested = FORTY_TIMES.replace("%s", "{% set n.x = namespace(a=n.x, b=n.x) %}")
    assert ChatTemplate("{% set n = namespace(x=1) %}" + nested + "{{ n.x }}", {}).render(MESSAGES) == "<Namespace>"


def test_of_two_time_limits_the_first_to_end_counts() -> None:
    compiled = ChatTemplate(ENDLESS["loops"], {})
    with pytest.raises(RenderLimitError, match=r"longer than 0\.02 s"), time_limit(0.02), time_limit(60):
        compiled.render(MESSAGES)


def test_a_limit_ends_with_its_block() -> None:
    compiled = ChatTemplate("{% for i in range(9) %}{{ i }}{% endfor %}", {})
    with time_limit(-1.0), pytest.raises(RenderLimitError, match="longer"):
        compiled.render(MESSAGES)
    assert compiled.render(MESSAGES) == "012345678"


def test_a_text_as_long_as_is_allowed_is_rendered() -> None:
    content = "a" * (MAX_CHARS - 2)
    template = "{% for m in messages %}{{ '<' ~ m.content + '>' }}{% endfor %}"
    assert len(ChatTemplate(template, {}).render([{"role": "user", "content": content}])) == MAX_CHARS
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_CHARS} characters"):
        ChatTemplate(template, {}).render([{"role": "user", "content": content + "a"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' ~ 1 ~ undefined ~ none }}",
        "{{ 'ab' * 3 + 'c' }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 6 * 7 }} {{ 2 ** -1 }} {{ 1.5 * 2 }} {{ [1] * 2 + [3] }}",
        "{{ '%05.1f|%s' % (1.25, 'x') }} {{ '{:>4}'.format(7) }} {{ '%d!' | format(3) }} {{ '{}'.format(1700000000) }}",
        "{{ 'a'.ljust(3, '.') }} {{ 'a' | center(3) }} {{ 'a\nb' | indent(2) }} {{ [1, 2, 3] | batch(2, 0) | list }}",
        "{% for i in range(9) if i % 2 %}{% if i > 5 %}{% break %}{% endif %}{{ i }}/{{ loop.length }} {% endfor %}",
        "{% for a in [[1, [2, []]]] recursive %}{{ a[0] }}{% if a[1] %}{{ loop([a[1]]) }}{% endif %}{% endfor %}",
        "{% for a in ['a b'] %}{{ a.split(' ') | join('-') }}{% endfor %}",
        "{{ '-'.join(['a', 'b']) }} {{ 'aa'.replace('a', 'bc') }} {{ 'a b' | replace(' ', '') | upper }}",
        "{% for a in [] %}x{% else %}none{% endfor %}{% for a in 'abc' %}{{ loop.cycle('x', 'y') }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f('a') ~ f('b') }}",
        "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{% call f(1) %}!{% endcall %}",
    ],
)
def test_what_templates_do_within_the_limits_is_left_as_it_is(template: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    assert ChatTemplate(template, {}).render(MESSAGES) == plain.from_string(template).render()
