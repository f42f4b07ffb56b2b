"""An image is rebuilt from the model's own answers, place by place, and judged beside its floors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from pretrain import pvp_prediction
from pretrain import reconstruct as command
from pretrain.data.images import ImageError, read_image
from pretrain.pvp_prediction import PixelPrediction, grid_coordinates, predict_pixels
from pretrain.pvp_prompts import PixelPromptFormat
from pretrain.reconstruct import Args, baselines, main, prediction_metrics, reconstruct
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import pixel_prompt
from vlm.training_resolution import resize_image


@pytest.fixture
def taught(tmp_path):
    """Two models that say they were taught on images of 40 x 30."""
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
    """Answers of row, column and 7 in place of a model's, but for row 1, where none can be parsed."""

    def answer(vlm, features, shared, questions, max_new_tokens, lengths, chunk):
        answers = []
        for text in vlm.tokenizer.batch_decode(questions[0]):
            row, column = (int(number) for number in text.partition("]")[0].split(","))
            answers.append("up up up up" if row == 1 else f"{row},{column},7]")
        tokens = vlm.tokenizer(answers, add_special_tokens=False)["input_ids"]
        longest = max(map(len, tokens)) + 1
        end = vlm.tokenizer.eos_token_id
        return torch.tensor([[one + [end] * (longest - len(one)) for one in tokens]])

    monkeypatch.setattr(pvp_prediction, "generate_batch", answer)


def test_readings_are_parsed_place_by_place(oracle):
    vlm = build("tiny-clip")
    places = grid_coordinates(3, 2)
    assert places.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    found = predict_pixels(vlm, np.zeros((1, 30, 22, 3), np.uint8), places, PixelPromptFormat.of(vlm), chunk=4)
    assert found.greedy.tolist() == [[0, 0, 7], [0, 1, 7], [-1] * 3, [-1] * 3, [2, 0, 7], [2, 1, 7]]
    assert found.invalid.tolist() == [False, False, True, True, False, False]
    assert found.answered[2].tolist() == [0, 0, 0]


def test_expected_values_are_those_of_the_model_asked_alone(oracle):
    vlm = build("tiny-clip")
    language = PixelPromptFormat.of(vlm)
    image = np.random.default_rng(1).integers(0, 256, (1, 30, 22, 3), dtype=np.uint8)
    found = predict_pixels(vlm, image, grid_coordinates(1, 2), language, chunk=1)
    pixels = vlm.preprocess(image[None])
    prompt = pixel_prompt(0, 1).replace("<image>", "<image>" * vlm.encode_images(pixels).tokens.shape[1])
    ids = torch.tensor([vlm.tokenizer(prompt + "0,1,", add_special_tokens=False)["input_ids"]])
    logits = vlm.model(input_ids=ids, pixel_values=pixels).logits[0, [-5, -3, -1]][:, language.numbers]
    wanted = logits.softmax(-1) @ torch.arange(256.0)
    assert found.expected[1] == pytest.approx(wanted.detach().numpy(), abs=1e-2)
    assert found.expected.std() > 0


def test_figures_follow_from_the_answers_and_count_what_cannot_be_parsed_as_black():
    true = np.array([[[10, 20, 30], [0, 0, 0]], [[5, 5, 5], [9, 9, 9]]], np.uint8)
    greedy = np.array([[10, 20, 30], [-1, -1, -1], [5, 5, 8], [-1, -1, -1]])
    expected = np.full((4, 3), 6.0)
    out = prediction_metrics(PixelPrediction(greedy, expected), true, np.array([[False, False], [True, False]]))
    assert out["parse_failure_rate"] == 0.5
    assert out["exact_match"] == 0.25  # black that was not said is not exact
    assert out["mae"] == pytest.approx((3 + 27) / 12)
    assert out["mae_blue"] == pytest.approx(12 / 4)
    assert out["mae_small_objects"] == 1
    assert out["mae_background"] == pytest.approx(27 / 9)
    assert out["mae_expected"] == pytest.approx((4 + 14 + 24 + 18 + 3 + 9) / 12)
    assert (out["n"], out["n_small_objects"]) == (4, 1)


def test_floors_stand_in_their_order_on_an_image_with_layout_and_detail():
    rows, columns = np.mgrid[:64, :64]
    image = np.stack([rows * 3, columns * 3, 120 + 0 * rows], axis=-1).astype(np.uint8)
    found = baselines(image, image, 16, training=np.array([0.0, 0.0, 0.0]))
    errors = {name: np.abs(guess.astype(float) - image).mean() for name, guess in found.items()}
    assert errors["training mean"] > errors["image mean"] > errors["patch mean"] > errors["blurred"] > 0
    assert "training mean" not in baselines(image, image, 16)


def test_a_users_picture_is_rebuilt_by_every_model_beside_its_floors(taught, picture, tmp_path, capsys):
    out = tmp_path / "rebuilt"
    assert main(["--image", str(picture), "--checkpoint", *map(str, taught), "--grid", "6", "--out", str(out)]) == 0
    rows = json.loads((out / "reconstruct.json").read_text())["rows"]
    assert [row.get("checkpoint") or row["baseline"] for row in rows] == [
        "image mean", "blurred", "patch mean", "frozen", "adapted",
    ]  # fmt: skip
    assert all(row["n"] == 36 for row in rows)
    assert rows[0]["mae"] > rows[1]["mae"] > 0
    sheet = read_image(out / "mine.png")
    assert sheet.shape[1] > 4 * sheet.shape[0] // 2  # original, grid, frozen, adapted
    assert list(out.glob("events.out.tfevents.*"))
    said = capsys.readouterr().out
    assert "frozen" in said
    assert "unparsed" in said


def test_a_folder_is_drawn_from_by_its_seed(taught, picture, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(picture.read_bytes())
    args = Args((taught[0],), tmp_path / "out", data=folder, count=2, grid="4")
    assert len({row["image"] for row in reconstruct(args)}) == 2


def test_pictures_are_brought_to_the_size_that_models_were_taught_on_as_a_whole():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 100
    assert resize_image(image, (2, 2)).tolist() == [[[100] * 3] * 2, [[0] * 3] * 2]
    assert resize_image(image, (8, 8)).shape == (8, 8, 3)
    assert resize_image(image, None) is image


def test_grid_and_order_are_those_that_the_model_was_taught_unless_others_are_asked_for(picture, tmp_path):
    told = {"arguments": {"size": [40, 30], "grid": "5", "order": "x,y"}}
    checkpoint.save(build("tiny-clip"), tmp_path / "told", told)
    args = Args((tmp_path / "told",), image=(picture,))
    assert (args.grid, args.order) == ("5", "x,y")
    args = Args((tmp_path / "told",), image=(picture,), grid="6", order="row,column")
    assert (args.grid, args.order) == ("6", "row,column")
    checkpoint.save(build("tiny-clip"), tmp_path / "untold", {"arguments": {}})
    with pytest.raises(UserError, match="untold was not taught pixel values; give --grid 32 to ask all the same"):
        Args((tmp_path / "untold",), image=(picture,))


def test_bad_requests_are_one_line(taught, picture, tmp_path, capsys):
    arguments = ["--image", str(picture), "--checkpoint", str(taught[0]), "--out", str(tmp_path / "o")]
    with pytest.raises(ImageError, match="at least 64 x 64 pixels for grid 64, got 80 x 60"):
        main([*arguments, "--grid", "64"])
    with pytest.raises(UserError, match="either --image or --data"):
        Args((taught[0],), tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png is not a PNG or JPEG picture"):
        main(["--image", str(tmp_path / "text.png"), *arguments[2:], "--grid", "4"])
    with pytest.raises(ImageError, match="two of one name"):
        command.name_checkpoints((taught[0], taught[0]))
