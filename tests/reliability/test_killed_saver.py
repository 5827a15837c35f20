"""A process is killed while it saves, again and again: the newest checkpoint can always be read."""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from models.weights import Ema
from pipelines.checkpoints import MANIFEST_FILE, check_seal
from pipelines.storage import ASIDE, FOLDER, OWNED, Storage, temporary_folder
from pipelines.training.state import TrainState
from pipelines.training.supervised import SupervisedStage
from pipelines.training.survival.listing import mend_listing, tidy
from pipelines.training.survival.saver import Saver
from tests.pipelines.training import makers

pytestmark = [pytest.mark.kill, pytest.mark.long, pytest.mark.timeout(900)]

KILLS = 200
LATEST = 2.5
"""Every kill comes within the time of so many checkpoints after the process has begun to save."""


def stage(root: str) -> SupervisedStage:
    """A stage whose checkpoints have about a megabyte."""
    recipe = makers.recipe(makers.TEACHER)
    model = dataclasses.replace(recipe.model, ffn_dim=512)
    return SupervisedStage(dataclasses.replace(recipe, root=root, model=model))


def save_for_ever(root: str, places: str, begun: Connection) -> None:
    """As a run that is started again: from its newest checkpoint, one after another."""
    tempfile.tempdir = places
    made, folder = stage(root), Storage(f"{root}/stage")
    mend_listing(folder)
    names = tidy(folder)
    model = made.spec.build("cpu")
    state = TrainState({"teacher": model}, {}, {"teacher": Ema(model, 0.9)})
    state.step = int(names[-1].removeprefix("step-")) if names else 0
    saver = Saver(made.recipe, made.spec, state.step)
    begun.send(state.step)
    while True:
        state.step += 1
        saver.begin(state, {})
        saver.finish()
        saver.forget_old()


def newest_in(folder: Path) -> int:
    """Step of the last checkpoint that is whole."""
    whole = (path.parent.name for path in folder.glob(f"step-*/{MANIFEST_FILE}"))
    return max((int(name.removeprefix("step-")) for name in whole), default=0)


def test_200_kills_leave_no_unreadable_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    root, places = str(tmp_path / "run"), str(tmp_path / "places")
    folder = tmp_path / "run" / "stage"
    folder.mkdir(parents=True)
    Path(places).mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    moments = np.random.default_rng(0).uniform(0, LATEST, KILLS)
    unfinished, newest, a_checkpoint_s = 0, 0, 0.0
    for moment in moments:
        here, there = context.Pipe()
        process = context.Process(target=save_for_ever, args=(root, places, there))
        process.start()
        there.close()
        went_on_from = here.recv()
        assert went_on_from == newest, "it goes on from what the killed one has finished"
        began = time.monotonic()
        while not a_checkpoint_s and newest_in(folder) < 10:
            time.sleep(0.001)
        a_checkpoint_s = a_checkpoint_s or (time.monotonic() - began) / 10
        time.sleep(moment * a_checkpoint_s)
        process.kill()
        process.join()
        here.close()
        unfinished += len([*folder.glob(f"{ASIDE}*"), *Path(places).glob(f"{FOLDER}*{OWNED}")]) > 0
        newest = newest_in(folder)
        check_seal(folder / f"step-{newest:06d}")
    assert newest > KILLS / 4
    assert unfinished > KILLS / 4, "few were killed in a write"
    mend_listing(Storage(folder))
    for path in Path(places).iterdir():
        os.utime(path, (0, 0))  # a minute later
    with temporary_folder(places):
        pass
    left = [path.name for path in folder.iterdir() if not path.name.startswith("step-")]
    assert left == ["checkpoint_manager_snapshot.json"]
    assert 2 <= len(tidy(Storage(folder))) <= 3
    assert not list(Path(places).iterdir())
