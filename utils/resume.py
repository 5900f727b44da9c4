"""Where a run begins: at the start, after the newest epoch in its folder, or, with all its epochs, not at all."""

import argparse

from utils import checkpoint, messages, plot
from utils.errors import UserError
from utils.options import Parser, arguments_of


def resume_point(
    parser: Parser, options: argparse.Namespace, argv: list[str]
) -> tuple[argparse.Namespace, dict | None]:
    """The options of this run and, with --resume, the checkpoint it goes on from (None: a run from the start).

    A resumed run's options are the checkpoint's recipe and, after it, those of the command line `argv`, which must
    agree with that.

    Raises:
        UserError: for a folder that holds a run and neither --resume nor --overwrite, or an unusable checkpoint.
    """
    folder = options.checkpoint_dir
    if not options.overwrite and not checkpoint.saved_epochs(folder) and (folder / "history.csv").exists():
        raise UserError(f"{folder / 'history.csv'} is there without its epochs; move it away, or use --overwrite")
    if not options.resume:
        if checkpoint.saved_epochs(folder) and not options.overwrite:
            advice = "go on with --resume, remove it with --overwrite, or name another --checkpoint-dir"
            raise UserError(f"{folder} holds a run; {advice}")
        return options, None
    saved = checkpoint.load_newest(folder)
    if saved is None:
        return options, None
    path = checkpoint.path_of(folder, saved["epoch"])
    if options.teacher and not saved["config"]["teacher"]:
        raise UserError(f"{path} was trained without a teacher; leave out --teacher, or name another --checkpoint-dir")
    recipe = saved["config"]["options"] | saved["config"]["network"]
    with checkpoint.usable(path):  # its values have to pass the checks of a command line, as `argv` has
        options = parser.parse_args([*arguments_of(recipe), *argv])
    for name, before in recipe.items():
        value = getattr(options, name)
        # A one-cycle schedule has its end from the start; of the steps there can always be more.
        longer = name == "epochs" and value > before and recipe["schedule"] == "step"
        uncompiled = name == "compile" and value == "off"  # where the compiler has begun to fail
        if value == "auto":  # decided when the run began
            setattr(options, name, before)
        elif value != before and (longer or uncompiled):
            options.added = options.added | {name: value}
        elif value != before:
            given, was = (_option(name, each) for each in (value, before))
            fixed = " (one cycle's end is fixed from its start)" * (name == "epochs" and value > before)
            raise UserError(
                f"{given} differs from {path}, which has {was}{fixed}; leave it out to resume, or start another run "
                "with another --checkpoint-dir"
            )
    return options, saved


def finish(options: argparse.Namespace, saved: dict) -> None:
    """A run with all its epochs: only mend what a kill after the last of them may have left undone."""
    checkpoint.clear_partial(options.checkpoint_dir)
    checkpoint.save_history(options.checkpoint_dir, saved["history"])
    curve = plot.LossCurve(plot.curve_path(options), saved["config"], checkpoint.trainable_parameters(saved))
    newest = checkpoint.path_of(options.checkpoint_dir, saved["epoch"])
    if not curve.path.exists() or curve.path.stat().st_mtime < newest.stat().st_mtime:
        curve.prepare()
        curve.draw(saved["history"])
    print(messages.nothing_left(options))


def _option(name: str, value: object) -> str:
    """An option as a command line has it: --lr 0.1, no --nesterov."""
    return " ".join(arguments_of({name: value})) or f"no --{name}"
