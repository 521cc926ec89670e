import pytest
import yaml

from kdx_analysis.config import (
    ObjectiveConfig,
    ProbeConfig,
    StudyConfig,
    VAMConfig,
    digest,
    flatten,
)
from kdx_analysis.errors import KdxError

STUDY = {
    "name": "toy",
    "data": {"name": "digits"},
    "teacher": {"model": "digits_teacher"},
    "student": "digits_student",
    "objectives": ["hard", {"name": "kd", "T": 2, "lambda": 0.5}],
}


def study(**changes) -> StudyConfig:
    return StudyConfig.parse(STUDY | changes)


def test_a_study_comes_back_from_its_yaml(tmp_path):
    file = tmp_path / "study.yaml"
    study(seeds=[3, 1], explainer={"experts": [2, 4]}).save(file)
    loaded = StudyConfig.load(file)
    assert loaded == study(seeds=[3, 1], explainer={"experts": [2, 4]})
    assert loaded.seeds == (3, 1)
    assert loaded.objectives[1].lam == 0.5
    assert "lambda: 0.5" in file.read_text()


def test_overrides_reach_nested_keys_and_leave_the_study_alone():
    before = study()
    after = before.override(
        ["data.per_class=5", "training.epochs=7", "seeds=[4]", "objectives=[kd]"]
    )
    assert (after.data.per_class, after.training.epochs, after.seeds) == (5, 7, (4,))
    assert [objective.label for objective in after.objectives] == ["kd"]
    assert before == study()


def test_an_override_reaches_into_a_section_that_is_not_set():
    tree = study().override(["explainer.phase2.weights=kept"]).explainer.phase2
    assert (tree.weights, tree.by, tree.training) == ("kept", "alpha", None)


def test_trees_are_trained_as_phase_1_unless_they_say_otherwise():
    own = study(
        training={"epochs": 3},
        explainer={"phase2": {"training": {"epochs": 7, "schedule": "step"}}},
    )
    trained = {
        role: own.training_of(role).epochs for role in ("teacher", "student", "explainer", "tree")
    }
    assert trained == {"teacher": 30, "student": 3, "explainer": 3, "tree": 7}
    assert study(training={"epochs": 3}, explainer={"phase2": {}}).training_of("tree").epochs == 3


def test_the_released_code_can_be_written_as_a_study():
    text = """
        explainer:
          experts: [2, 4, 8]
          temperature: {schedule: reciprocal, start: 5.0}
          warmup_epochs: 2
          phase2:
            training: {epochs: 300, optimizer: sgd, nesterov: false, lr: 0.05, weight_decay: 5.0e-4, warmup_epochs: 0,
                       schedule: step, step_epochs: 30}
        training: {epochs: 300, optimizer: adam, lr: 0.05, gate_lr_factor: 0.2, weight_decay: 5.0e-4,
                   gate_weight_decay: 5.0e-4, schedule: learn_to_branch}
    """
    read = study(**yaml.safe_load(text))
    assert StudyConfig.parse(read.to_dict()) == read
    assert read.training.lr * read.training.gate_lr_factor == pytest.approx(0.01)


def test_overrides_of_a_file(tmp_path):
    file = tmp_path / "study.yaml"
    study().save(file)
    assert StudyConfig.load(file, ["data.val_fraction=.25"]).data.val_fraction == 0.25


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set 'epochs' should be key=value"),
        ("=3", "should be key=value"),
        ("data.name=[", "not valid YAML"),
        ("name.first=x", "'name' holds no keys; set name=... as a whole"),
        (
            "training.epoch=3",
            "unknown configuration key 'epoch'; did you mean 'epochs'.* 'training.epoch'",
        ),
    ],
)
def test_overrides_that_can_not_be_applied(override, message):
    with pytest.raises(KdxError, match=message):
        study().override([override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ["kd"]}, "unknown configuration key 'objective'; did you mean 'objectives'"),
        (
            {"data": {"name": "x", "perclass": 3}},
            "'perclass'; did you mean 'per_class'.*'data.perclass'",
        ),
        ({"objectives": [{"name": "kd", "lamda": 0.5}]}, "'lamda'; did you mean 'lambda'"),
        ({"explainer": {"temperature": {"strat": 3}}}, "'strat'; did you mean 'start'"),
        (
            {"training": {"optimizer": "adm"}},
            "unknown optimizer 'adm'; did you mean 'adam' or 'adamw'",
        ),
        ({"explainer": {"budget": "flop"}}, "unknown budget 'flop'; did you mean 'flops'"),
        (
            {"explainer": {"phase2": {"weigths": "kept"}}},
            "'weigths'; did you mean 'weights'.*'explainer.phase2.weigths'",
        ),
        ({"explainer": {"phase2": {"training": {"epoch": 1}}}}, "'epoch'; did you mean 'epochs'"),
        ({"data": {}}, r"'data\.name' is missing; add it"),
    ],
)
def test_unknown_keys_and_names_are_answered_with_near_ones(changes, message):
    with pytest.raises(KdxError, match=message) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"objectives": [{"name": "kd", "T": 0}]}, r"objectives\.0\.T = 0: .*greater than 0"),
        ({"objectives": [{"name": "kd", "T": float("inf")}]}, r"objectives\.0\.T = inf: .*finite"),
        (
            {"objectives": [{"name": "kd", "lambda": 1.5}]},
            r"lambda = 1\.5: .*less than or equal to 1",
        ),
        ({"objectives": [{"name": "kd", "lambda": float("nan")}]}, "lambda = nan"),
        (
            {"objectives": [{"name": "label_smoothing", "epsilon": -0.1}]},
            r"epsilon = -0\.1: .*equal to 0",
        ),
        ({"objectives": []}, "objectives = .*list should have at least 1 item"),
        ({"objectives": "kd"}, "objectives = 'kd': input should be a valid list|should be a list"),
        ({"data": "digits"}, "data = 'digits': input should be keys and values"),
        ({"data": {"name": "x", "val_fraction": 0}}, "data.val_fraction = 0"),
        ({"explainer": {"experts": 0}}, r"explainer\.experts = 0: .*greater than or equal to 1"),
        ({"explainer": {"experts": [4, 0]}}, r"explainer\.experts\.1 = 0"),
        ({"explainer": {"top_k": 0}}, r"explainer\.top_k = 0: .*greater than or equal to 1"),
        ({"explainer": {"stages": []}}, r"explainer\.stages = .*at least 1 item"),
        ({"explainer": {"warmup_epochs": -1}}, r"explainer\.warmup_epochs = -1"),
        ({"training": {"devices": [1]}}, r"training\.devices = \[1\]"),
        ({"seeds": [0, -1]}, r"seeds\.1 = -1: .*equal to 0"),
        ({"seeds": [1, 2, 1]}, "seed 1 is given more than once"),
        ({"objectives": ["kd", "kd"]}, "objective kd is given more than once"),
    ],
)
def test_values_out_of_range(changes, where):
    with pytest.raises(KdxError, match=where) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 1])
def test_shares_include_both_ends(share):
    objective = ObjectiveConfig.model_validate({"name": "kd", "lambda": share, "epsilon": share})
    assert (objective.lam, objective.epsilon) == (share, share)


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(KdxError, match=r"cannot read study .*missing\.yaml.*No such file"):
        StudyConfig.load(tmp_path / "missing.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(KdxError, match=r"bad\.yaml is not valid YAML"):
        StudyConfig.load(bad)
    bad.write_text("just words")
    with pytest.raises(KdxError, match="should hold keys and values"):
        StudyConfig.load(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(KdxError, match="no text in UTF-8"):
        StudyConfig.load(bad)


def test_a_label_tells_what_differs_from_the_defaults():
    def label(**keys) -> str:
        return ObjectiveConfig.model_validate({"name": "kd", **keys}).label

    assert label() == "kd"
    assert label(T=1, decomposition="multiclass") == "kd multiclass T=1.0"
    assert label(**{"lambda": 0.5, "scale_to": "kd"}) == "kd lambda=0.5 scale_to=kd"
    assert label(T=1, label="cold") == "cold"


def test_two_temperatures_of_one_objective_are_two_objectives():
    assert [o.label for o in study(objectives=["kd", {"name": "kd", "T": 1}]).objectives] == [
        "kd",
        "kd T=1.0",
    ]


def test_options_are_part_of_an_objective_and_told_only_where_there_are_some():
    plain = ObjectiveConfig(name="kd")
    assert "options" not in plain.model_dump(mode="json", by_alias=True)
    given = ObjectiveConfig(name="mine", options={"beta": 3.0})
    assert given.label == "mine beta=3.0"
    dumped = given.model_dump(mode="json", by_alias=True)
    assert dumped["options"] == {"beta": 3.0}
    assert ObjectiveConfig.model_validate(dumped) == given
    assert study(objectives=[dumped]).to_dict()["objectives"] == [dumped]


def test_a_null_needs_draws():
    with pytest.raises(ValueError, match="19"):
        ProbeConfig(null_draws=18)


def test_digest_ignores_the_order_of_keys_only():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(value) for value in ({"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1})}) == 3
    assert len(digest({}, 64)) == 64


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": 3}) == {"a.b.c": 1, "a.d": [2], "e": 3}


def test_vam_takes_numbers_for_schedules_and_comes_back_from_yaml():
    assert study().vam is None
    config = study(vam={"gamma": 0, "temperature": {"schedule": "cosine", "start": 2, "end": 0.5}})
    assert (config.vam.gamma.start, config.vam.gamma.schedule, config.vam.temperature.schedule) == (
        0,
        "constant",
        "cosine",
    )
    assert study(vam={"temperature": 0.5}).vam.temperature.start == 0.5
    assert StudyConfig.parse(config.to_dict()) == config
    with pytest.raises(KdxError, match="did you mean 'blocks'"):
        study(vam={"block": 4})
    with pytest.raises(KdxError, match=r"vam\.blocks = 1"):
        study(vam={"blocks": 1})


def test_vam_is_one_setting_or_arms_by_label():
    assert study().arms == {"": None}
    assert study(vam={"blocks": 4}).arms == {"": VAMConfig(blocks=4)}
    config = study(vam={"plain": None, "vam": {}, "γ": {"gamma": 0.01}})
    assert config.arms == {"plain": None, "vam": VAMConfig(), "γ": VAMConfig(gamma={"start": 0.01})}
    assert StudyConfig.parse(config.to_dict()) == config
    assert config.override(["vam.vam.blocks=4"]).arms["vam"] == VAMConfig(blocks=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vam": {"a": None, "b": {"block": 4}}},
            r"'block'; did you mean 'blocks'.*at 'vam\.b\.block'",
        ),
        ({"vam": {"a": None, "b": {"blocks": 1}}}, r"vam\.b\.blocks = 1"),
        ({"vam": {"a": {"blocks": 8}, "b": {}}}, "vam has the same setting under 'a' and 'b'"),
        ({"vam": {"": None, "b": {}}}, "at least 1 character"),
        ({"vam": 3}, "vam = 3: input should be keys and values"),
        (
            {"vam": {}, "roles": ["explainer"]},
            "vam needs student among the roles, which are explainer",
        ),
        (
            {"explainer": {"phase2": {}}, "roles": ["student"]},
            "phase2 needs explainer among the roles",
        ),
        ({"roles": []}, "roles = .*at least 1 item"),
        ({"roles": ["student", "student"]}, "role student is given more than once"),
        ({"roles": ["students"]}, r"unknown .*'students'; did you mean 'student'"),
    ],
)
def test_arms_and_roles_that_can_not_be(changes, message):
    with pytest.raises(KdxError, match=message) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)
