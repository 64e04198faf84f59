"""Invented preference rows in TRL's formats: prompts of different lengths, turns and scripts."""

from typing import Any

Record = dict[str, Any]

QUESTIONS = (
    ("How do I keep basil alive indoors?", "Give it six hours of light and water it from below.", "You cannot."),
    ("Name a river.", "The Loire, the longest river of France.", "Bread"),
    ("What is 17 times 23?", "391.", "17 times 23 is 400, more or less."),
    (
        "My bicycle chain squeaks after rain although I oiled it last week, but not when I pedal backwards. "
        "What should I look at first?",
        "Wipe the chain dry, then put one drop of oil on every roller and wipe off what stays outside.",
        "Buy another bicycle.",
    ),
    ("Translate 'good morning' into Spanish.", "Buenos días.", "Guten Morgen, which is Spanish."),
    (
        "Why is the sky blue?",
        "Air scatters short waves more than long ones.",
        "The sea is blue.\n\nIt mirrors.",
    ),
    (
        "Write a haiku about a kettle.",
        "Steam lifts the thin lid\nmorning fills the cup\nnobody speaks yet",
        "Kettle.",
    ),
    ("Is a tomato a fruit?", "Yes, to a botanist; to a cook it is a vegetable.", "No"),
    ("Suggest a name for a grey cat.", "Ash, or Pebble 🐈", "Cat number one, grey, of the house"),
    ("How long do I boil an egg?", "Seven minutes for a soft yolk, ten for a hard one.", "An hour."),
    ("Explain recursion to a child.", "Imagine two mirrors that face each other.", "See recursion, which see."),
    ("What does 'ubiquitous' mean?", "Found everywhere.", "It means rare, or possibly a kind of boat."),
    ("Which planet is the largest?", "Jupiter.", "The Moon is larger than it looks, so the Moon."),
    ("Give me a synonym of 'quick'.", "Swift", "Slow, but reversed"),
    ("Can I freeze cooked rice?", "Yes: cool it fast and eat it within a month.", "Rice is already cold in space."),
    ("Plan a rainy afternoon.", "- Bake bread\n- Read two chapters\n- Call a friend", "Wait until it is over."),
)

CONVERSATIONS = (
    (
        [
            {"role": "system", "content": "Answer in one short sentence."},
            {"role": "user", "content": "How many legs has a spider?"},
        ],
        "A spider has eight legs.",
        "Six, like every insect.",
    ),
    (
        [
            {"role": "user", "content": "I am learning to knit."},
            {"role": "assistant", "content": "Lovely! What are you making?"},
            {"role": "user", "content": "A scarf. Which stitch is easiest?"},
        ],
        "Garter stitch: knit every row.",
        "Lace, surely.",
    ),
)


def conversational() -> list[Record]:
    """Explicit prompts as lists of turns."""
    prompts = [([{"role": "user", "content": asked}], good, bad) for asked, good, bad in QUESTIONS]
    return [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for prompt, good, bad in (*prompts, *CONVERSATIONS)
    ]


def plain() -> list[Record]:
    """Prompts as raw text, which no chat template touches."""
    return [
        {"prompt": f"Question: {asked}\nAnswer:", "chosen": f" {good}", "rejected": f" {bad}"}
        for asked, good, bad in QUESTIONS
    ]
