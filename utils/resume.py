"""Where a run begins: at the start, or after the newest epoch of the run in its folder."""

import argparse

from utils import checkpoint
from utils.errors import UserError
from utils.options import Parser


def resume_point(parser: Parser, options: argparse.Namespace, given: dict) -> tuple[argparse.Namespace, dict | None]:
    """The options of this run and, with --resume, the checkpoint it goes on from (None: a run from the start).

    What is not given on a resumed run's command line comes from the checkpoint; what is given must agree with it.

    Raises:
        UserError: for a folder that holds a run and neither --resume nor --overwrite, or an unusable checkpoint.
    """
    folder = options.checkpoint_dir
    if not options.overwrite and not checkpoint.saved_epochs(folder) and (folder / "history.csv").exists():
        raise UserError(f"{folder / 'history.csv'} is there without its epochs; move it away, or use --overwrite")
    if not options.resume:
        if checkpoint.saved_epochs(folder) and not options.overwrite:
            raise UserError(f"{folder} holds a run; go on with --resume, or remove it with --overwrite")
        return options, None
    saved = checkpoint.load_newest(folder)
    if saved is None:
        return options, None
    path = checkpoint.path_of(folder, saved["epoch"])
    try:
        recipe = saved["config"]["options"] | saved["config"]["network"]
        recipe = parser.as_typed(recipe)
    except UserError as error:
        raise UserError(f"{path} is no usable checkpoint: {error}; {checkpoint.ADVICE}") from error
    for name in given.keys() & recipe.keys():
        # A one-cycle schedule has its end from the start; of the steps there can always be more.
        longer = name == "epochs" and given[name] > recipe[name] and recipe["schedule"] == "step"
        undecided = given[name] == "auto"
        if given[name] != recipe[name] and not longer and not undecided:
            raise UserError(
                f"--{name.replace('_', '-')} {given[name]} differs from {recipe[name]} in {path}; leave it out to "
                "resume, or start another run with another --checkpoint-dir"
            )
    epochs = given.get("epochs", recipe["epochs"])
    return argparse.Namespace(**vars(options) | recipe | {"epochs": epochs}), saved
