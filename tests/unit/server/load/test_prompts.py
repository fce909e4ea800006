"""Random prompts and those of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from orcinus.config.settings import SettingsError
from orcinus.server.load.lengths import parse_lengths
from orcinus.server.load.prompts import WORDS, LoadItem, PromptShape, Writer, random_items, read_dataset

IDS = Writer(range(1000))
TEXT = Writer(WORDS, tokens_per_unit=2.0, overhead=6.0)


def shape(prompt: str = "uniform:8..40", output: str = "uniform:1..9", **more: Any) -> PromptShape:
    return PromptShape(prompt_tokens=parse_lengths(prompt), output_tokens=parse_lengths(output), **more)


def length(item: LoadItem) -> int:
    return len(item.prompt.split() if isinstance(item.prompt, str) else item.prompt)


def written(directory: Path, *lines: Any) -> Path:
    file = directory / "dataset.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_words_are_many_and_none_comes_twice() -> None:
    assert len(WORDS) == len(set(WORDS)) > 100
    assert all(word.isascii() and word.islower() for word in WORDS)


@pytest.mark.parametrize("writer", [IDS, TEXT])
def test_the_same_seed_gives_the_same_requests(writer: Writer) -> None:
    items = random_items(shape(), writer, 20, "0")
    assert items == random_items(shape(), writer, 20, "0")
    assert items != random_items(shape(), writer, 20, "1")
    assert items[:5] == random_items(shape(), writer, 5, "0")


def test_other_content_has_the_same_lengths() -> None:
    one, two = (random_items(shape(), IDS, 20, "0", content) for content in ("one", "two"))
    assert [(item.prompt_tokens, item.max_tokens) for item in one] == [
        (item.prompt_tokens, item.max_tokens) for item in two
    ]
    assert not [1 for mine, yours in zip(one, two, strict=True) if mine.prompt[:4] == yours.prompt[:4]]


def test_text_and_token_ids_have_the_same_lengths_in_tokens() -> None:
    ids, text = random_items(shape("8"), IDS, 9, "0"), random_items(shape("8"), TEXT, 9, "0")
    assert [item.max_tokens for item in ids] == [item.max_tokens for item in text]
    assert {length(item) for item in ids} == {8}
    assert {length(item) for item in text} == {(8 - 6) // 2}


def test_a_prompt_is_never_empty() -> None:
    assert {length(item) for item in random_items(shape("1"), TEXT, 3, "0")} == {1}


def test_shared_prefixes_come_in_turn_in_front_of_the_prompts_own_tokens() -> None:
    items = random_items(shape("5", shared_prefix_tokens=10, num_prefixes=2), IDS, 4, "0")
    prefixes, own = [item.prompt[:10] for item in items], [item.prompt[10:] for item in items]
    assert prefixes[0] == prefixes[2] != prefixes[1] == prefixes[3]
    assert own[0] != own[2]
    assert {length(item) for item in items} == {15} == {item.prompt_tokens for item in items}


def test_token_ids_are_those_that_were_given() -> None:
    for item in random_items(shape("200"), Writer([5, 7]), 2, "0"):
        assert isinstance(item.prompt, list)
        assert set(item.prompt) == {5, 7}


def test_a_dataset_has_prompts_messages_and_lengths_of_its_own(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    file = written(tmp_path, {"prompt": "a", "max_tokens": 3}, "", {"messages": chat, "id": 1}, {"prompt": [1, 2]})
    assert read_dataset(file, None, parse_lengths("7"), "0") == [
        LoadItem(prompt="a", max_tokens=3),
        LoadItem(prompt=chat, max_tokens=7),
        LoadItem(prompt=[1, 2], max_tokens=7),
    ]


def test_a_dataset_starts_again_at_its_end(tmp_path: Path) -> None:
    items = read_dataset(written(tmp_path, {"prompt": "a"}, {"prompt": "b"}), 5, parse_lengths("7"), "0")
    assert [item.prompt for item in items] == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no json", "malformed"),
        ({"text": "a"}, "either a prompt or messages"),
        ({"prompt": "a", "messages": []}, "either a prompt or messages"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_a_line_that_is_no_request_is_named(line: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"dataset.jsonl, line 2 is no request: .*{reason}"):
        read_dataset(written(tmp_path, {"prompt": "a"}, line), None, parse_lengths("7"), "0")


def test_a_line_with_broken_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(SettingsError, match=r"broken.jsonl, line 1 is no request"):
        read_dataset(tmp_path / "broken.jsonl", None, parse_lengths("7"), "0")


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*: No such file"):
        read_dataset(tmp_path / "none", None, parse_lengths("7"), "0")
    with pytest.raises(SettingsError, match="has no request"):
        read_dataset(written(tmp_path, ""), None, parse_lengths("7"), "0")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "hi", "max_tokens": 1}\n', encoding="utf-8-sig")
    assert [item.prompt for item in read_dataset(file, None, parse_lengths("4"), "0")] == ["hi"]
    file.write_text('{"prompt": "hi", "max_tokens": 1}\n', encoding="utf-16")
    with pytest.raises(SettingsError, match="it is not UTF-8 text but UTF-16"):
        read_dataset(file, None, parse_lengths("4"), "0")
