"""``convert``: another style, another dtype, and the same text afterwards."""

import json
import os

import pytest


def text(run, model):
    result = run("generate", "--model", model, "The sea was", "--max-tokens", 8, "--dtype", "fp32")
    assert result.code == 0
    return result.out


@pytest.mark.parametrize("style", ["hf", "fork", "native"])
def test_every_style_can_be_written_and_read_again(run, folder, tmp_path, style):
    result = run("convert", folder, tmp_path / "new", "--style", style)
    assert result.code == 0 and result.out == "" and result.err == f"wrote {tmp_path / 'new'}\n"
    assert text(run, tmp_path / "new") == text(run, folder)


@pytest.mark.parametrize(
    ("name", "stored"), [("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16"), ("same", "float32")]
)
def test_the_dtype_is_the_one_asked_for(run, folder, tmp_path, name, stored):
    assert run("convert", folder, tmp_path / "new", "--dtype", name).code == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == stored


def test_nothing_of_an_earlier_model_stays_beside_the_new_one(run, folder, tmp_path):
    assert run("convert", folder, tmp_path / "new").code == 0
    (tmp_path / "new" / "chat_template.jinja").write_text("another model's")
    assert run("convert", folder, tmp_path / "new").code == 0
    assert sorted(os.listdir(tmp_path / "new")) == sorted(os.listdir(folder))


@pytest.mark.parametrize(("args", "code"), [(["--style", "other"], 2), (["--dtype", "bf17"], 1)])
def test_what_cannot_be_written_is_an_error_and_leaves_nothing(run, folder, tmp_path, args, code):
    result = run("convert", folder, tmp_path / "new", *args)
    assert result.code == code and result.err and "Traceback" not in result.err and not (tmp_path / "new").exists()


def test_a_folder_with_other_things_is_left_alone(run, folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    result = run("convert", folder, tmp_path)
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["thesis.tex"]
