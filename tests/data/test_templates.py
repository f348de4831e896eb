"""Template files and their sandbox: what is read, what is refused, and what cannot get out."""

import pickle
import random

import datasets
import pytest

from fmerge.data import Prompted
from fmerge.data.sandbox import Template, TemplateError, expression
from fmerge.data.template_files import read_template
from fmerge.errors import UserError

ROW = {"x": [1, 2], "s": "red blue red", "n": 3}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{{ ''['__class__'] }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{{ ''|attr('__class__') }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "attribute '__init__' .* is unsafe"),
        ("{{ range.__init__.__globals__ }}", "attribute '__init__' .* is unsafe"),
        ("{{ zip.__subclasses__() }}", "attribute '__subclasses__' .* is unsafe"),
        ("{{ self._TemplateReference__context }}", "is unsafe"),
        ("{{ '{0.__class__}'.format(x) }}", "attribute 'format' .* is unsafe"),
        ("{{ 'a'.ljust(10000000000) }}", "attribute 'ljust' .* is unsafe"),
        ("{{ 'a'|center(10000000000) }}", "No filter named 'center'"),
        ("{{ '%10000000000d' % 1 }}", "'%' is not allowed on text"),
        ("{{ x.append(3) }}", "attribute 'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "line 1 .*: 'include' is not allowed"),
        ("\n{% import 'a' as b %}", "line 2 .*: 'import' is not allowed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "'macro' is not allowed"),
        ("{% for i in x recursive %}{{ loop(x) }}{% endfor %}", "'recursive for' is not allowed"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
            "loops take more than 10,000 steps",
        ),
        ("{% for i in range(99999999) %}{% endfor %}", "Range too big"),
        ("{{ 9 ** 9 ** 9 }}", r"'\*\*' is not allowed"),
        ("{{ 'a' * 1000000000 }}", "longer than 100,000"),
        ("{{ 1000000000 * x }}", "longer than 100,000"),
        (
            "{% set s = 'aaaa' %}" + "{% set s = s ~ s %}" * 40 + "{{ s }}",
            "longer than 100,000",
        ),
        ("{% set n = 9999 %}" + "{% set n = n * n %}" * 40 + "{{ n }}", "number that is too large"),
        ("{% for i in range(9999) %}" + "a" * 99 + "{% endfor %}", "more than 100,000 characters"),
        ("{{ x | random }}", "the filter 'random' draws at random"),
        ("{{ x | choice }}", "the filter 'choice' draws at random"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ nope }}", "'nope' is undefined"),
        ("{% if n %}", "line 1 of the template: Unexpected end of template"),
    ],
)
def test_the_sandbox_holds(source, reason):
    with pytest.raises(TemplateError, match=reason):
        Template(source).text(ROW)


def test_what_prompts_need_is_allowed():
    for source, text in [
        ("{% for i in x %}{{ loop.index }}:{{ i }} {% endfor %}", "1:1 2:2"),
        ("{% set a = n + 1 %}{{ a }}{{ s ~ n }}", "4red blue red3"),
        ("{{ s.split()[0] | upper }} {{ s | replace('red', 'sea') }}", "RED sea blue sea"),
        ("{{ s.split() | most_frequent | join(',') }}", "red"),
        ("{% for a, b in zip(x, x) %}{{ a + b }}{% endfor %}", "24"),
        ("<{{ s | lower }}> & '", "<red blue red> & '"),
    ]:
        assert Template(source).text(ROW) == text
    assert expression("x + [n]").value(ROW) == [1, 2, 3]
    assert Template("{{ n }}{% for i in x %}{{ s }}{% endfor %}").columns == {"n", "x", "s"}


def test_steps_are_counted_anew_for_each_row():
    template = Template("{% for i in range(9000) %}{% endfor %}{{ n }}")
    assert [template.text(ROW) for _ in range(3)] == ["3"] * 3


def test_templates_travel_to_other_processes():
    assert pickle.loads(pickle.dumps(Template("{{ n }}"))).text(ROW) == "3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text: a\nprompt: b", "unknown field 'prompt'; known: answer, choices, label, name, obt"),
        ("jinja: a", "unknown field 'jinja'"),
        ("choices: [no, yes]", "choices has False, which is no text; quote it"),
        ("label: 1", "label is 1, which is no text; quote it"),
        ("splits: train", "splits is 'train', but must map test, train, validation to splits"),
        ("splits: {dev: train}", "unknown split 'dev' in splits"),
        ("- a", "holds no fields, but list"),
        ("text: a\n b: c", "line 2: mapping values are not allowed here"),
        ("text: !!python/object/apply:os.system [ls]", "line 1: the tag .*system' is not allowed"),
        (
            "text: !Other {a: b}",
            "line 1: the tag '!Other' is not allowed; !Template, !TemplateMeta",
        ),
        ("a: 1\nb: *c", "line 2: found undefined alias"),
        ("templates: []", "its templates hold no template"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=f"template {path}.*{message}") as caught:
        read_template(str(path))
    assert "\n" not in str(caught.value)


PROMPTSOURCE = """dataset: none
subset: null
templates:
  0be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: '{{ a }} ||| {{ b }}'
    id: 0be7cecc-9427-4743-9c74-ed2f2b7b2f2a
    jinja: 'Of {{ answer_choices | join(" and ") }}, which is {{ q }}? |||

      {{ answer_choices[right] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: which
    reference: ''
  1be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: 'x ||| y'
    jinja: '{{ q }} ||| z'
    metadata: !TemplateMetadata {}
    name: wrong
  2be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: 'x ||| y'
    jinja: '{{ q }} {{ ["A", "B"] | choice }} ||| x'
    name: drawn
  3be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: null
    jinja: '{{ q }} ||| x'
    name: free
  4be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: 'x ||| y'
    jinja: '{{ q }}'
    name: aimless
  5be7cecc-9427-4743-9c74-ed2f2b7b2f2a: !Template
    answer_choices: [x, y]
    jinja: '{{ q }} ||| x'
    name: listed
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "templates.yaml").write_text(PROMPTSOURCE)
    rows = {"a": ["sky", "p ||| q"], "b": ["sea", "r"], "q": ["blue", "odd"], "right": [1, 0]}
    datasets.Dataset.from_dict(rows).to_csv(tmp_path / "a.csv")
    return {"template": str(tmp_path / "templates.yaml"), "source": str(tmp_path / "a.csv")}


def test_a_file_of_promptsource(source):
    state = random.getstate()
    assert Prompted(**source, template_name="which").examples("train") == [
        {"text": "Of sky and sea, which is blue?", "choices": ["sky", "sea"], "label": 1},
        {"text": "Of p ||| q and r, which is odd?", "choices": ["p ||| q", "r"], "label": 0},
    ]
    assert random.getstate() == state


def test_a_target_without_choices_is_a_free_answer(source):
    data = Prompted(**source, template_name="free")
    assert data.examples("train") == [
        {"text": "blue", "answer": "x"},
        {"text": "odd", "answer": "x"},
    ]
    assert data.metrics == ("inverse_perplexity",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "has several; set template_name to one of: aimless, drawn, free, listed, which"),
        ("nope", "has no template 'nope'; it has: aimless, drawn"),
        ("wrong", r"row 1 of .*: label: 'z' is none of the choices \['x', 'y'\]"),
        ("drawn", "jinja: line 1 of the template: the filter 'choice' draws at random"),
        ("listed", "'listed' has no text as its answer_choices; pick another template_name"),
        ("aimless", "row 1 of .*: jinja: gives 1 part.s., but must give 'prompt .* target'"),
    ],
)
def test_files_of_promptsource_that_do_not_do(source, name, message):
    with pytest.raises(UserError, match=message) as caught:
        Prompted(**source, template_name=name).examples("train")
    assert "\n" not in str(caught.value)


def test_fields_beside_a_file_of_promptsource(source):
    with pytest.raises(UserError, match="is promptsource's: text cannot be given beside it"):
        Prompted(**source, template_name="which", text="a")
