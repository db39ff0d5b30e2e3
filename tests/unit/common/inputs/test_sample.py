"""What `helm test` trains: a model that transformers loads, a tokenizer that changes no text, rows that are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunery_common.inputs.sample import main


def test_the_sample_is_a_model_a_tokenizer_and_rows_and_may_be_put_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert main([f"file://{tmp_path}/sample"]) == 0
    folder = tmp_path / "sample" / "model"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 500_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Grüße, 世界!\n\t<b>1 + 1</b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rows = [json.loads(line) for line in (tmp_path / "sample" / "rows.jsonl").read_text().splitlines()]
    ids = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=True, return_dict=True, return_tensors="pt")
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert len(tokenizer) <= model.config.vocab_size
    assert torch.isfinite(model(**ids).logits).all()


def test_a_secret_that_is_missing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://bucket/sample", "nowhere"]) == 64
    assert "SecretNotFound: test.outputSecret: the Secret nowhere with the keys" in capsys.readouterr().err
