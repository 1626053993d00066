"""The words that LQAE may use, and the sentences that its language model is trained on.

The words are those of instructions (the tabletop, CALVIN, RLBench, Meta-World) and a physical
vocabulary. Each is one token of all-MiniLM-L6-v2. To use others, set `tokenizer.words`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

CATEGORIES = {
    "grammar": """
        a an the this that it its is are was be been being and or not no then while until after
        before with without of to from by for as in on at into onto out off up down over under
        above below between behind beside near next inside outside through across along around
        against toward towards away back again all both each every one two three four five six
        seven eight nine ten first second third last other another same some any most only
    """,
    "actions": """
        open close shut pull push slide move turn rotate twist flip switch press hit grasp grab
        pick place put lift raise lower drop hold carry take bring give remove insert stack pile
        sort pour fill empty wipe sweep clean wash cut fold spread straighten tie hang hook
        screw lock unlock plug stir shake throw catch reach touch point go come stop start wait
        return leave keep set get make use show store collect build align center swing tilt bend
        stretch roll spin knock pack wrap cover hide find look watch
    """,
    "states": """
        opened closed pulled pushed moved turned rotated pressed placed lifted raised lowered
        dropped held carried removed inserted stacked filled folded covered locked unlocked lit
        lying standing hanging resting moving still full halfway partly empty free stuck broken flat
        bent straight level tilted upright upside clean dirty wet dry warm hot cold loose tight
    """,
    "places": """
        left right front rear top bottom middle center side edge corner end beginning here there
        far close high low forward backward upward downward horizontal vertical diagonal
        north south east west position place spot area region zone surface ground floor wall
        ceiling table desk counter shelf bench stand base
    """,
    "things": """
        block cube box ball drawer door handle lever button switch lamp light bulb knob cabinet
        cupboard window lid cup mug glass bottle bowl plate pan pot jar can dish fork knife spoon
        tray basket bin bucket bag paper book pen pencil tape rope cloth towel string wire cable
        cord ring rod stick bar pole peg nail bolt nut screw wheel gear hook chain key lock
        hammer tool drill saw brush sponge broom puzzle toy card letter phone screen
        keyboard mouse remote clock chair sofa bed pillow blanket rug curtain oven stove fridge
        microwave sink toilet bath shower tap kettle grill food bread meat steak
        chicken egg cheese apple banana orange lemon pear peach sugar salt tea coffee water milk
        soup rice cake hat shoe shirt jacket umbrella box plug socket laptop monitor camera
        robot arm hand finger fingers wrist elbow joint tip claw object item piece part
        thing stack tower pyramid row line column pile hole slot gap rail track frame panel sheet
    """,
    "looks": """
        red green blue yellow pink purple orange brown black white grey gray silver gold golden
        dark bright pale light colored big small large little tiny huge long short tall wide narrow
        thick thin round square circular triangular heavy hard soft smooth rough shiny transparent
        clear visible hidden empty old new color shape size shadow picture image scene view
    """,
    "motion": """
        fast slow quick quickly slowly gently softly carefully firmly fully slightly almost
        suddenly steady speed force weight distance height depth width length angle degree motion
        path direction sliding contact grip touch press friction collision balance
    """,
}  # fmt: skip

TEMPLATES = (
    "{do} the {part}",
    "{do} the {colour} {thing}",
    "{do} the {part} to the {side}",
    "{do} the {colour} {thing} to the {side}",
    "{do} the {colour} {thing} and place it {at} the {part}",
    "the {part} is {state}",
    "the {part} is {state} and the {other} is {state}",
    "the {colour} {thing} is on the {side}",
    "the {colour} {thing} is {at} the {part}",
    "the {colour} {thing} is {at} the {hue} {thing}",
    "the robot arm is {at} the {part}",
    "the hand is {at} the {colour} {thing}",
    "the {light} is {power} and the {part} is {state}",
    "turn {power} the {light}",
)
SLOTS: Mapping[str, Sequence[str]] = {
    name: words.split()
    for name, words in {
        "do": "open close pull push slide move turn press grasp lift raise lower take touch",
        "part": "drawer door handle lever button switch cabinet window box lid shelf",
        "other": "drawer door lamp switch window box",
        "thing": "block cube ball cup mug ring peg",
        "colour": "red blue pink green yellow orange purple white black grey",
        "hue": "red blue pink green yellow",
        "side": "left right middle front back top bottom",
        "at": "above below beside behind near inside",
        "state": "open closed pushed pulled empty full moving still",
        "light": "light lamp bulb",
        "power": "on off",
    }.items()
}
WORD, SLOT = re.compile(r"[a-z]+"), re.compile(r"{(\w+)}")


def words() -> tuple[str, ...]:
    """Return the words, each once, in their order above."""
    return tuple(dict.fromkeys(" ".join(CATEGORIES.values()).split()))


def split(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return WORD.findall(text.lower())


def sentences(count: int = 100) -> Iterator[list[str]]:
    """Yield the words of `count` sentences of each template, the same each time."""
    draw = random.Random(0)
    for template in TEMPLATES:
        for _ in range(count):
            yield split(SLOT.sub(lambda slot: draw.choice(SLOTS[slot[1]]), template))
