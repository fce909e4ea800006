"""Templates without end, and templates that make much of little: each is stopped, and leaves the process well."""

import resource
from collections.abc import Iterator

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.chat_template import ChatTemplate
from engine.template_limits import MAX_CHARS, RenderLimitError, time_limit

MESSAGES = [{"role": "user", "content": "hi"}]
FORTY_TIMES = "{% for i in range(40) %}%s{% endfor %}"

ENDLESS = {
    "loops": "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "loops that pass everything over": "{% set r = range(99999) | list %}{% for a in r %}{% for b in r if false %}"
    "{% endfor %}{% endfor %}",
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
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """So much more than there is now that no test needs it, and so little that the machine survives a failure."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_without_end_is_stopped(template: str) -> None:
    compiled = ChatTemplate(template, {})
    with pytest.raises(RenderLimitError, match=r"longer than 0\.05 s"), time_limit(0.05):
        compiled.render(MESSAGES)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE.keys())
def test_a_template_that_makes_too_much_is_stopped(template: str) -> None:
    with pytest.raises(RenderLimitError):
        ChatTemplate(template, {}).render(MESSAGES)


def test_of_two_time_limits_the_first_to_end_counts() -> None:
    compiled = ChatTemplate(ENDLESS["loops"], {})
    with pytest.raises(RenderLimitError, match=r"longer than 0\.02 s"), time_limit(0.02), time_limit(60):
        compiled.render(MESSAGES)


def test_a_limit_ends_with_its_block() -> None:
    compiled = ChatTemplate("{% for i in range(9) %}{{ i }}{% endfor %}", {})
    with time_limit(-1.0), pytest.raises(RenderLimitError):
        compiled.render(MESSAGES)
    assert compiled.render(MESSAGES) == "012345678"


def test_a_text_as_long_as_is_allowed_is_rendered() -> None:
    content = "a" * (MAX_CHARS - 2)
    template = "{% for m in messages %}{{ '<' ~ m.content + '>' }}{% endfor %}"
    assert len(ChatTemplate(template, {}).render([{"role": "user", "content": content}])) == MAX_CHARS
    with pytest.raises(RenderLimitError, match=f"more than {MAX_CHARS} characters"):
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
        "{% for a in [] %}x{% else %}none{% endfor %}{% for a in 'abc' %}{{ loop.cycle('x', 'y') }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f('a') ~ f('b') }}",
        "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{% call f(1) %}!{% endcall %}",
    ],
)
def test_what_templates_do_within_the_limits_is_left_as_it_is(template: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    assert ChatTemplate(template, {}).render(MESSAGES) == plain.from_string(template).render()
