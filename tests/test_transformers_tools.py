"""transformers' own tools, and PEFT, over every architecture of images."""

import numpy as np
import peft
import pytest
import torch
from test_models import pictures, squares
from torch import nn
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

import hf_ris


ARCHITECTURES = sorted(name for name in hf_ris.ARCHITECTURES if not name.endswith("_video"))
each = pytest.mark.parametrize("name", ARCHITECTURES)


def rows(count: int) -> list[dict]:
    return [
        {"image": image, "text": text, "mask": mask}
        for image, text, mask in zip(pictures(count), ["the red cup", "star", "the green fish"], squares(count))
    ]


def trainer(model, processor, folder, **options) -> Trainer:
    def collate(batch):
        texts, masks = [[row["text"]] for row in batch], [[row["mask"]] for row in batch]
        return dict(processor([row["image"] for row in batch], texts, masks))

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=1, report_to=[],
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return Trainer(model, arguments, data_collator=collate, processing_class=processor, **options)


@each
def test_trainer_trains_evaluates_saves_and_what_it_saved_loads(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name, fresh=True)
    seen = []
    runs = trainer(
        model, processor, tmp_path, train_dataset=rows(2), eval_dataset=rows(3),
        compute_metrics=lambda answers: seen.append(answers) or {"share": float((answers.predictions > 0).mean())},
    )  # fmt: skip
    runs.train()
    assert 0 <= runs.evaluate()["eval_share"] <= 1
    assert isinstance(seen[0].predictions, np.ndarray) and len(seen[0].predictions) == len(seen[0].label_ids) == 3
    runs.save_model(str(tmp_path))
    again, inputs = AutoModel.from_pretrained(tmp_path), processor(pictures(1)[0], "the red cup")
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)


@each
def test_words_can_be_added(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name, fresh=True)
    inputs = processor(pictures(1)[0], "the red cup")
    table, words = model.get_input_embeddings(), model.config.get_text_config().vocab_size
    assert isinstance(table, nn.Embedding) and table.num_embeddings == words
    with torch.no_grad():
        before = model(**inputs).logits
        model.resize_token_embeddings(words + 3)
        assert model.config.get_text_config().vocab_size == model.get_input_embeddings().num_embeddings == words + 3
        torch.testing.assert_close(model(**inputs).logits, before)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(**inputs).logits, before)
    model.set_input_embeddings(nn.Embedding(5, table.embedding_dim))
    assert model.get_input_embeddings().num_embeddings == 5


@each
def test_a_folder_is_enough_for_a_pipeline_where_the_package_is_installed(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("referring-image-segmentation", model=str(tmp_path))
    assert type(pipe.model) is type(model) and type(pipe.processor) is type(processor)
    (answer,) = pipe(pictures(1)[0], "the red cup")
    assert answer["mask"].size == (112, 80)


@each
def test_adapters_of_peft_train_alone_and_come_back(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name, fresh=True)
    inputs = processor(pictures(1), [["the red cup", "star"]], [squares(2)])
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=linear[::3], r=2, init_lora_weights=False))
    adapted(**inputs).loss.backward()
    learned = {path for path, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert learned and all("lora_" in path for path in learned)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_trio(name, fresh=True)[0], tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, adapted.eval()(**inputs).logits)


@each
def test_every_attention_implementation_gives_the_same(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name)
    model.save_pretrained(tmp_path)
    inputs = processor(pictures(1)[0], ["the red cup", "star"])
    with torch.no_grad():
        expected = model(**inputs).logits
        for way in ("eager", "sdpa"):
            other = AutoModel.from_pretrained(tmp_path, attn_implementation=way)
            assert other.config._attn_implementation == way
            torch.testing.assert_close(other(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises((ValueError, ImportError), match="(?i)flash"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
