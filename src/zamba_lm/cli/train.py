"""``zamba-lm train``: recipes that make models, their fields set by name."""

import logging
from typing import Annotated

import typer
from typer.core import TyperCommand

from zamba_lm.cli import terminal
from zamba_lm.train.recipes import RECIPES, recipe

app = typer.Typer(
    help="Make models: pre-train, anneal, tune. Every number is a field that --set changes.",
    epilog="zamba-lm train RECIPE --help lists the fields and presets of a recipe. docs/training.md walks through a run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a field, such as batch.rows=32; repeatable.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the folder `out`, with its own settings; --set changes them.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and the plan of the memory, and do nothing else.")
]


class Teaching(TyperCommand):
    """A command whose help goes on with the fields and presets of its recipe."""

    def format_epilog(self, ctx, formatter) -> None:
        module = recipe(self.name)
        with formatter.section("Fields (--set KEY=VALUE), with their defaults"):
            formatter.write_dl([(f"{path}={_shown(value)}", text) for path, text, value in _fields(module.Config())])
        with formatter.section("Presets (--set preset=NAME)"):
            formatter.write_text(", ".join(module.PRESETS))
        super().format_epilog(ctx, formatter)


def _fields(config) -> list[tuple[str, str, object]]:
    from zamba_lm.train.recipes.base import groups

    return groups(config)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}:{inner}" for key, inner in value.items()) or "{}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _command(name: str, text: str):
    def run(pairs: Set = None, resume: Resume = False, dry_run: DryRun = False) -> None:
        _run(name, pairs or [], resume=resume, dry_run=dry_run)

    run.__doc__ = f"""{text}

    \b
    Examples:
      zamba-lm train {name} --set preset=tiny --set out=runs/a --set data.sources.text=shards
      zamba-lm train {name} --set preset=pebble --set out=runs/a --dry-run
      zamba-lm train {name} --set out=runs/a --resume
    """
    return run


for _name, (_, _text) in RECIPES.items():
    app.command(_name, cls=Teaching, epilog="A group's field is set with a dot. Numbers such as 700e6 and 2e-4 are fine.")(
        _command(_name, _text)
    )


def _run(name: str, pairs: list[str], *, resume: bool, dry_run: bool) -> None:
    terminal.first_rank_only()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells everyone who imports transformers what it lacks
    from zamba_lm.train.recipes.start import described, prepare, started

    if dry_run:
        config, notes = prepare(name, pairs, resume=resume, write=False)
        _tell(notes)
        print(described(name, config))
        return
    with started(name, pairs, resume=resume) as (config, notes):
        _tell(notes)
        recipe(name).run(config, resume=resume)
    from zamba_lm.parallel import leave

    leave()


def _tell(notes: list[str]) -> None:
    for note in notes:
        terminal.say(note)
