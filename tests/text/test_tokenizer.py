"""Loading, saving, control tokens, bad input; and transformers reads what we write."""

import json
import random

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from zamba_lm.errors import ZambaError
from zamba_lm.text.chat import CHATML
from zamba_lm.text.definition import PACKAGED, PLAIN_TOKEN
from zamba_lm.text.tokenizer import Tokenizer

BASE, INSTRUCT = Tokenizer.mistral(), Tokenizer.mistral(instruct=True)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi!\n\nWhat's 2+2? 🙂 "},
    {"role": "assistant", "content": "\n4"},
    {"role": "user", "content": ""},
]
TEXTS = ["", " ", "Hello, world", "  a\t b\n", "naïve 👩🏽‍🚀 你好", "</s> <unk> <|im_end|>", "x" * 500]


def folder_with(path, **files):
    """A model folder with these files (``__`` for the dot); dicts are written as JSON."""
    for name, content in files.items():
        name = name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).write_text(text, encoding="utf-8")
    return path


def packaged() -> dict:
    return json.loads(PACKAGED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[BASE, INSTRUCT], ids=["base", "instruct"])
def saved(request, tmp_path_factory):
    """A tokenizer, and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("saved")
    request.param.save(folder)
    return request.param, folder


def test_saved_and_loaded_is_the_same(saved):
    tokenizer, folder = saved
    loaded = Tokenizer.load(folder)
    written = {path.name for path in folder.iterdir()}
    assert written == {"special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}
    for name in ("bos_id", "eos_ids", "special", "chat_template", "vocab_size"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert loaded.encode_chat(TALK) == tokenizer.encode_chat(TALK)


def test_transformers_reads_the_saved_folder(saved, tmp_path):
    from transformers import AutoTokenizer

    ours, folder = saved
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [text for text in TEXTS if "<" not in text]
    assert [theirs(text).input_ids for text in texts] == [ours.encode(text) for text in texts]
    assert theirs("</s><unk> <|im_end|>\nx").input_ids == ours.encode("</s><unk> <|im_end|>\nx", special=True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert len(theirs) == 32000
    ids = ours.encode(TEXTS[4]) + list(range(290, 400)) + [2, 28705, 1]
    assert theirs.decode(ids) == ours.decode(ids, skip_special=False)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    theirs.save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert (again.special, again.eos_ids, again.chat_template) == (ours.special, ours.eos_ids, ours.chat_template)


def test_transformers_renders_and_encodes_chats_alike(tmp_path):
    from transformers import AutoTokenizer

    INSTRUCT.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for ask in (True, False):
        text = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=ask)
        assert text == INSTRUCT.render_chat(TALK, add_generation_prompt=ask)
        assert theirs(text, add_special_tokens=False).input_ids == INSTRUCT.encode_chat(TALK, add_generation_prompt=ask)


def test_instruct_relabels_ids_1_and_2():
    assert INSTRUCT.special == {"<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert (INSTRUCT.bos_id, INSTRUCT.eos_ids, INSTRUCT.chat_template) == (1, (2,), CHATML)
    assert INSTRUCT.decode([1, 2], skip_special=False) == "<|im_start|><|im_end|>"
    assert [INSTRUCT.encode(text, bos=False) for text in TEXTS] == [BASE.encode(text, bos=False) for text in TEXTS]


def test_text_never_spells_a_control_token():
    for tokenizer in (BASE, INSTRUCT):
        for name in ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"):
            ids = tokenizer.encode(f"{name}a {name}{name}", bos=False)
            assert not set(ids) & tokenizer.special_ids
            assert tokenizer.decode(ids) == f"{name}a {name}{name}"


def test_control_tokens_count_when_asked_for():
    ids = BASE.encode("<s>a</s></s> b", bos=False, special=True)
    assert ids == [1, *BASE.encode("a", bos=False), 2, 2, *BASE.encode(" b", bos=False)]
    assert BASE.decode(ids, skip_special=False) == "<s> a</s></s>  b"
    assert BASE.encode("<s>", special=True) == [1, 1]


def test_merges_that_spell_a_control_token_are_ignored(tmp_path):
    """Converted files in circulation hold such merges; with them the text ``</s>`` would end an answer."""
    content = packaged()
    content["model"]["merges"] += ["</ s>"]
    folder_with(tmp_path, tokenizer__json=content)
    assert Tokenizer.load(tmp_path).encode("a</s>") == BASE.encode("a</s>")


def test_many_texts_at_once():
    assert INSTRUCT.encode_batch(TEXTS) == [INSTRUCT.encode(text) for text in TEXTS]
    assert BASE.encode_batch(TEXTS, bos=False) == [BASE.encode(text, bos=False) for text in TEXTS]
    assert BASE.encode_batch([]) == []


def test_decoding_in_the_context_of_a_prompt():
    prompt, answer = BASE.encode("I am"), BASE.encode("fine", bos=False)
    assert BASE.decode(answer) == "fine"
    assert BASE.decode(answer, prompt_ids=prompt) == " fine"
    assert BASE.decode(answer, prompt_ids=[1]) == "fine"
    fire = BASE.encode("🧯", bos=False)  # a space, then four bytes
    assert BASE.decode(fire[3:], prompt_ids=fire[:3]) == "🧯"


def test_bytes_that_are_no_text_show_as_replacement():
    assert BASE.decode([3 + 0xFF]) == "\ufffd"
    assert BASE.decode([3 + 0xF0, 3 + 0x9F]) == "\ufffd"
    assert BASE.decode([3 + 0xC3, 3 + 0xA9, 3 + 0xA9, 28708]) == "é\ufffda"


@pytest.mark.parametrize("bad", [32000, -1, 10**12])
def test_ids_outside_the_vocabulary_are_named(bad):
    with pytest.raises(ZambaError, match=rf"token id {bad} is outside the vocabulary of 32000 tokens"):
        BASE.decode([5, bad])
    with pytest.raises(ZambaError, match=str(bad)):
        BASE.token_bytes(bad)


def test_ids_must_be_integers():
    with pytest.raises(ZambaError, match="token id 1.5 is a float"):
        BASE.decode([1.5])


def test_lone_surrogates_are_refused():
    for encode in (BASE.encode, lambda text: BASE.encode_batch([text]), lambda text: BASE.encode(text, special=True)):
        with pytest.raises(ZambaError, match=r"lone surrogate U\+D83D at character 3"):
            encode("abc\ud83d!")
    with pytest.raises(ZambaError, match="lone surrogate"):
        INSTRUCT.encode_chat([{"role": "user", "content": "\udcff"}])
    with pytest.raises(ZambaError, match="the text is a NoneType"):
        BASE.encode(None)


def test_early_uploads_put_chat_tokens_behind_the_vocabulary(tmp_path):
    content = packaged()
    content["added_tokens"] += [
        {"id": 32000, "content": "[PAD]", "special": True, **PLAIN_TOKEN},
        {"id": 32001, "content": "<|im_start|>", "special": False, **PLAIN_TOKEN},
        {"id": 32002, "content": "<|im_end|>", "special": True, **PLAIN_TOKEN},
    ]
    folder_with(tmp_path, tokenizer__json=content, tokenizer_config__json={"bos_token": "<s>", "eos_token": "<|im_end|>"})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (32002,), 32003)
    shifted = {1: 32001, 2: 32002}
    talk = [*TALK, {"role": "user", "content": "<|im_end|><|im_start|>"}]
    assert tokenizer.encode_chat(talk) == [shifted.get(i, i) for i in INSTRUCT.encode_chat(talk)]
    assert tokenizer.decode([32001, 28708, 32002]) == "a"


def test_gaps_between_ids_belong_to_no_token(tmp_path):
    content = packaged()
    content["added_tokens"].append({"id": 32002, "content": "<|im_end|>", "special": True, **PLAIN_TOKEN})
    tokenizer = Tokenizer.load(folder_with(tmp_path, tokenizer__json=content))
    assert tokenizer.encode("a<|im_end|>", bos=False, special=True)[-1] == 32002
    with pytest.raises(ZambaError, match="token id 32001 is outside"):
        tokenizer.decode([32001])
    content["added_tokens"][-1] |= {"content": "<word>", "special": False}  # the library would make this one 32000
    with pytest.raises(ZambaError, match="'<word>' the id 32002"):
        Tokenizer.load(folder_with(tmp_path, tokenizer__json=content))


def test_the_turn_end_stops_whatever_else_the_files_name(tmp_path):
    INSTRUCT.save(tmp_path)
    folder_with(tmp_path, generation_config__json={"eos_token_id": [7, 9]})
    assert Tokenizer.load(tmp_path).eos_ids == (2, 7, 9)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    assert Tokenizer.load(tmp_path).eos_ids == (7, 9, 2)


def test_a_config_may_relabel_tokens(tmp_path):
    """tokenizer_config.json has the last word on the name of an id, as in transformers."""
    declared = {"1": {"content": "<|im_start|>", "special": True}, "2": {"content": "<|im_end|>", "special": True}}
    config = {"added_tokens_decoder": declared, "bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    folder_with(tmp_path, tokenizer__json=packaged(), tokenizer_config__json=config)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special == INSTRUCT.special
    assert tokenizer.encode_chat(TALK) == INSTRUCT.encode_chat(TALK)
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").special == INSTRUCT.special


def test_a_template_that_lay_there_does_not_hold_any_longer(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("old")
    INSTRUCT.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == INSTRUCT.chat_template


def test_without_files_the_packaged_one_serves(tmp_path):
    assert Tokenizer.load(tmp_path).special == BASE.special
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    folder_with(tmp_path, tokenizer_config__json=names, config__json={"vocab_size": 32000})
    tokenizer = Tokenizer.load(str(tmp_path))
    assert (tokenizer.special, tokenizer.eos_ids) == (INSTRUCT.special, (2,))
    assert tokenizer.encode_chat(TALK) == INSTRUCT.encode_chat(TALK)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer__json": "{"}, "tokenizer.json is not valid JSON"),
        ({"tokenizer__json": "[]"}, "holds a JSON list, expected an object"),
        ({"tokenizer__json": "{}"}, "tokenizer.json"),
        ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}}, "tokenizer.json cannot be read"),
        ({"tokenizer_config__json": "nonsense"}, "tokenizer_config.json is not valid JSON"),
        ({"tokenizer_config__json": {"bos_token": 3}}, "bos_token is 3, expected a string"),
        ({"tokenizer_config__json": {"eos_token": "<end>"}}, "eos_token '<end>'"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "chat_template is a int"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}}, "malformed"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"5": {"content": "<s>"}}}}, "'<s>' is id 5 in tokenizer_config"),
        ({"generation_config__json": {"eos_token_id": [2, "3"]}}, "eos_token_id is [2, '3'], expected a token id"),
        ({"config__json": {"vocab_size": 512}}, "vocab_size 512 is below the 32000"),
        ({"tokenizer__model": "another vocabulary"}, "is not Mistral v0.1's"),
    ],
)
def test_broken_folders_are_told_apart(tmp_path, files, message):
    with pytest.raises(ZambaError) as caught:
        Tokenizer.load(folder_with(tmp_path, **files))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ZambaError, match="no folder at .*/nowhere"):
        Tokenizer.load(tmp_path / "nowhere")


def test_files_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ZambaError, match="cannot read .*tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_truncated_files_never_escape_as_another_error(tmp_path):
    BASE.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    rng = random.Random(0)
    for _ in range(20):
        (tmp_path / "tokenizer.json").write_text(whole[: rng.randrange(len(whole) - 2)], encoding="utf-8")
        with pytest.raises(ZambaError):
            Tokenizer.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    BASE.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        INSTRUCT.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_byte_level_vocabularies_work_too(tmp_path):
    """For models trained from scratch with another tokenizer: the library itself is the reference."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(["the cat sat on the mat", "über naïve cats"] * 4, trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (0, (1,), None)
    for text in ["the cat", " the über\n\tmat 你好 🙂", " x"]:
        ids = library.encode(text).ids
        assert tokenizer.encode(text, bos=False) == ids
        assert tokenizer.decode(ids) == library.decode(ids) == text


def test_other_kinds_of_vocabulary_are_refused(tmp_path):
    library = Library(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ZambaError, match="decoder WordPiece"):
        Tokenizer.load(tmp_path)
