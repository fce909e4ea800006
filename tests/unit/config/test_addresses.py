"""Hosts, origins and paths: which forms are one and the same, and what is none."""

import pytest

from orcinus.config.addresses import (
    Host,
    parse_host,
    parse_listed_host,
    parse_origin,
    parse_root_path,
    parse_socket_url,
    url_of,
)
from orcinus.config.settings import SettingsError, load_settings


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", Host("localhost")),
        ("LocalHost.:8000", Host("localhost", 8000)),
        ("127.0.0.1:80", Host("127.0.0.1", 80)),
        ("name:", Host("name")),
        ("[::1]", Host("::1")),
        ("[0:0:0:0:0:0:0:1]:9", Host("::1", 9)),
        ("[FE80::1%25eth0]:9", Host("fe80::1", 9)),
        ("a_b-c.example", Host("a_b-c.example")),
    ],
)
def test_a_host_has_one_form(text: str, host: Host) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    ["", ".", ":80", "a b", "a/b", "a:b", "a:1:2", "::1", "[::1", "[::1]x", "[x]", "[]", "u@a", "a:65536", "é", "a\n"],
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_host(text)


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1:8000", "[::1]:80", ":80", "name:http"])
def test_a_port_in_the_host_to_listen_on_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"must be an address alone.*--port"):
        load_settings(host=host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::", "::1", "[::1]", "fe80::1%eth0"])
def test_an_address_to_listen_on_may_have_colons(host: str) -> None:
    assert load_settings(host=host).host == host


@pytest.mark.parametrize(
    ("name", "is_loopback"),
    [
        ("localhost", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("127.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("128.0.0.1", False),
        ("::2", False),
        ("localhost.example.com", False),
        ("notlocalhost", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_loopback_is_known_by_name_and_address(name: str, is_loopback: bool) -> None:
    assert Host(name).is_loopback == is_loopback


@pytest.mark.parametrize(
    ("text", "entry"),
    [("*", "*"), ("*.Example.com", "*.example.com"), ("::1", "::1"), ("[::1]:80", "[::1]:80"), ("A.b.:1", "a.b:1")],
)
def test_entries_of_the_list_of_hosts_have_one_form(text: str, entry: str) -> None:
    assert parse_listed_host(text) == entry


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("null", "null"),
        ("https://Chat.example.com/", "https://chat.example.com"),
        ("https://a.b:443", "https://a.b"),
        ("http://a.b:443", "http://a.b:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_origins_have_the_form_that_browsers_give_them(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(("text", "path"), [("", ""), ("/", ""), ("/llm", "/llm"), ("llm/", "/llm"), ("/a/b/", "/a/b")])
def test_a_root_path_has_one_form(text: str, path: str) -> None:
    assert parse_root_path(text) == path


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("allowed_host", "http://x", "got 'http://x'"),
        ("allowed_host", "a b", "got 'a b'"),
        ("cors_allow_origin", "chat.example.com", "https://chat.example.com, got 'chat.example.com'"),
        ("cors_allow_origin", "https://a.b/path", "got 'https://a.b/path'"),
        ("root_path", "/a/../b", "got '/a/../b'"),
        ("root_path", "/a?b", "got '/a?b'"),
        ("root_path", "//", ""),
    ],
)
def test_a_setting_that_is_none_of_them_is_refused_with_its_value(name: str, value: str, words: str) -> None:
    if not words:
        assert load_settings(**{name: value}).root_path == ""
        return
    with pytest.raises(SettingsError) as refusal:
        load_settings(**{name: value})
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("[::1]", "http://[::1]:80"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_the_url_of_a_host_answers_on_the_same_machine(host: str, url: str) -> None:
    assert url_of(host, 80) == url


@pytest.mark.parametrize(
    ("text", "path"),
    [("unix:/run/a.sock", "/run/a.sock"), ("unix:///run/a.sock", "/run/a.sock"), ("http://unix:80", None)],
)
def test_a_socket_is_named_by_its_path(text: str, path: str | None) -> None:
    assert parse_socket_url(text) == path


@pytest.mark.parametrize("text", ["unix:", "unix:a.sock", "unix://a.sock"])
def test_a_socket_without_a_whole_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unix:/path"):
        parse_socket_url(text)
