"""`styles`: a text benchmark with simulated people, whose exact Bayes limit is known.

A prompt asks about a topic. A response gives the same content in one of 2⁵ styles. A person has hidden weights on the
five attributes of a style (3⁵ = 243 possible people) and chooses between two responses accordingly; see simulated.py.

Topics are split into train, val and test: held-out people judge held-out texts.
"""

import itertools
import re
from functools import cache

import numpy as np

from fssa_jax.data.benchmarks.simulated import SimulatedPeople

Text = tuple[str, str]  # (prompt, response)


ATTRIBUTES = ("long", "formal", "emoji", "hedged", "question")

_TOPICS = {
    "bread": ("the crust", "let the dough rest overnight", "bake it on a hot stone"),
    "tomatoes": ("the soil", "water them early in the morning", "tie the stems to a stick"),
    "running": ("the first mile", "keep a slow and even pace", "rest one day in three"),
    "chess": ("the centre", "develop both knights before the queen", "castle within ten moves"),
    "coffee": ("the grind", "use water just off the boil", "rinse the paper filter"),
    "sleep": ("the last hour", "dim every lamp after dinner", "get up at the same time"),
    "budgeting": ("the fixed costs", "write down each expense", "put savings aside on payday"),
    "swimming": ("your breathing", "look at the bottom of the pool", "kick from the hips"),
    "guitar": ("the left hand", "practise the chord changes slowly", "tune before every session"),
    "hiking": ("your boots", "start before the sun is high", "carry more water than you need"),
    "photography": ("the light", "wait for the golden hour", "move closer to the subject"),
    "painting": ("the brush", "prepare the wall with primer", "work from the top downwards"),
    "cycling": ("the saddle", "check the tyres before each ride", "change gear before the hill"),
    "knitting": ("the yarn", "count the stitches in every row", "block the piece when it is done"),
    "interviews": ("the opening", "prepare three short stories", "ask about the team"),
    "moving house": ("the boxes", "label each one on two sides", "pack the kitchen last"),
    "learning Spanish": ("the verbs", "speak a little every day", "listen to slow news"),
    "fishing": ("the bait", "stay quiet near the bank", "try the shade at noon"),
    "public speaking": ("the first sentence", "pause after the main point", "look at one face at a time"),
    "gardening": ("the compost", "prune in late winter", "rotate the beds each year"),
    "puppies": ("the routine", "reward the behaviour at once", "keep the lessons short"),
    "cats": ("the litter", "let them come to you", "play before the evening meal"),
    "soup": ("the stock", "roast the bones for an hour", "season at the very end"),
    "camping": ("the tent", "pitch it on high ground", "hang the food in a tree"),
    "essays": ("the thesis", "outline the argument first", "cut every sentence that repeats"),
    "exams": ("the old papers", "study in short blocks", "explain the topic to a friend"),
    "skiing": ("your weight", "keep the knees soft", "look where you want to go"),
    "rice": ("the ratio", "rinse it until the water is clear", "leave the lid closed"),
    "bicycles": ("the chain", "clean it with a dry cloth", "oil the links one by one"),
    "meetings": ("the agenda", "send it a day ahead", "end five minutes early"),
    "emails": ("the subject line", "put the request first", "reply within a day"),
    "negotiation": ("the goal", "listen longer than you talk", "name a number first"),
    "pottery": ("the clay", "wedge it until it is smooth", "centre it with firm hands"),
    "birdwatching": ("the song", "go out at dawn", "write each sighting down"),
    "yoga": ("the breath", "hold each pose for a minute", "stop before it hurts"),
    "pancakes": ("the batter", "let it stand for half an hour", "turn them only once"),
    "houseplants": ("the window", "feel the soil before you water", "dust the leaves"),
    "singing": ("the posture", "warm up with a low hum", "drink water at room temperature"),
    "programming": ("the tests", "write the smallest one first", "read the error to its end"),
    "stargazing": ("the darkness", "give your eyes twenty minutes", "begin with the moon"),
}
_PROMPTS = (
    "How do I get started with {topic}?",
    "What is your best advice about {topic}?",
    "I keep failing at {topic}. What should I change?",
    "Explain {topic} to a beginner.",
)
# Two wordings of every sentence, so that a style is not one fixed string.
_OPENING = {
    (True, False): ("I would recommend that you begin with {a}.", "It is advisable to attend to {a} first."),
    (False, False): ("Just start with {a}, ok.", "Hey, {a} is where you wanna start."),
    (True, True): ("Perhaps it would be prudent to begin with {a}.", "It may be advisable to attend to {a} first."),
    (False, True): ("Maybe start with {a}, I guess.", "Hmm, {a} might be where you wanna start."),
}
_ADVICE = {
    (True, False): ("One should {b}.", "It is essential to {b}."),
    (False, False): ("You gotta {b}.", "So yeah, {b}."),
    (True, True): ("One might possibly {b}.", "It could perhaps be essential to {b}."),
    (False, True): ("You could maybe {b}.", "I guess you might {b}."),
}
_LONG = {
    True: (
        "Furthermore, it is important to {c}. Consequently, steady progress will follow, and each subsequent "
        "attempt will demand considerably less effort than the previous one.",
        "In addition, one is well advised to {c}. This principle is frequently neglected, although it accounts "
        "for the greater part of the difference between a poor and an excellent result.",
    ),
    False: (
        "Oh and {c}, seriously. Do that a bunch of times and it gets way easier, trust me, I messed it up tons "
        "of times before it clicked.",
        "Also, {c}. Lots of folks skip that bit and then wonder why stuff goes wrong, so don't be that guy, "
        "it's super easy once you know.",
    ),
}
_EMOJI = ("😊", "🎉", "👍", "✨")
_QUESTION = {
    True: ("Which part would you like to discuss further?", "May I ask what you have attempted so far?"),
    False: ("What bit's tricky for you?", "So what have you tried?"),
}


def render(topic: str, style: tuple[int, ...], wording: int) -> str:
    """The response about a topic in a style (0 or 1 per attribute); `wording` in 0..7 varies the phrases."""
    long, formal, emoji, hedged, question = (bool(x) for x in style)
    a, b, c = _TOPICS[topic]
    i, j = wording % 2, wording // 2 % 2
    parts = [_OPENING[formal, hedged][i].format(a=a), _ADVICE[formal, hedged][j].format(b=b)]
    if long:
        parts.append(_LONG[formal][wording // 4 % 2].format(c=c))
    if emoji:
        parts.append(_EMOJI[wording % 4] + _EMOJI[(wording + 1 + i) % 4])
    if question:
        parts.append(_QUESTION[formal][i ^ j])
    return " ".join(parts)


def style_of_text(prompt: str, response: str) -> tuple[np.ndarray, bool]:
    """(5,) the attributes of a response, as 0/1, and whether it is well-formed.

    A well-formed response is one that `render` can produce about the prompt's topic, with any wording per sentence: all
    sentences have one tone and that topic's advice. The attributes of all other texts are read off surface marks: many
    words, no slang, an emoji, a word of doubt, a question mark.
    """
    topic = topic_of(prompt)
    style = _responses(topic).get(response) if topic is not None else None
    if style is not None:
        return np.array(style, np.int8), True
    words = set(re.findall(r"[a-z']+", response.replace("May I ask", "").lower()))
    marks = (
        len(response.split()) > _MANY_WORDS,
        not words & _SLANG,
        any(sign in response for sign in _EMOJI),
        bool(words & _DOUBT),
        "?" in response,
    )
    return np.array(marks, np.int8), False


_MANY_WORDS = 37
_SLANG = {
    *("ok", "hey", "wanna", "gotta", "yeah", "seriously", "gets", "tons", "folks", "bit", "stuff", "super", "bunch"),
    *("messed", "trust", "oh", "hmm", "maybe", "guess", "what's"),
}
_DOUBT = {"perhaps", "may", "might", "maybe", "guess", "could", "possibly"}


@cache
def _responses(topic: str) -> dict[str, tuple[int, ...]]:
    """Every well-formed response about a topic, and its style."""
    a, b, c = _TOPICS[topic]
    out = {}
    for style in itertools.product((0, 1), repeat=len(ATTRIBUTES)):
        long, formal, emoji, hedged, question = (bool(x) for x in style)
        signs = [f"{x}{y}" for x in _EMOJI for y in _EMOJI]
        parts = [
            [text.format(a=a) for text in _OPENING[formal, hedged]],
            [text.format(b=b) for text in _ADVICE[formal, hedged]],
            [text.format(c=c) for text in _LONG[formal]] if long else [""],
            signs if emoji else [""],
            list(_QUESTION[formal]) if question else [""],
        ]
        for chosen in itertools.product(*parts):
            out[" ".join(part for part in chosen if part)] = style
    return out


def texts() -> tuple[list[Text], np.ndarray, np.ndarray]:
    """Every (prompt, response), its style (n, 5) as 0/1, and the number of its prompt (n,).

    Prompts are ordered by topic, so a split by prompt number is a split by topic.
    """
    styles = list(itertools.product((0, 1), repeat=len(ATTRIBUTES)))
    rng = np.random.default_rng(0)
    out: list[Text] = []
    style_of, prompt_of = [], []
    for t, topic in enumerate(_TOPICS):
        for p, template in enumerate(_PROMPTS):
            for style in styles:
                for variant in (0, 1):
                    # Wordings differ between prompts and do not depend on the style.
                    wording = int(rng.integers(4)) * 2 + variant
                    out.append((template.format(topic=topic), render(topic, style, wording)))
                    style_of.append(style)
                    prompt_of.append(t * len(_PROMPTS) + p)
    return out, np.array(style_of, np.int8), np.array(prompt_of)


def topic_of(prompt: str) -> str | None:
    """The topic of a prompt of `styles`.

    >>> from fssa_jax.data.benchmarks.styles import topic_of
    >>> topic_of("Explain moving house to a beginner.")
    'moving house'
    """
    return next((topic for topic in sorted(_TOPICS, key=len, reverse=True) if topic in prompt), None)


def prompt_splits() -> dict[str, np.ndarray]:
    """Numbers of the prompts of each split: 28 topics for training, 4 for validation, 8 for testing."""
    count = len(_PROMPTS)
    bounds = np.array([0, 28, 32, 40]) * count
    return {name: np.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(("train", "val", "test"))}


def draw_pairs(
    rng: np.random.Generator, prompts: np.ndarray, prompt_of: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Ids (*shape, 2) of two responses in different styles to one random prompt."""
    size = int((prompt_of == prompt_of[0]).sum())
    prompt = rng.choice(prompts, shape)
    first = rng.integers(0, size, shape)
    # Two adjacent texts per style: an even, non-zero distance changes the style.
    second = (first + 2 * rng.integers(1, size // 2, shape)) % size
    return np.stack([first, second], axis=-1) + prompt[..., None] * size


PEOPLE = SimulatedPeople(ATTRIBUTES, scale=2.5, read=style_of_text)
