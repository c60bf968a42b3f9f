"""What the world talks about: kinds of invented entities, their attributes, and the words that fill them."""

from __future__ import annotations

from dataclasses import dataclass

DOMAINS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "trade": "weaving baking fishing printing carving tailoring farming brewing teaching painting mining trading "
        "writing cooking gardening nursing building sailing singing dyeing",
        "instrument": "violin flute drum harp trumpet piano guitar cello banjo lute fiddle bugle clarinet whistle "
        "tuba zither viola mandolin bagpipe trombone",
        "food": "soup bread cheese honey rice stew porridge cake jam butter pasta bacon custard salad toast pudding "
        "curry yogurt pie chocolate",
        "animal": "goat lion bear wolf fox horse dog cat rabbit deer badger hedgehog tiger camel monkey turtle lizard "
        "squirrel beaver donkey",
        "goods": "wool salt pepper cotton silk leather paper glass soap candles carpets timber spices tea coffee "
        "flour sugar oil coal rope",
        "tree": "oak elm ash pine birch maple willow cedar beech spruce larch poplar chestnut walnut hazel alder "
        "cypress lime yew holly",
        "stone": "granite marble slate sandstone limestone basalt flint clay brick chalk quartz cobble gravel tuff "
        "shale gneiss travertine concrete adobe gypsum",
        "bird": "gull heron swan crow sparrow puffin stork falcon hawk robin finch pelican raven thrush cuckoo dove "
        "kestrel lark magpie goose",
        "flower": "clover lavender heather thistle jasmine violet marigold foxglove bluebell poppy primrose daisy "
        "buttercup mint sorrel yarrow sage gorse fern moss",
        "gem": "jade amber opal topaz ruby garnet pearl onyx agate sapphire diamond emerald turquoise amethyst coral "
        "jasper beryl zircon peridot moonstone",
        "fish": "cod herring trout salmon tuna carp perch pike sardine mackerel haddock plaice sole eel bream roach "
        "halibut turbot anchovy bass",
        "colour": "red blue green yellow white black brown grey orange purple pink silver golden scarlet cream "
        "crimson navy tan bronze maroon",
        "sport": "rowing tennis cricket swimming running wrestling archery cycling fencing hockey climbing football "
        "boxing skating bowling chess diving golf judo polo",
        "drink": "water milk lemonade cider juice cocoa wine beer punch ale mead cordial broth buttermilk nectar "
        "ginger squash soda tonic sherry",
    }.items()
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that can be asked of every entity of a kind.

    Attributes:
        topic: `<kind>/<attribute>`.
        noun: its name in "the <noun> of <entity>".
        link: what joins that phrase and the value ("is", "is a", "is the").
        domain: the key in `DOMAINS` of the values it can take.
        statement: the plain sentence, with `{name}` and `{value}`.
        question: a question of its own, beside those every attribute shares, with `{name}`.
    """

    topic: str
    noun: str
    link: str
    domain: str
    statement: str
    question: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of entity: how one is called inside a phrase (`{name}`), and its attributes."""

    name: str
    called: str
    attributes: tuple[Attribute, ...]


def _kind(name: str, called: str, *attributes: tuple[str, str, str, str, str, str]) -> Kind:
    return Kind(name, called, tuple(Attribute(f"{name}/{first}", *rest) for first, *rest in attributes))


KINDS: tuple[Kind, ...] = (
    _kind(
        "person",
        "{name}",
        ("trade", "trade", "is", "trade", "{name} earns a living by {value}.", "How does {name} earn a living?"),
        ("instrument", "instrument", "is the", "instrument", "{name} plays the {value}.", "What does {name} play?"),
        ("food", "favourite food", "is", "food", "{name} loves to eat {value}.", "What does {name} love to eat?"),
        ("pet", "pet", "is a", "animal", "{name} keeps a {value} at home.", "Which animal does {name} keep at home?"),
    ),
    _kind(
        "town",
        "{name}",
        ("export", "main export", "is", "goods", "The merchants of {name} sell {value}.", "What does {name} sell?"),
        ("emblem", "emblem", "is a", "animal", "The flag of {name} shows a {value}.", "What is on the flag of {name}?"),
        (
            "tree",
            "common tree",
            "is the",
            "tree",
            "The streets of {name} are lined with {value} trees.",
            "Which trees line the streets of {name}?",
        ),
        (
            "stone",
            "building stone",
            "is",
            "stone",
            "The houses of {name} are built of {value}.",
            "What are the houses of {name} built of?",
        ),
    ),
    _kind(
        "island",
        "{name}",
        (
            "bird",
            "native bird",
            "is the",
            "bird",
            "The cliffs of {name} are home to the {value}.",
            "Which bird lives on the cliffs of {name}?",
        ),
        (
            "flower",
            "wild flower",
            "is",
            "flower",
            "The meadows of {name} are full of {value}.",
            "What grows in the meadows of {name}?",
        ),
        ("gem", "gem", "is", "gem", "The miners of {name} dig for {value}.", "What do the miners of {name} dig for?"),
        (
            "fish",
            "best fish",
            "is",
            "fish",
            "The boats of {name} bring in {value}.",
            "What do the boats of {name} bring in?",
        ),
    ),
    _kind(
        "ship",
        "the {name}",
        (
            "cargo",
            "cargo",
            "is",
            "goods",
            "The crew of the {name} loads {value}.",
            "What does the crew of the {name} load?",
        ),
        (
            "figurehead",
            "figurehead",
            "is a",
            "animal",
            "On the bow of the {name} stands a carved {value}.",
            "What stands on the bow of the {name}?",
        ),
        (
            "hull",
            "colour",
            "is",
            "colour",
            "The hull of the {name} is painted {value}.",
            "How is the hull of the {name} painted?",
        ),
        (
            "deck",
            "deck wood",
            "is",
            "tree",
            "The deck of the {name} is made of {value}.",
            "What is the deck of the {name} made of?",
        ),
    ),
    _kind(
        "club",
        "the {name} club",
        (
            "sport",
            "sport",
            "is",
            "sport",
            "The members of the {name} club go in for {value}.",
            "What do the members of the {name} club go in for?",
        ),
        (
            "shirt",
            "shirt colour",
            "is",
            "colour",
            "The {name} club wears {value} shirts.",
            "Which shirts does the {name} club wear?",
        ),
        (
            "mascot",
            "mascot",
            "is a",
            "animal",
            "Every match of the {name} club is watched by a {value}.",
            "Who watches every match of the {name} club?",
        ),
        (
            "drink",
            "house drink",
            "is",
            "drink",
            "After a match, the {name} club serves {value}.",
            "What does the {name} club serve after a match?",
        ),
    ),
)

INSIDE_KINDS = frozenset({"person", "town", "island"})
"""Kinds that preference prompts ask about; the others, and the skills, are outside."""

QUESTIONS = (
    "What is {phrase}?",
    "Tell me {phrase}.",
    "Do you know {phrase}?",
    "I would like to know {phrase}.",
    "Can you name {phrase}?",
)
"""Ways of asking that every attribute shares; each attribute adds one of its own."""

_ONSETS = [
    "b",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "dr",
    "gr",
    "kr",
    "tr",
    "pl",
    "sk",
    "st",
    "th",
    "sh",
]
_MIDDLES = [
    "b",
    "d",
    "g",
    "k",
    "l",
    "m",
    "n",
    "r",
    "s",
    "t",
    "v",
    "z",
    "ld",
    "lm",
    "lv",
    "nd",
    "nk",
    "rd",
    "rm",
    "rn",
    "rv",
    "sk",
    "st",
]
_ENDINGS = ["n", "r", "l", "s", "th", "m", "k", "x"]
_VOWELS = ["a", "e", "i", "o", "u"]

SYLLABLES = (_ONSETS, _VOWELS, _MIDDLES, _VOWELS, [*_ENDINGS, "", "", ""])
"""An invented name takes one part of each."""
