"""What a study is: typed, validated, YAML in and out.

Values are checked here; names (data sets, models, objectives, loggers) are checked by the study,
which knows the rooms.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from kdx_analysis.errors import KdxError
from kdx_analysis.io import write_text
from kdx_analysis.registry import unknown

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
C = TypeVar("C", bound=BaseModel)

# Pairs of ten subtasks: of fewer an interval for the mean over all pairs is too wide to say much.
LEAST_PAIRS = 45


class _Config(BaseModel):
    """A section of a study.

    ``later`` are keys that came after runs had been made without them, with the values that leave
    all as it was. They are told only where they have others: runs are found again by a digest of
    what is told.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=()
    )
    later: ClassVar[Mapping[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        for name, before in self.later.items():
            if getattr(self, name) == before:
                values.pop(name, None)
        return values


class DataConfig(_Config):
    """Which images, and how they are split.

    ``per_class`` takes that many training images of every class before validation is held out,
    ``test_per_class`` that many test images, the same ones in every study (by default all);
    ``size`` resizes all images to so many pixels a side.
    """

    later: ClassVar[Mapping[str, Any]] = {"test_per_class": None}

    name: str
    per_class: Count | None = None
    test_per_class: Count | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Seed = 0
    size: Count | None = None
    augment: bool = True


class TrainingConfig(_Config):
    """How one model is trained.

    ``accelerator``, ``devices``, ``strategy`` and ``precision`` are Fabric's. ``adam`` decays
    weights by an L2 term in the gradient, ``adamw`` apart from it. Gates have ``gate_lr_factor``
    times the learning rate and a decay of their own. The rate warms up over ``warmup_epochs`` and
    then follows the ``schedule``; ``step`` halves it every ``step_epochs``, ``learn_to_branch``
    brings a warm-up of its own. Every ``validate_every`` epochs, and after the last, the model is
    asked about validation; with ``selection: best`` those epochs are the candidates.
    """

    later: ClassVar[Mapping[str, Any]] = {"validate_every": 1}

    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    nesterov: bool = True
    lr: Positive = 2e-3
    gate_lr_factor: Positive = 10.0
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    gate_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant", "step", "learn_to_branch"] = "cosine"
    step_epochs: Count = 30
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    selection: Literal["last", "best"] = "last"
    validate_every: Count = 1
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    threads: Count = 1


class TeacherConfig(_Config):
    """A model by name and how it is trained.

    Instead it is loaded from ``path``, a run's directory or weights, where that is given.
    ``siblings`` are teachers that differ from it in the seed alone and that no student ever sees: a
    number of them to train, or the paths of some that are trained already. With ``seeds`` there are
    so many teachers, each with students of its own; objectives that need no teacher are trained
    once.
    """

    model: str
    path: str | None = None
    training: TrainingConfig = TrainingConfig()
    siblings: Annotated[int, Field(ge=0)] | tuple[str, ...] = 0
    seeds: Count = 1

    @property
    def sibling_count(self) -> int:
        """The number of siblings, trained or given."""
        return self.siblings if isinstance(self.siblings, int) else len(self.siblings)


class TemperatureConfig(_Config):
    """Annealing of the gates' temperature τ over epochs, counted from 1.

    ``reciprocal`` is start/epoch, as the released code has it; ``exponential`` and ``cosine`` end
    at ``end``.
    """

    schedule: Literal["reciprocal", "exponential", "cosine", "constant"] = "reciprocal"
    start: Positive = 5.0
    end: Positive = 0.05


class Phase2Config(_Config):
    """The tree of every explainer: its gates made hard, then trained.

    They are made hard ``by`` their own attention, α, or by effective attention. ``weights`` are
    drawn anew or go on from the explainer's; where they are drawn anew, BatchNorm's running
    ``statistics`` are reset or, as in the released code, kept. ``training`` is by default that of
    phase 1.
    """

    weights: Literal["redrawn", "kept"] = "redrawn"
    statistics: Literal["redrawn", "kept"] = "redrawn"
    by: Literal["alpha", "effective"] = "alpha"
    training: TrainingConfig | None = None


class ExplainerConfig(_Config):
    """The HME made of the student: experts of each level above the trunk, and their gates.

    All experts together have the parameters or FLOPs of the stages that they stand for
    (``budget``), or each their width over the number of experts; widths are multiples of
    ``multiple``, which convolutions are quicker with, where that keeps to a tenth of the budget.
    ``stages`` are module paths, where the student's stages are not to be found by themselves.
    ``gates`` are parameters or read the input; a gate keeps its ``top_k`` parents, ``gumbel`` adds
    noise in training, and in the first ``warmup_epochs`` gates stay as they are. ``phase2`` asks
    for trees.

    ``preset: learn_to_branch`` is the released network in place of one made of the student, its
    heads with one logit a class (``form: ce``) or two (``nce``); of the other keys, experts, gumbel
    and those of training apply.
    """

    later: ClassVar[Mapping[str, Any]] = {"multiple": 1}

    preset: Literal["learn_to_branch"] | None = None
    form: Literal["ce", "nce"] = "ce"
    experts: tuple[Count, ...] | Count = 4
    budget: Literal["params", "flops", "width"] = "params"
    multiple: Count = 8
    stages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    gates: Literal["parameter", "input"] = "parameter"
    top_k: Count | None = None
    gumbel: bool = False
    temperature: TemperatureConfig = TemperatureConfig()
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    phase2: Phase2Config | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_version(cls, value: Any) -> Any:
        """A section that says all but ``multiple`` was written when widths were not rounded."""
        others = cls.model_fields.keys() - {"multiple"}
        if isinstance(value, Mapping) and "multiple" not in value and others <= value.keys():
            return {**value, "multiple": 1}
        return value


class ObjectiveConfig(_Config):
    """What the student is asked to match.

    ``T`` and ``lambda`` are the distillation temperature and weight, ``epsilon`` the label
    smoothing, ``cut`` how the teacher's distribution becomes binary targets, ``scale_to: kd``
    multiplies the loss by a constant so that its gradient norm at initialisation is that of ``kd``.
    ``options`` are what the named objective takes beside these keys, which its distiller says.
    """

    later: ClassVar[Mapping[str, Any]] = {"options": {}}

    name: str
    decomposition: Literal["binary", "multiclass"] = "binary"
    T: Positive = 4.0
    lam: Annotated[Share, Field(alias="lambda")] = 0.9
    epsilon: Share = 0.1
    cut: Literal["two_way", "softmax_then_cut"] = "two_way"
    positive_weight: Literal["none", "balanced"] = "none"
    scale_to: Literal["kd"] | None = None
    options: dict[str, Any] = {}
    label: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _give_label(self) -> Self:
        if not self.label:
            parts: list[str] = [self.name]
            if self.decomposition == "multiclass":
                parts.append("multiclass")
            defaults = type(self).model_fields
            for field in ("T", "lam", "epsilon", "cut", "positive_weight", "scale_to"):
                if (value := getattr(self, field)) != defaults[field].default:
                    parts.append(f"{defaults[field].alias or field}={value}")
            parts += [f"{key}={value}" for key, value in self.options.items()]
            object.__setattr__(self, "label", " ".join(parts))
        return self


class PenaltyConfig(_Config):
    """Weight γ of VAM's entropy penalty: ``start``, or from there to ``end`` in equal steps."""

    schedule: Literal["constant", "linear"] = "constant"
    start: NotNegative = 0.0
    end: NotNegative = 0.01


class VAMConfig(_Config):
    """VAM on every student (not on teacher and explainers).

    ``blocks`` per layer or ``channels`` per block, on the layers that match ``where``; ``gamma``
    and ``temperature`` are numbers or schedules, and without ``gamma`` there is no penalty. The
    arguments are those of ``kdx.vam.attach``.
    """

    blocks: Annotated[int, Field(ge=2)] = 8
    channels: Count | None = None
    where: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    scale: Literal["rms", "mean"] = "rms"
    gamma: PenaltyConfig = PenaltyConfig()
    temperature: TemperatureConfig = TemperatureConfig(schedule="constant", start=1.0)

    @field_validator("gamma", "temperature", mode="before")
    @classmethod
    def _number_alone(cls, value: Any) -> Any:
        return {"schedule": "constant", "start": value} if isinstance(value, int | float) else value


_SETTING, _ARMS = "one setting", "arms"


def _setting_or_arms(value: Any) -> str:
    """Which of the two a vam section is.

    Arms hold a setting or null under every key, and no key is a setting's own.
    """
    if not isinstance(value, Mapping):
        return _SETTING
    arms = value and all(
        inner is None or isinstance(inner, Mapping | VAMConfig) for inner in value.values()
    )
    return _ARMS if arms and not set(value) & set(VAMConfig.model_fields) else _SETTING


Arms = Annotated[dict[Annotated[str, Field(min_length=1)], VAMConfig | None], Field(min_length=1)]
VAMSection = Annotated[
    Annotated[VAMConfig, Tag(_SETTING)] | Annotated[Arms, Tag(_ARMS)],
    Discriminator(_setting_or_arms),
]


class ProbeConfig(_Config):
    """When and on what the probes look.

    ``per_class`` images of every class from train, and as many from validation; at ``checkpoints``
    epochs spread from the first to the last; ``null_draws`` permutations for each null, whose mean
    they give and, from 39 on, a range that one more draw falls into with 95 %; ``max_memory`` bytes
    for the gradients that are held at once.

    ``inner_null_draws`` are the most draws of conflict's null at the probed epochs before the last,
    of which its mean is what counts; by default as many as at the last. Conflict looks at ``pairs``
    of subtasks at most, those among subtasks drawn at random; by default at all.

    A section under the name of a probe holds its own options, or keys of these that are others for
    it; ``affinity: off`` switches the probe off, ``shift: on`` switches one on that is off without
    it, and ``shift: [noise, blur]`` gives it the list that it takes. Names and options are checked
    by the probes' room.

    Attributes:
        sections: what the study says of single probes: a mapping or a list, True where one is on,
            False where it is off. In a study they stand beside the other keys, each under its name.
    """

    later: ClassVar[Mapping[str, Any]] = {"inner_null_draws": None, "pairs": None}

    per_class: Count = 20
    seed: Seed = 0
    checkpoints: Count = 4
    null_draws: Annotated[int, Field(ge=19)] = 99
    permutations: Annotated[int, Field(ge=19)] = 999
    max_memory: Count = 2**30
    inner_null_draws: Annotated[int, Field(ge=19)] | None = None
    pairs: Annotated[int, Field(ge=LEAST_PAIRS)] | None = None
    sections: dict[str, dict[str, Any] | list[Any] | bool] = Field(default={}, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _gather_sections(cls, value: Any) -> Any:
        """Keys and values that can be a probe's go to ``sections``.

        What is left is then checked as any other key is.
        """
        if not isinstance(value, Mapping):
            return value
        sections: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, item in value.items():
            if name in cls.shared() or not _is_section(item):
                rest[name] = item
            elif item != {}:  # which says nothing: it is the same study as without it
                sections[name] = _section(item)
        return {**rest, "sections": sections}

    @model_serializer(mode="wrap")
    def _spread_sections(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**self._without_later_defaults(serialize), **self.sections}

    @property
    def inner(self) -> ProbeConfig:
        """These settings at the probed epochs before the last."""
        if self.inner_null_draws is None:
            return self
        draws = min(self.inner_null_draws, self.null_draws)
        return self.model_copy(update={"null_draws": draws})

    @property
    def drawn(self) -> str:
        """How many draws nulls have, in words.

        >>> ProbeConfig(null_draws=49).drawn, ProbeConfig(null_draws=49, inner_null_draws=19).drawn
        ('49', '49 (19 before the last probed epoch)')
        """
        inner = self.inner.null_draws
        before = f" ({inner} before the last probed epoch)" if inner < self.null_draws else ""
        return f"{self.null_draws}{before}"

    @classmethod
    def shared(cls) -> tuple[str, ...]:
        """The keys that all probes share."""
        return tuple(name for name in cls.model_fields if name != "sections")

    def with_options(self, probe: str, **options: Any) -> ProbeConfig:
        """These settings, with ``options`` for one probe where they don't say others.

        A probe that is off stays so.
        """
        section = self.sections.get(probe, {})
        if section is False:
            return self
        given = section if isinstance(section, dict) else {}
        return self.model_copy(update={"sections": {**self.sections, probe: options | given}})


def _is_section(value: Any) -> bool:
    """Whether a value under ``probes:`` can be a probe's own."""
    return value is None or isinstance(value, bool | Mapping | list | tuple)


def _section(value: Any) -> dict[str, Any] | list[Any] | bool:
    """A probe's section in its plain form; nothing behind its name is as good as ``off``."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, list | tuple) else bool(value)


class StudyConfig(_Config):
    """Runs that share data and teacher: for every objective and seed a run of each role.

    The student is the undivided one. With ``vam`` it has the virtual attention module; where
    ``vam`` maps labels to settings (null: without), there is a student for each, with the same
    weights and images to start from. With ``explainer.phase2`` a tree grows from every explainer.
    ``loggers`` are told of every training, epoch by epoch; they change nothing in it. Nor does
    ``keep_teacher``, the bytes on disk in which the teacher's logits on the training images are
    kept while there are other runs of their seed to train; 0 keeps none.
    ``extensions`` are Python files that are run first, for what they register; in YAML, paths from
    its own folder.
    """

    later: ClassVar[Mapping[str, Any]] = {"keep_teacher": 2**30}

    name: str
    data: DataConfig
    teacher: TeacherConfig
    student: str
    roles: Annotated[tuple[Literal["student", "explainer"], ...], Field(min_length=1)] = (
        "student",
        "explainer",
    )
    vam: VAMSection | None = None
    explainer: ExplainerConfig = ExplainerConfig()
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    training: TrainingConfig = TrainingConfig()
    probes: ProbeConfig = ProbeConfig()
    loggers: tuple[str, ...] = ()
    keep_teacher: Annotated[int, Field(ge=0)] = 2**30
    extensions: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [objective.label for objective in self.objectives]
        named = (
            ("seed", self.seeds),
            ("objective", labels),
            ("role", self.roles),
            ("logger", self.loggers),
            # Runs say by its name what file they were made with.
            ("extension", [Path(extension).name for extension in self.extensions]),
        )
        for what, values in named:
            twice = sorted({str(v) for v in values if list(values).count(v) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)} is given more than once")
        arms = list(self.arms.items())
        for i, (label, setting) in enumerate(arms):
            alike = [other for other, earlier in arms[:i] if earlier == setting]
            if alike:
                raise ValueError(f"vam has the same setting under {alike[0]!r} and {label!r}")
        return self

    @model_validator(mode="after")
    def _asked_of_a_role(self) -> Self:
        for key, given, role in (
            ("vam", self.vam, "student"),
            ("explainer.phase2", self.explainer.phase2, "explainer"),
        ):
            if given is not None and role not in self.roles:
                raise ValueError(
                    f"{key} needs {role} among the roles, which are {', '.join(self.roles)}"
                )
        return self

    @model_validator(mode="after")
    def _trained_here(self) -> Self:
        teacher = self.teacher
        if teacher.path is not None:
            check_given_teacher(teacher.siblings, teacher.seeds)
        return self

    @property
    def arms(self) -> dict[str, VAMConfig | None]:
        """VAM's settings by label; the label is empty where the study does not vary them."""
        return self.vam if isinstance(self.vam, dict) else {"": self.vam}

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, source: str = "study") -> StudyConfig:
        """Validate a nested mapping ``value``; ``source`` names it in errors.

        Raises KdxError in one line, with the nearest valid keys.
        """
        return parsed(cls, value, source)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
        """Read a YAML file and apply overrides, each ``key=value``.

        Keys are dotted, values are YAML too. Raises KdxError for a file that can't be read or is no
        YAML, and as :meth:`parse` does.
        """
        path = Path(path)
        value = read_yaml(path, "study", "name, data, teacher, ...")
        config = cls.parse(_apply(value, overrides), source=str(path))
        beside = tuple(str((path.parent / name).resolve()) for name in config.extensions)
        return config.model_copy(update={"extensions": beside})

    def override(self, overrides: Iterable[str]) -> StudyConfig:
        """This study with ``key=value`` overrides."""
        return type(self).parse(_apply(self.to_dict(), overrides), source=f"study {self.name!r}")

    def training_of(self, role: str) -> TrainingConfig:
        """How the runs of a role (teacher, student, explainer, tree) are trained."""
        if role == "teacher":
            return self.teacher.training
        phase2 = self.explainer.phase2 if role == "tree" else None
        return self.training if phase2 is None or phase2.training is None else phase2.training

    def to_dict(self) -> dict[str, Any]:
        """The study as plain, JSON-able values under the keys of its YAML."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The study as YAML, every key with its value."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write :meth:`to_yaml` to ``path``, whole or not at all."""
        write_text(path, self.to_yaml())


def check_given_teacher(siblings: object, seeds: int) -> None:
    """Raise ValueError for siblings or seeds that nothing can train beside a given teacher."""
    if isinstance(siblings, int) and siblings:
        raise ValueError(
            f"teacher.siblings is {siblings}, but the teacher is given, and how it was trained is "
            "not known here; give the paths of siblings that were trained as it was"
        )
    if seeds > 1:
        raise ValueError(
            f"teacher.seeds is {seeds}, but the teacher is given, so no other is trained as it "
            "was; leave teacher.seeds out, or leave the path out to have teachers trained"
        )


def parsed(model: type[C], value: Mapping[str, Any], source: str) -> C:
    """A section's ``value`` as its ``model``; ``source`` names it in errors.

    Raises KdxError in one line, with the nearest valid keys.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _one_line(error, model, source) from None


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The keys and values of a YAML file, in which nothing is executed.

    Args:
        what: the file is called in errors.
        keys: that it should hold, as errors name them.

    Raises:
        KdxError: if the file can't be read, is no YAML or holds no keys.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise KdxError(
            f"cannot read {what} {str(path)!r}: {reason}; give the path of a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise KdxError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise KdxError(f"{path} should hold keys and values ({keys}), not {value!r}")
    return value


def digest(value: Mapping[str, Any], length: int = 8) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of a JSON-able ``value``.

    The order of keys does not matter.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping ``value`` as one level of dotted keys, each behind ``prefix``."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _apply(value: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise KdxError(
                f"--set {override!r} should be key=value, for example data.per_class=500"
            )
        try:
            item = yaml.safe_load(text)
        except yaml.YAMLError:
            raise KdxError(f"--set {override!r}: the value is not valid YAML") from None
        *path, last = key.split(".")
        inner = value
        for part in path:
            if inner.get(part) is None:
                inner[part] = {}
            inner = inner[part]
            if not isinstance(inner, dict):
                raise KdxError(
                    f"--set {override!r}: {part!r} holds no keys; set {part}=... as a whole"
                )
        inner[last] = item
    return value


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys where an unknown one stands, following ``location`` through nested models."""
    here: Any = model
    for part in location:
        if isinstance(part, int) or not (isinstance(here, type) and issubclass(here, BaseModel)):
            continue
        field = here.model_fields.get(str(part))
        if field is not None:
            nested = [t for t in (field.annotation, *_inner(field.annotation)) if _is_model(t)]
            here = nested[0] if nested else here
    fields = here.model_fields.items()
    return [field.alias or name for name, field in fields if not field.exclude]


def _inner(annotation: Any) -> list[Any]:
    nested: list[Any] = []
    for argument in get_args(annotation):
        nested += [argument, *_inner(argument)]
    return nested


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _dotted(location: tuple[int | str, ...]) -> str:
    """One of pydantic's locations without the branches of unions that it tried."""
    branch = re.compile(rf"int|str|{_SETTING}|{_ARMS}|(constrained|function|tuple|dict)\W.*")
    return ".".join(str(part) for part in location if not branch.fullmatch(str(part)))


def _one_line(error: ValidationError, model: type[BaseModel], source: str) -> KdxError:
    problems = error.errors()
    problem = next(
        (p for p in problems if not p["type"].endswith("_type")), problems[0]
    )  # of a union the nearest
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        place = f" (at {_dotted(location)!r})" if len(location) > 1 else ""
        mistake = unknown("configuration key", str(location[-1]), _keys_at(model, location))
        return KdxError(f"{source}: {mistake}{place}")
    key = _dotted(location)
    if problem["type"] == "missing":
        return KdxError(f"{source}: {key!r} is missing; add it")
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        valid = [
            v.strip().strip("'")
            for v in str(problem["ctx"]["expected"]).replace(" or ", ", ").split(", ")
        ]
        return KdxError(
            f"{source}: {unknown(str(location[-1]), problem['input'], valid)} (at {key!r})"
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = re.sub(r"valid tuple|Tuple", "list", message)
    message = re.sub(r"a valid dictionary or instance of \w+", "keys and values", message)
    where = f"{key} = {problem['input']!r}: " if key else ""
    return KdxError(f"{source}: {where}{message[0].lower()}{message[1:]}")
