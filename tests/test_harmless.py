"""What becomes of pictures without noise, and the cards that it is measured on."""

import json

import numpy as np
import pytest
import torch

import rcnet
from rcnet.evaluation import cards
from rcnet.evaluation.harmless import harm_results
from rcnet.models import create_model

from .conftest import IMAGES

BSD = IMAGES / "bsd"
PICTURES = ("page", "screen", "texture", "night")


def adding(levels: float, channels: int = 3) -> rcnet.RecurrentNet:
    """A network that adds these levels to the first channel and does nothing else."""
    model = create_model("r3_fast", in_chans=channels, width=8, steps=(1, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1][:4] = levels / 255  # four pixels come out at once
    return model.eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_changes_nothing_harms_nothing_and_keeps_the_error_of_clipped_noise(channels):
    image = np.full((20, 30, channels), 99, np.uint8)
    rows = harm_results(adding(0, channels), [image], (1, 2))
    assert [row["steps"] for row in rows] == [1, 2]
    for row in rows:
        assert [row[name] for name in (*PICTURES, "clean", "clean_worst")] == [99] * 6
        assert row["flat"] == 0
        # Half of the noise of black is clipped: the mean of the rest is sigma / sqrt(2 pi).
        assert row["flat_noisy"] == pytest.approx(10 / np.sqrt(2 * np.pi), abs=0.3)
        assert row["cards"]["noisy 128"] < 0.4
        assert {"halftone", "checkerboard", "grass", "coloured text", "subpixel text", "flat 255", "ramp"} <= row["cards"].keys()
        assert ("pure" in row["cards"]) == (channels == 3)


def test_a_change_of_one_channel_is_found():
    (row,) = harm_results(adding(3), [], (1,))
    assert row["flat"] == 3
    assert row["cards"]["noisy 0"] == pytest.approx(7, abs=0.3)
    one_of_three = 20 * np.log10(255 / 3) + 10 * np.log10(3)
    assert row["night"] == pytest.approx(one_of_three, abs=0.05)
    assert "clean" not in row


def test_cards_are_what_they_are_called():
    assert {len(found) for name, found in cards.flat_cards(3).items() if name in cards.TONES} == {12}
    assert any((card == (0, 0, 255)).all() for card in cards.flat_cards(3)["pure"])
    assert {card.shape[2] for found in cards.flat_cards(1).values() for card in found} == {1}
    for channels in (1, 3):
        for found in cards.picture_cards(channels).values():
            for name, card in found.items():
                assert card.dtype == np.uint8, name
                assert card.shape[2] == channels, name
                assert np.ptp(card) > 100, name
    assert cards.night().mean() < 20
    text = cards.subpixel_text()[16:].astype(float)
    assert (np.ptp(text, axis=2) > 40).mean() > 0.02  # coloured fringes
    black = np.abs(np.diff(cards.checkerboard()[:16, :48, 0].astype(int), axis=1)) == 255
    assert black.all()
    for name, card in cards.noisy_cards(3).items():
        assert card.image.std() > 3, name
        assert (np.rint(card.image) == card.image).all()
    again = cards.picture_cards(3)
    assert all(
        (card == again[kind][name]).all() for kind, found in cards.picture_cards(3).items() for name, card in found.items()
    )


def test_the_table_fits_and_recorded_figures_are_shown(run, tmp_path):
    status, out, err = run("eval", "r3_fast.gray", "--data", BSD, "--harm", "--steps", "1", "--record")
    assert status == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].split("  ")[0] == "steps"
    for heading in ("screen dB", "texture dB", "night dB", "flat, levels", "bias, levels"):
        assert heading in lines[1]
    shown = run("models", "r3_fast.gray.safetensors")[1]
    assert "test without noise, blind:" in shown
    assert lines[3] in shown
    first = json.loads(run("models", "r3_fast.gray.safetensors", "--json")[1])["steps"][0]
    assert first["other_results"]["test without noise, blind"].keys() == {"flat", "flat_noisy", "clean", "clean_worst", *PICTURES}


def test_results_say_what_was_told():
    from rcnet.runtime.results import result_name

    about = {"data": "photos, pairs", "precision": "fp32"}
    assert result_name({**about, "blind": True}) == "photos, pairs, blind"
    assert result_name({**about, "blind": False, "told": 10}) == "photos, pairs, told 10"
