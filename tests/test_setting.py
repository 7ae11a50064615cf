"""A setting as a value: read, printed, ordered and stored in one way."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

import rcnet
from rcnet.errors import InputError
from rcnet.setting import Setting, listed

MIXED = Setting((3, 2, 2))


def test_a_setting_is_what_people_type():
    for text, numbers in (("2", (2, 2, 2)), ("3,2,2", (3, 2, 2)), ("1,0,0", (1, 0, 0))):
        setting = Setting.parse(text, 3)
        assert setting == numbers
        assert f"{setting}" == text
    assert str(Setting.parse("2,2,2")) == "2"
    assert str(Setting.parse("4", 1)) == "4"


@pytest.mark.parametrize("text", ["", "x", "2.5", "3,", "3;2", "two"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match=r"is not valid: give a number, e\.g\. 2, or several, e\.g\. 3,2,2"):
        Setting.parse(text, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(2, (2, 2, 2)), (np.int64(2), (2, 2, 2)), ([3, 2, 2], (3, 2, 2)), (np.array([3, 2, 2]), (3, 2, 2)), (MIXED, (3, 2, 2))],
)
def test_numbers_of_any_integer_type_are_taken(given, expected):
    setting = Setting.of(given, 3)
    assert setting == expected
    assert {type(n) for n in setting} == {int}


@pytest.mark.parametrize("given", ["2", 2.0, True, None, (), (2.0, 2), (2, None)])
def test_anything_else_is_the_setting_of_no_network(given):
    assert Setting.of(given, 3) == ()
    model = rcnet.create_model("r3_fast", steps=(1, 2), width=8)
    assert not model.holds(Setting())
    with pytest.raises(InputError, match=r"have no batch norms.* valid: 1,0,0; 1,0,1; "):
        model.offer([given])


def test_json_is_as_it_was():
    for setting, value, name in ((Setting.of(2, 3), 2, "steps2"), (MIXED, [3, 2, 2], "steps3_2_2")):
        assert setting.name == name
        assert json.loads(json.dumps(setting.to_json())) == value
        assert Setting.of(json.loads(json.dumps(setting.to_json())), 3) == setting
    assert Setting.of(4).name == Setting.of((4, 4)).name == "steps4"  # however many cells


def test_settings_are_ordered_by_cost():
    stairs = [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2)]
    model = rcnet.create_model("r3_fast", steps=(1, 2, 3), width=8)
    model.offer(reversed(stairs))
    assert model.settings == tuple(stairs)
    assert model.choices == ((1, 0, 0), (1, 1, 0), 1, (2, 1, 1), (2, 2, 1), 2, (3, 2, 2))
    assert model.steps == (1, 2)
    assert [setting.uniform for setting in model.settings] == [False, False, True, False, False, True, False]
    assert model.per_cell() == MIXED
    assert listed(model.settings) == "1,0,0; 1,1,0; 1; 2,1,1; 2,2,1; 2; 3,2,2"


def test_many_settings_are_listed_in_part():
    assert listed(map(Setting.of, range(1, 5))) == "1, 2, 3, 4"
    assert listed(map(Setting.of, range(1, 21))) == "1, 2, 3, 4, 5, 6, 7, 8, ..., 19, 20"


def test_copies_are_settings():
    for again in (pickle.loads(pickle.dumps(MIXED)), copy.copy(MIXED), copy.deepcopy(MIXED)):
        assert type(again) is Setting
        assert again == MIXED
    model = pickle.loads(pickle.dumps(copy.deepcopy(rcnet.create_model("r3_fast", width=8))))
    assert [str(setting) for setting in model.settings] == ["1", "2", "3"]


def test_a_setting_is_one_graph_when_compiled():
    graphs = []
    model = rcnet.create_model("r3_fast", steps=(1, 2), width=8).eval()
    model.offer([(1, 1, 1), (2, 1, 1), (2, 2, 2)])
    call = torch.compile(
        model, fullgraph=True, dynamic=False, backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        for _ in range(2):
            for setting in model.settings:
                torch.testing.assert_close(call(x, setting), model(x, setting))
    assert len(graphs) == 3


def test_results_of_every_kind_are_keyed_by_number_or_by_cell(tmp_path):
    model = rcnet.create_model("r3_fast", steps=(1, 2), width=8)
    model.offer([(1, 1, 1), (2, 1, 1)])
    rows = [{"steps": 1, "psnr": 27.0}, {"steps": [2, 1, 1], "psnr": 28.0}]
    rcnet.save(model, tmp_path / "x.safetensors", results=[{"data": "a", "precision": "fp32", "rows": rows}])
    again = rcnet.load(tmp_path / "x.safetensors")
    assert again.settings == ((1, 1, 1), (2, 1, 1))
    assert [(row["steps"], row["psnr"]) for row in rcnet.best_settings(again, size=(16, 16))] == [(1, 27.0), ((2, 1, 1), 28.0)]
    assert rcnet.steps_for(again, "1TMAC", (16, 16)) == (2, 1, 1)
    assert rcnet.optimize(again).steps == (1, (2, 1, 1))
