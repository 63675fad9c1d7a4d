"""Commands on one model: their options are those of the command and those of the model's entry."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from copy import copy
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from typer.core import TyperCommand

from astrozoo import registry
from astrozoo.entry import COMMON_OPTIONS, Entry, Option
from astrozoo.errors import InputError

__all__ = ["ModelCommand", "own_options"]

_PARAMETERS = "astrozoo.parameters"
"""Key of a context's ``meta`` under which the command's parameters are, for its help."""
_ENTRY = "astrozoo.entry"
"""Key under which the entry is, once the model has been named."""
_VALUES = "astrozoo.values"
"""Key under which the values of the entry's own options are."""


def own_options(context: typer.Context) -> dict[str, Any]:
    """The values of the options that the model's entry adds to the command; defaults included."""
    return context.meta[_VALUES]


class ModelCommand(TyperCommand):
    """A command whose argument ``model`` decides which further options it takes.

    The command line is parsed twice: first with the options of all entries, to find the model among them,
    then with the options of this model.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and keep the values of the entry's own options for :func:`own_options`."""
        command = str(self.name)
        every = {option.name: option for entry in _entries(command) for option in entry.job(command).options}
        ctx.meta[_PARAMETERS] = [*self.params, *_parameters(every.values(), "Options of models")]
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        model = given.get("model")
        ctx.meta[_PARAMETERS] = self.params
        options: tuple[Option, ...] = ()
        if isinstance(model, str):
            entry = registry.get(model)
            job = entry.job(command)
            options = job.options
            if not given.get("help"):
                self._check(entry, given)
            left_out = set(COMMON_OPTIONS) - set(job.takes)
            ctx.meta[_ENTRY] = entry
            ctx.meta[_PARAMETERS] = [parameter for parameter in self.params if parameter.name not in left_out]
            ctx.meta[_PARAMETERS] += _parameters(options, f"Options of {entry.name}")
        rest = super().parse_args(ctx, args)
        ctx.meta[_VALUES] = {option.name: option.parse(ctx.params.pop(option.name)) for option in options}
        return rest

    def _check(self, entry: Entry, given: dict[str, Any]) -> None:
        """Refuse options that this model's job does not take, and say which command or model takes them."""
        command = str(self.name)
        job = entry.job(command)
        for name, value in given.items():
            if name in COMMON_OPTIONS and name not in job.takes:
                fitted = f"`astrozoo {command} {entry.name}` has one way, {job.method or job.function}"
                raise InputError(
                    f"--{name}",
                    value,
                    f"nothing: {fitted}. `astrozoo compare` and `astrozoo.infer` take --{name}",
                )
            if name not in {parameter.name for parameter in self.params} | {"help"} and not job.option(name):
                others = ", ".join(e.name for e in _entries(command) if e.job(command).option(name))
                flag = f"--{name.replace('_', '-')}"
                own = ", ".join(option.flag for option in job.options) or "no options"
                expected = f"nothing: it is an option of {others}. {entry.name} has {own}"
                raise InputError(flag, value, expected)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the command for the model that was named."""
        shown = copy(self)
        shown.params = ctx.meta.get(_PARAMETERS, self.params)
        return super(ModelCommand, shown).get_params(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help with the examples of the model; without a model, with a word on how to see its options."""
        entry: Entry | None = ctx.meta.get(_ENTRY)
        shown = copy(self)
        examples = entry.examples.get(str(self.name), ()) if entry else ()
        if examples:
            shown.epilog = "\n\n".join(["Examples:", *(f"[bold]{line}[/]" for line in examples)])
        elif entry is None and any(known.job(str(self.name)).options for known in _entries(str(self.name))):
            more = f"[bold]astrozoo {self.name} MODEL --help[/] shows the options that a model adds."
            shown.epilog = f"{self.epilog}\n\n{more}"
        super(ModelCommand, shown).format_help(ctx, formatter)


def _entries(command: str) -> list[Entry]:
    """The entries for which a command exists."""
    return [entry for entry in registry.list_models() if entry.has(command)]


def _parameters(options: Iterable[Option], panel: str) -> list[Any]:
    """The parameters that Typer makes of options. Only switches are parsed: other values stay text."""

    def command(**values: Any) -> None: ...

    kinds: dict[str, Any] = {}
    for option in options:
        default = "" if option.default in (None, False) else f" Default: {option.default}."
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        switch = option.type is bool
        declared = typer.Option(
            option.declaration,
            metavar=None if switch else option.metavar,
            help=escape(f"{option.help}{choices}{default}"),
            show_default=False,
            rich_help_panel=panel,
        )
        kind = Optional[bool] if switch else Optional[str]  # noqa: UP045 - Typer reads it at run time
        kinds[option.name] = Annotated[kind, declared]
    command.__annotations__ = kinds
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in kinds.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)  # type: ignore[attr-defined]
