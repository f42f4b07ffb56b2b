"""An image is reconstructed from the model's answers, cell by cell, and compared with baselines."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.command import run
from common.errors import UserError
from common.images import ImageError, read_image
from pretrain import pvp_prediction
from pretrain import reconstruct as command
from pretrain.pvp_prediction import PixelPrediction, grid_coordinates, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat
from pretrain.reconstruct import Args, main, prediction_metrics, reconstruct
from vlm import checkpoint
from vlm.image_input import resize_image
from vlm.presets import build
from vlm.prompts import pixel_prompt


@pytest.fixture
def checkpoints(tmp_path):
    """Two models whose metadata says that they were trained on images of 40 x 30."""
    for seed, name in enumerate(("frozen", "adapted")):
        checkpoint.save(build("tiny-clip", seed), tmp_path / name / "last", {"arguments": {"size": [40, 30]}})
    return tmp_path / "frozen" / "last", tmp_path / "adapted" / "last"


@pytest.fixture
def picture(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


@pytest.fixture
def oracle(monkeypatch):
    """Replace a model's answers by row, column and 7, except in row 1, where none can be parsed."""

    def answer(vlm, features, prefix_ids, questions, max_new_tokens, lengths, chunk):
        answers = []
        for text in vlm.tokenizer.batch_decode(questions[0]):
            row, column = (int(number) for number in text.partition("]")[0].split(","))
            answers.append("up up up up" if row == 1 else f"{row},{column},7]")
        tokens = vlm.tokenizer(answers, add_special_tokens=False)["input_ids"]
        longest = max(map(len, tokens)) + 1
        end = vlm.tokenizer.eos_token_id
        return torch.tensor([[one + [end] * (longest - len(one)) for one in tokens]])

    monkeypatch.setattr(pvp_prediction, "generate_batch", answer)


def test_answers_are_parsed_cell_by_cell(oracle):
    vlm = build("tiny-clip")
    cells = grid_coordinates(3, 2)
    assert cells.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    found = predict_pixels(vlm, np.zeros((1, 30, 22, 3), np.uint8), cells, PixelPromptFormat.from_model(vlm), chunk=4)
    assert found.greedy.tolist() == [[0, 0, 7], [0, 1, 7], [-1] * 3, [-1] * 3, [2, 0, 7], [2, 1, 7]]
    assert found.colors[2].tolist() == [0, 0, 0]


def test_expected_values_equal_those_of_a_single_question(oracle):
    vlm = build("tiny-clip")
    prompt_format = PixelPromptFormat.from_model(vlm)
    image = np.random.default_rng(1).integers(0, 256, (1, 30, 22, 3), dtype=np.uint8)
    found = predict_pixels(vlm, image, grid_coordinates(1, 2), prompt_format, chunk=1)
    pixels = vlm.preprocess(image[None])
    prompt = pixel_prompt(0, 1).replace("<image>", "<image>" * vlm.encode_images(pixels).tokens.shape[1])
    ids = torch.tensor([vlm.tokenizer(prompt + "0,1,", add_special_tokens=False)["input_ids"]])
    logits = vlm.model(input_ids=ids, pixel_values=pixels).logits[0, [-5, -3, -1]][:, prompt_format.number_token_ids]
    expected = logits.softmax(-1) @ torch.arange(256.0)
    assert found.expected[1] == pytest.approx(expected.detach().numpy(), abs=1e-2)
    assert found.expected.std() > 0


def test_metrics_count_answers_that_cannot_be_parsed_as_black():
    true = np.array([[[10, 20, 30], [0, 0, 0]], [[5, 5, 5], [9, 9, 9]]], np.uint8)
    greedy = np.array([[10, 20, 30], [-1, -1, -1], [5, 5, 8], [-1, -1, -1]])
    expected = np.full((4, 3), 6.0)
    out = prediction_metrics(PixelPrediction(greedy, expected), true, np.array([[False, False], [True, False]]))
    assert out["parse_failure_rate"] == 0.5
    assert out["exact_match"] == 0.25  # black in place of an answer is no exact match
    assert out["mae"] == pytest.approx((3 + 27) / 12)
    assert out["mae_blue"] == pytest.approx(12 / 4)
    assert out["mae_small_objects"] == 1
    assert out["mae_background"] == pytest.approx(27 / 9)
    assert out["mae_expected"] == pytest.approx((4 + 14 + 24 + 18 + 3 + 9) / 12)
    assert (out["n"], out["n_small_objects"]) == (4, 1)


def test_an_image_is_reconstructed_by_every_model_and_compared_with_baselines(checkpoints, picture, tmp_path, capsys):
    out = tmp_path / "reconstruct"
    assert (
        main(["--image", str(picture), "--checkpoint", *map(str, checkpoints), "--grid", "6", "--out", str(out)]) == 0
    )
    rows = json.loads((out / "reconstruct.json").read_text())["rows"]
    assert [row.get("checkpoint") or row["baseline"] for row in rows] == [
        "image mean", "blurred", "patch mean", "frozen", "adapted",
    ]  # fmt: skip
    assert all(row["n"] == 36 for row in rows)
    assert rows[0]["mae"] > rows[1]["mae"] > 0
    sheet = read_image(out / "mine.png")
    assert sheet.shape[1] > 4 * sheet.shape[0] // 2  # original, grid, frozen, adapted
    assert list(out.glob("events.out.tfevents.*"))
    output = capsys.readouterr().out
    assert "frozen" in output
    assert "unparsed" in output


def test_pictures_and_metrics_are_not_written_over_inputs_one_another_or_another_run(
    checkpoints, picture, tmp_path, capsys
):
    def reconstructed(*images, out="out", model=0):
        arguments = ["--image", *map(str, images), "--checkpoint", str(checkpoints[model]), "--grid", "2"]
        return run(lambda: main([*arguments, "--out", str(tmp_path / out)]))

    content = picture.read_bytes()
    assert reconstructed(picture, out=".") == 2
    assert "mine.png would be written over what is read" in capsys.readouterr().err
    assert picture.read_bytes() == content
    (tmp_path / "a").mkdir()
    other = tmp_path / "a" / "mine.png"
    other.write_bytes(content)
    assert reconstructed(picture, other) == 2
    assert "mine.png would be written twice; choose another --out or rename an input" in capsys.readouterr().err
    assert reconstructed(other, out=".") == 2
    assert "mine.png exists and is not of this command" in capsys.readouterr().err
    assert reconstructed(picture) == reconstructed(picture) == 0
    assert reconstructed(picture, model=1) == 2
    assert "holds a run with another checkpoint; choose another --out" in capsys.readouterr().err


def test_images_of_a_folder_are_sampled(checkpoints, picture, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(picture.read_bytes())
    args = Args((checkpoints[0],), tmp_path / "out", data=folder, count=2, grid="4")
    assert len({row["image"] for row in reconstruct(args)}) == 2


def test_images_are_resized_to_the_resolution_of_training():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 100
    assert resize_image(image, (2, 2)).tolist() == [[[100] * 3] * 2, [[0] * 3] * 2]
    assert resize_image(image, (8, 8)).shape == (8, 8, 3)
    assert resize_image(image, None) is image


def test_grid_and_order_default_to_those_of_the_models_training(picture, tmp_path):
    metadata = {"arguments": {"size": [40, 30], "grid": "5", "order": "x,y"}}
    checkpoint.save(build("tiny-clip"), tmp_path / "trained", metadata)
    args = Args((tmp_path / "trained",), image=(picture,))
    assert (args.grid, args.order) == ("5", "x,y")
    args = Args((tmp_path / "trained",), image=(picture,), grid="6", order="row,column")
    assert (args.grid, args.order) == ("6", "row,column")
    earlier = {"arguments": {"pvp_weight": 0.0}, "started_from": metadata}
    checkpoint.save(build("tiny-clip"), tmp_path / "later", earlier)
    args = Args((tmp_path / "later",), image=(picture,))
    assert (args.grid, args.order, command.image_size(tmp_path / "later")) == ("5", "x,y", (40, 30))
    checkpoint.save(build("tiny-clip"), tmp_path / "untrained", {"arguments": {}})
    with pytest.raises(
        UserError, match="untrained was not trained on pixel values; pass --grid 32 to ask all the same"
    ):
        Args((tmp_path / "untrained",), image=(picture,))


def test_user_mistakes_are_refused(checkpoints, picture, tmp_path, capsys):
    arguments = ["--image", str(picture), "--checkpoint", str(checkpoints[0]), "--out", str(tmp_path / "o")]
    with pytest.raises(ImageError, match="at least 64 x 64 pixels for grid 64, got 80 x 60"):
        main([*arguments, "--grid", "64"])
    with pytest.raises(UserError, match="either --image or --data"):
        Args((checkpoints[0],), tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png is not a PNG or JPEG picture"):
        main(["--image", str(tmp_path / "text.png"), *arguments[2:], "--grid", "4"])
    with pytest.raises(UserError, match="two of one name"):
        command.name_checkpoints((checkpoints[0], checkpoints[0]))
