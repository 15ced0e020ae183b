"""Contact sheet of the drawn world: `python -m workers.lab.world.sheet out.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from workers.lab.world.render import render
from workers.scenes.grammar import SPLITS, Scene, Thing, possible_actions, sample_scene
from workers.scenes.lexicon import KEYS


def contact_sheet(scenes: list[Scene], columns: int, size: int) -> Image.Image:
    """The scenes' pictures in rows of `columns`, two pixels apart."""
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (size + 2), rows * (size + 2)), "white")
    for i, scene in enumerate(scenes):
        row, column = divmod(i, columns)
        picture = Image.fromarray(render(scene, size))
        sheet.paste(picture, (column * (size + 2), row * (size + 2)))
    return sheet


def every_pose(seed: int) -> list[Scene]:
    """Return one scene for each object and action that make sense."""
    rng = np.random.default_rng(seed)
    scenes = []
    for object_ in KEYS["object"]:
        actions = dict.fromkeys(a for place in KEYS["place"] for a in possible_actions(object_, place))
        for action in actions:
            places = [place for place in KEYS["place"] if action in possible_actions(object_, place)]
            colour = KEYS["colour"][int(rng.integers(8))]
            place = places[int(rng.integers(len(places)))]
            scenes.append(Scene((Thing(object_, colour, action),), place, None, int(rng.integers(2**40))))
    return scenes


def main() -> None:
    """Writes the contact sheet that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--poses", action="store_true", help="every object in every pose, instead of random scenes")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    if options.poses:
        scenes = every_pose(options.seed)
    else:
        scenes = [sample_scene(rng, options.split) for _ in range(options.count)]
    sheet = contact_sheet(scenes, options.columns, options.size)
    sheet.save(options.out)


if __name__ == "__main__":
    main()
