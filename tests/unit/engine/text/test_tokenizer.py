"""The tokenizer: what we read ourselves agrees with transformers, and tokens have their bytes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from orcinus.engine.errors import InvalidRequestError, ModelLoadError
from orcinus.engine.text.detokenizer import make_detokenizer
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import END_OF_TEXT, MESSAGE_END, VOCAB_SIZE, write_byte_tokenizer

DEMO_MODEL = Path(__file__).parents[4] / "engine" / "demo_model"
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces\n\ttabs",
    "Grüße, 你好 🐋👨‍👩‍👧",
    "a<|end|>b <|endoftext|>",
    "\x00\x7f",
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <b>2+2</b> & 'why'?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    ]},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Four é."},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds é", "parameters": {}}}]
RICH_TEMPLATE = """\
{%- set state = namespace(count=0) -%}
{{ bos_token }}{% if tools %}[{{ tools | tojson(indent=2) }}]{% endif %}
{%- for message in messages %}
    {%- if loop.index0 > 10 %}{% break %}{% endif %}
    {%- set state.count = state.count + 1 %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}
    {%- elif message.role == "assistant" %}
        {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}<{{ message.role }}>{{ message["content"] | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}{{ state.count }}{{ pad_token is defined }}{{ shout | upper }}
"""


def transformers_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A small byte-level BPE tokenizer in the files of a Llama-like model, with a rich template."""
    tokenizer = FastTokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the end of the cat"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|end|>", "special": True, "__type": "AddedToken"},
        "model_max_length": 128,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "chat_template.jinja").write_text(RICH_TEMPLATE)
    return tmp_path


@pytest.fixture
def byte_model(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "bytes")


@pytest.mark.parametrize("which", ["trained", "demo"])
def test_own_reading_agrees_with_transformers(which: str, trained: Path) -> None:
    path = trained if which == "trained" else DEMO_MODEL
    ours, theirs = Tokenizer.load(str(path)), transformers_tokenizer(path)
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    for text in TEXTS:
        for add in (True, False):
            assert ours.encode(text, add_special_tokens=add) == theirs.encode(text, add_special_tokens=add)
    everything = list(range(ours.vocab_size))
    for ids in (everything, everything[::-1], everything[1::7]):
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_rendered_chat_agrees_with_transformers(trained: Path) -> None:
    ours, theirs = Tokenizer.load(str(trained)), transformers_tokenizer(trained)
    for tools in (None, TOOLS):
        for add in (True, False):
            expected = theirs.apply_chat_template(
                MESSAGES, tools=tools, add_generation_prompt=add, tokenize=False, shout="é<x>"
            )
            assert ours.render_chat(MESSAGES, tools=tools, add_generation_prompt=add, shout="é<x>") == expected


def test_rendered_chat_of_the_demo_model_agrees_with_transformers() -> None:
    ours, theirs = Tokenizer.load(str(DEMO_MODEL)), transformers_tokenizer(DEMO_MODEL)
    for messages in (MESSAGES, MESSAGES[1:2], MESSAGES[:2]):
        expected = theirs.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, tokenize=False)
        assert ours.render_chat(messages, tools=TOOLS) == expected


@pytest.mark.parametrize("ending", ["", " ", "\n"])
def test_continued_final_message_agrees_with_transformers(trained: Path, ending: str) -> None:
    ours, theirs = Tokenizer.load(str(trained)), transformers_tokenizer(trained)
    for last in ({"role": "assistant", "content": "Once upon" + ending}, {"role": "user", "content": "I am" + ending}):
        messages = [*MESSAGES[:2], last]
        expected = theirs.apply_chat_template(messages, continue_final_message=True, tokenize=False)
        assert ours.render_chat(messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_demo_model_is_read_without_transformers() -> None:
    script = (
        "import sys; from orcinus.engine.text.tokenizer import Tokenizer\n"
        f"Tokenizer.load({str(DEMO_MODEL)!r}).render_chat([{{'role': 'user', 'content': 'hi'}}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=DEMO_MODEL.parents[1], timeout=60)


def test_a_tokenizer_that_takes_transformers_takes_no_torch_in_a_process_that_hides_it(trained: Path) -> None:
    settings_file = trained / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) | {"split_special_tokens": True}
    settings_file.write_text(json.dumps(settings))
    script = f"""
import sys
from orcinus.engine.platform.lean_imports import hide_torch
from orcinus.engine.text.tokenizer import Tokenizer

hide_torch(trust_remote_code=False)
print(Tokenizer.load({str(trained)!r}).encode("the cat<|end|>"))
assert "transformers" in sys.modules
assert sys.modules["torch"] is None
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, cwd=DEMO_MODEL.parents[1], timeout=120, capture_output=True, text=True)
    assert json.loads(done.stdout) == Tokenizer.load(str(trained)).encode("the cat<|end|>")
    assert done.stderr == ""


def test_settings_that_change_tokenizer_json_go_through_transformers(trained: Path) -> None:
    settings_file = trained / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) | {"split_special_tokens": True}
    settings_file.write_text(json.dumps(settings))
    ours, theirs = Tokenizer.load(str(trained)), transformers_tokenizer(trained)
    assert ours.encode("the cat<|end|>") == theirs.encode("the cat<|end|>")
    assert 1 not in ours.encode("the cat<|end|>")
    assert ours.render_chat(MESSAGES[:2], shout="") == theirs.apply_chat_template(
        MESSAGES[:2], tokenize=False, add_generation_prompt=True, shout=""
    )


@pytest.mark.parametrize("more", [{}, {"split_special_tokens": True}])
def test_response_template_is_found_whichever_way_the_tokenizer_is_read(trained: Path, more: dict[str, Any]) -> None:
    assert Tokenizer.load(str(trained)).response_template is None
    template = {"start_anchor": "A:", "fields": {"content": {}}}
    settings_file = trained / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) | more | {"response_template": template}
    settings_file.write_text(json.dumps(settings))
    assert Tokenizer.load(str(trained)).response_template == template
    assert transformers_tokenizer(trained).response_template == template


def test_truncation_stored_in_the_file_does_not_cut_prompts(byte_model: Path) -> None:
    fast = FastTokenizer.from_file(str(byte_model / "tokenizer.json"))
    fast.enable_truncation(4)
    fast.save(str(byte_model / "tokenizer.json"))
    assert len(Tokenizer.load(str(byte_model)).encode("longer than four")) == 16


@pytest.mark.parametrize("name", ["missing", "empty", "broken"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name != "missing":
        path.mkdir()
    if name == "broken":
        (path / "tokenizer.json").write_text("not json")
        (path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with pytest.raises(ModelLoadError):
        Tokenizer.load(str(path))


def test_ids_outside_the_vocabulary_have_no_text(byte_model: Path) -> None:
    tokenizer = Tokenizer.load(str(byte_model))
    assert tokenizer.decode([104, VOCAB_SIZE + 5, 105]) == "hi"
    assert tokenizer.token_bytes(VOCAB_SIZE + 5) == b""


def test_lone_surrogate_is_the_callers_fault(byte_model: Path) -> None:
    with pytest.raises(InvalidRequestError):
        Tokenizer.load(str(byte_model)).encode("a\ud800b")


# --- bytes of a token -----------------------------------------------------------------------------------


def test_bytes_of_byte_level_tokens_are_raw(byte_model: Path) -> None:
    tokenizer = Tokenizer.load(str(byte_model))
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert tokenizer.token_bytes(END_OF_TEXT) == b"<|endoftext|>"
    assert tokenizer.token_bytes(MESSAGE_END) == b"<|end|>"


def test_bytes_of_the_demo_models_tokens_join_to_the_text() -> None:
    tokenizer = Tokenizer.load(str(DEMO_MODEL))
    text = "Paris is the capital. 你好 🐋"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(i) for i in ids).decode() == text


def test_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(write_sentencepiece_tokenizer(tmp_path)))
    vocab = {"▁Hello": b" Hello", "wor": b"wor", "<0xE4>": b"\xe4", "▁": b" ", "<s>": b"<s>"}
    for name, expected in vocab.items():
        (token_id,) = [i for i in range(tokenizer.vocab_size) if SENTENCEPIECE_VOCAB[i][0] == name]
        assert tokenizer.token_bytes(token_id) == expected


SENTENCEPIECE_VOCAB = [
    ("<unk>", 0.0),
    ("<s>", 0.0),
    *((f"<0x{byte:02X}>", -20.0) for byte in range(256)),
    ("▁", -3.0),
    ("▁Hello", -1.0),
    ("wor", -1.0),
    ("ld", -1.0),
    ("é", -4.0),
    *((letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
]


def write_sentencepiece_tokenizer(path: Path) -> Path:
    """A tokenizer as Llama 2 has: ▁ for spaces, single bytes for what is not in the vocabulary."""
    tokenizer = FastTokenizer(Unigram(SENTENCEPIECE_VOCAB, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"}')
    return path


# --- chat templates -------------------------------------------------------------------------------------


def load_with(tmp_path: Path, template: Any, given: str | None = None) -> Tokenizer:
    return Tokenizer.load(str(write_byte_tokenizer(tmp_path / "model", template)), chat_template=given)


USER = [{"role": "user", "content": "hi"}]


def test_model_without_a_template_says_so(tmp_path: Path) -> None:
    tokenizer = load_with(tmp_path, None)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.render_chat(USER)


def test_given_template_replaces_the_models_own(tmp_path: Path) -> None:
    file = tmp_path / "my.jinja"
    file.write_text("file {{ messages[0].content }}")
    assert load_with(tmp_path, "own", given=str(file)).render_chat(USER) == "file hi"
    assert load_with(tmp_path, "own", given="text {{ eos_token }}").render_chat(USER) == "text <|end|>"


@pytest.mark.parametrize("given", ["/no/such/file.jinja", "{% if %}", "{{ messages"])
def test_given_template_that_is_none_is_refused_at_start(tmp_path: Path, given: str) -> None:
    with pytest.raises(ModelLoadError, match="template"):
        load_with(tmp_path, None, given=given)


def test_default_of_named_templates_is_used(tmp_path: Path) -> None:
    named: Any = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d {{ messages | length }}"}]
    assert load_with(tmp_path, named).render_chat(USER) == "d 1"


def test_broken_template_of_the_model_leaves_completions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_with(tmp_path, "{% if %}")
    assert not tokenizer.has_chat_template
    assert tokenizer.encode("hi") == [104, 105]
    assert "syntax error" in caplog.text


def test_template_refusing_messages_is_the_callers_fault_in_its_own_words(tmp_path: Path) -> None:
    tokenizer = load_with(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        tokenizer.render_chat(USER)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_template_cannot_leave_the_sandbox_or_crash_the_server(tmp_path: Path, template: str) -> None:
    tokenizer = load_with(tmp_path, template + "{{ messages[0].content }}")
    try:
        text = tokenizer.render_chat(USER)
    except InvalidRequestError:
        return
    assert text == "hi"


@pytest.mark.parametrize("name", ["documents", "enable_thinking", "template"])
def test_variables_reach_the_template(tmp_path: Path, name: str) -> None:
    variables: dict[str, Any] = {name: "yes"}
    assert load_with(tmp_path, "{{ " + name + " }}").render_chat(USER, **variables) == "yes"


def test_bos_token_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="bos_token"):
        load_with(tmp_path, "{{ bos_token }}").render_chat(USER, bos_token="x")


def test_messages_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="messages"):
        load_with(tmp_path, "{{ messages }}").render_chat(USER, messages=[])


def test_any_name_of_a_variable_is_harmless(tmp_path: Path) -> None:
    variables: dict[str, Any] = {"self": 1, "cls": 2, "not a name": 3, "": 4}
    assert load_with(tmp_path, "{{ messages[0].content }}").render_chat(USER, **variables) == "hi"


PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


def test_parts_become_lines_for_a_template_of_strings(tmp_path: Path) -> None:
    assert load_with(tmp_path, "<{{ messages[0].content }}>").render_chat(PARTS) == "<a\nb>"


def test_parts_reach_a_template_that_reads_them(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].content is string %}s{% else %}"
        "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}{% endif %}"
    )
    assert load_with(tmp_path, template).render_chat(PARTS) == "[a][b]"


def test_parts_that_are_no_text_are_refused(tmp_path: Path) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    with pytest.raises(InvalidRequestError, match="image_url"):
        load_with(tmp_path, "x").render_chat(image)


def test_arguments_of_tool_calls_reach_the_template_as_objects(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}{{ messages[0].content is defined }}"
    assert load_with(tmp_path, template).render_chat(messages) == '{"x": [1, "é"]}False'


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        (USER, {"continue_final_message": True}),
        ([{"role": "assistant", "content": None}], {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_contradictory_chats_are_refused(tmp_path: Path, messages: Any, options: Any) -> None:
    with pytest.raises(InvalidRequestError):
        load_with(tmp_path, "{{ messages }}").render_chat(messages, **options)


# --- other kinds of tokenizers --------------------------------------------------------------------------


def test_tokenizer_that_transformers_runs_in_python_works_alike(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    ours, theirs = Tokenizer.load(str(tmp_path)), transformers_tokenizer(tmp_path)
    assert not theirs.is_fast
    ids = ours.encode("Grüße 🐋")
    assert ids == theirs.encode("Grüße 🐋")
    assert ours.decode(ids) == "Grüße 🐋"
    assert ours.decode([*ids, ours.vocab_size + 7], skip_special_tokens=False) == "Grüße 🐋</s>"
    assert ours.vocab_size == len(theirs)
    detokenizer = make_detokenizer(ours, ids[:1], skip_special_tokens=True)
    assert "".join(detokenizer.feed([i]) for i in ids) + detokenizer.flush() == "Grüße 🐋"


def test_tokenizer_and_template_come_out_of_a_gguf_file(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "gguf").mkdir()
    file = write_gguf(tmp_path / "gguf" / "model.gguf", trained / "tokenizer.json")
    tokenizer, source = Tokenizer.load(str(file)), Tokenizer.load(str(trained))
    text = "the cat sat 🐋"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == source.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert tokenizer.render_chat(USER) == "user: hi<|end|>"


@pytest.mark.parametrize("can_do_without", [True, False], ids=["this-release", "one-that-needs-torch"])
def test_tokenizer_of_a_gguf_file_takes_no_torch_where_it_is_hidden(
    can_do_without: bool, tmp_path: Path, trained: Path
) -> None:
    (tmp_path / "gguf").mkdir()
    file = write_gguf(tmp_path / "gguf" / "model.gguf", trained / "tokenizer.json")
    script = f"""
import json, sys
from orcinus.engine.platform import lean_imports
from orcinus.engine.text.tokenizer import Tokenizer

lean_imports.hide_torch(trust_remote_code=False)
if not {can_do_without}:
    lean_imports.read_metadata = None
tokenizer = Tokenizer.load({str(file)!r})
print(json.dumps([tokenizer.encode("the cat<|end|>"), "torch" in sys.modules and sys.modules["torch"] is None]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, cwd=DEMO_MODEL.parents[1], timeout=120, capture_output=True, text=True)
    assert json.loads(done.stdout) == [Tokenizer.load(str(file)).encode("the cat<|end|>"), can_do_without]


@pytest.mark.parametrize("has_added_them", [True, False], ids=["transformers-has-added-them", "it-has-not"])
def test_the_users_own_tokens_of_a_gguf_file_stay_whole(
    has_added_them: bool, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gguf").mkdir()
    file = write_gguf(tmp_path / "gguf" / "model.gguf", trained / "tokenizer.json", own=["<think>", "</think>"])
    if not has_added_them:
        from transformers import PreTrainedTokenizerFast

        for name in ("add_tokens", "add_special_tokens"):
            monkeypatch.setattr(PreTrainedTokenizerFast, name, lambda *_, **__: 0)
    tokenizer = Tokenizer.load(str(file))
    for name in ("<think>", "</think>"):
        token_id = tokenizer.added_token_id(name)
        assert token_id is not None
        assert token_id not in tokenizer.special_ids
        assert token_id in tokenizer.encode(f"the {name}cat", add_special_tokens=False)
        assert tokenizer.decode([token_id]) == name
    assert tokenizer.added_token_id("<|end|>") in tokenizer.special_ids
    assert tokenizer.vocab_size == tokenizer._backend.vocab_size == len(read_vocab(trained)) + 2


def read_vocab(directory: Path) -> dict[str, int]:
    vocab: dict[str, int] = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    return vocab


def write_gguf(file: Path, tokenizer_file: Path, own: Sequence[str] = ()) -> Path:
    from gguf import GGUFWriter, TokenType

    model = json.loads(tokenizer_file.read_text())["model"]
    tokens = [*sorted(model["vocab"], key=lambda token: int(model["vocab"][token])), *own]
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    types = [TokenType.CONTROL if token.startswith("<|") else TokenType.NORMAL for token in tokens]
    writer.add_token_types(types[: len(types) - len(own)] + [TokenType.USER_DEFINED] * len(own))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
