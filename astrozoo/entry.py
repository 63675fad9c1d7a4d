"""An entry of the zoo: a model, what can be fitted with it, and the options of its commands.

Everything here names code as ``"module:attribute"`` and imports it when it is used, so that listing the zoo
and showing help stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from astrozoo.errors import DataError, InputError

__all__ = ["COMMON_OPTIONS", "Entry", "Job", "Option", "resolve"]

COMMON_OPTIONS = ("method", "guide", "device")
"""The options of a command that a job may take or leave; all others of a command go to every job."""


_GENERAL: Mapping[str, bool] = {"run": True, "compare": True, "sbc": False}
"""Commands that work for any model, and whether they read data."""


def resolve(address: str) -> Any:
    """What ``"module:attribute"`` names.

    Raises:
        InputError: the address is malformed, or there is no such module or attribute.
    """
    module, colon, attribute = address.partition(":")
    if not (module and colon and attribute):
        raise InputError("address", repr(address), "'module:attribute'")
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", None)
        if missing not in (module, attribute) and not module.startswith(f"{missing}."):
            raise  # the module exists, but a module that it imports does not
        raise InputError("address", repr(address), f"something that exists ({error})") from error


@dataclass(frozen=True)
class Option:
    """One option of a command, which only this entry has.

    Args:
        name: as in Python. ``max_sweeps`` is ``--max-sweeps`` on the command line.
        help: one sentence.
        type: str, int, float, Path (which must exist), or bool (a switch, without a value).
        metavar: stands for the value in the help, such as ``N``.
        default: the value where the option is not given.
        minimum: of a number.
        choices: the values that are allowed; all, if empty.
        check: address of a function that raises an :class:`InputError` for a bad value. It must be quick.
    """

    name: str
    help: str
    type: type = str
    metavar: str = "TEXT"
    default: Any = None
    minimum: float | None = None
    choices: tuple[str, ...] = ()
    check: str = ""

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def declaration(self) -> str:
        """As the command line declares it: a switch whose default is None can be set to no."""
        may_be_no = self.type is bool and self.default is None
        return f"{self.flag}/--no-{self.flag[2:]}" if may_be_no else self.flag

    @property
    def usage(self) -> str:
        """As it is shown to the user, with its value."""
        return self.declaration if self.type is bool else f"{self.flag} {self.metavar}"

    def parse(self, text: str | bool | None) -> Any:
        """The value of an option from its text, or the default if there is none. A switch has no text.

        Raises:
            InputError: the text is not a value of this option.
            DataError: the text names a file that does not exist.
        """
        if text is None:
            return self.default
        if isinstance(text, bool):
            return text
        try:
            value = self.type(text)
        except ValueError as error:
            raise InputError(self.flag, repr(text), f"a value of type {self.type.__name__}") from error
        if self.minimum is not None and not value >= self.minimum:
            raise InputError(self.flag, text, f"{self.minimum:g} or more")
        if self.choices and value not in self.choices:
            raise InputError(self.flag, text, f"one of {', '.join(self.choices)}")
        if isinstance(value, Path) and not value.exists():
            raise DataError(f"{self.flag} {value}", "nothing there", "an existing file or folder")
        if self.check:
            resolve(self.check)(value)
        return value


@dataclass(frozen=True)
class Job:
    """What one command does for an entry.

    Args:
        function: address. It is called with keywords: those that the command always gives (``out``, ``path``,
            ``demo`` and ``seed`` of ``run``), those of ``takes``, and one for each of ``options``. It returns
            an :class:`astrozoo.types.Outcome`, and may write files into ``out``. If it is empty, the command
            does what it does for any model.
        options: of this entry alone.
        takes: which of :data:`COMMON_OPTIONS` the job takes.
        method: the name of its method in results, for a job that fits in one way only.
        summary: one line on that method.
        shared: whether ``--shard`` divides its work among processes. It does if the work is done by
            :func:`astrozoo.infer`.
    """

    function: str = ""
    options: tuple[Option, ...] = ()
    takes: tuple[str, ...] = COMMON_OPTIONS
    method: str = ""
    summary: str = ""
    shared: bool = False

    def option(self, name: str) -> Option | None:
        """The option of that name, if there is one."""
        return next((option for option in self.options if option.name == name), None)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name: of the entry, and the stem of its module.
        summary: one line.
        citation: where it was published.
        model: address of the model's class.
        keywords: for search.
        guides: names that ``infer(..., guide=)`` takes for it; its own, and general ones of
            :data:`astrozoo.registry.GUIDES`.
        methods: names that ``infer(..., method=)`` takes for it.
        unsuited: all other methods -> why they do not suit this model. Commands refuse them with this reason.
        default_guide, default_method: what commands use by default.
        options: method -> options of ``infer`` that suit this model.
        required: method -> settings of :meth:`problem` and :meth:`simulate` without which the method does not
            take this model.
        dimensions: what the latent dimension is, in words.
        units: latent site -> unit.
        data_sets: names that ``astrozoo data fetch`` takes, of data that :meth:`read` reads.
        reader: address of the function behind :meth:`read`; by default ``read`` of the model's module.
        reading: options of :meth:`read`; commands that read data take them.
        settings: options of :meth:`problem` and :meth:`simulate`; commands that fit the model take them.
        simulated: settings of :meth:`simulate` and :meth:`problem` for data that are drawn from the model.
        demo: further ones for ``run --demo``.
        examples: command -> command lines for its help.
        jobs: command -> job, for the commands that do something else for this model than for any other.
    """

    name: str
    summary: str
    citation: str
    model: str
    keywords: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    unsuited: Mapping[str, str] = field(default_factory=dict)
    default_guide: str = ""
    default_method: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dimensions: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    data_sets: tuple[str, ...] = ()
    reader: str = ""
    reading: tuple[Option, ...] = ()
    settings: tuple[Option, ...] = ()
    simulated: Mapping[str, Any] = field(default_factory=dict)
    demo: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name of the model's module."""
        return self.model.partition(":")[0]

    @property
    def model_class(self) -> Any:
        """The model's class (imports it)."""
        return resolve(self.model)

    def job(self, command: str) -> Job:
        """What a command does for this entry.

        Raises:
            InputError: the command does not exist for this model.
        """
        if not self.has(command):
            known = ", ".join(sorted({*_GENERAL, *self.jobs}))
            raise InputError(f"command for {self.name}", command, f"one of {known}")
        if command in self.jobs:
            return self.jobs[command]
        reading = self.reading if _GENERAL[command] else ()
        return Job(options=(*reading, *self.settings), shared=True)

    def has(self, command: str) -> bool:
        """Whether a command exists for this entry."""
        return command in self.jobs or command in _GENERAL

    def split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of options that were given: those for :meth:`read`, and those for :meth:`problem`."""

        def of(options: Sequence[Option]) -> dict[str, Any]:
            given = {option.name: values.get(option.name) for option in options}
            return {name: value for name, value in given.items() if value is not None}

        return of(self.reading), of(self.settings)

    def refuse_reading(self, reading: Mapping[str, Any]) -> None:
        """Refuse options on how to read data where there are no data to read.

        Raises:
            InputError: one was given.
        """
        for option in self.reading:
            if option.name in reading:
                raise InputError(option.flag, reading[option.name], f"{option.flag} with --data only")

    def simulate(self, seed: int = 0, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Data drawn from the model itself, and the truth behind them: site -> tensor."""
        return resolve(f"{self.module}:simulate")(seed=seed, **settings)

    def read(self, path: str | Path, **settings: Any) -> Any:
        """Real data, ready for :meth:`problem`.

        Raises:
            DataError: if the files are missing or are not what the model reads.
            InputError: if the data are more than one problem can hold.
        """
        return resolve(self.reader or f"{self.module}:read")(Path(path), **settings)

    def problem(self, data: Any, **settings: Any) -> Any:
        """The :class:`astrozoo.types.Problem` of these data."""
        return resolve(f"{self.module}:problem")(data, **settings)
