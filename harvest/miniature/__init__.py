"""The miniature: a Gemma-2 of a million parameters and a world of text whose every latent factor is known.

`MODEL_PATH` is a Hugging Face folder; the names below write text, questions and prompts for harvests, evaluations and
tests. Importing this package needs neither torch nor transformers. See MODEL_CARD.md for what the model can do.
"""

from pathlib import Path

from harvest.miniature.bios import GENDERS, PROFESSION_PAIRS, PROFESSIONS
from harvest.miniature.facts import FACTS, FORGET_SUBJECT, SUBJECTS, Fact
from harvest.miniature.labelled import LabelledText
from harvest.miniature.mixture import DOMAINS, KINDS, TRAINING_SEED, document, documents, labelled_texts
from harvest.miniature.multiple_choice import Question, questions
from harvest.miniature.reviews import PRODUCT_PAIRS, PRODUCTS, SENTIMENTS
from harvest.miniature.spelling import FirstLetterPrompt, first_letter_prompts
from harvest.miniature.topics import TOPICS
from harvest.miniature.words import HELD_OUT_WORDS, TRAIN_WORDS, WORDS, first_letter

MODEL_PATH = Path(__file__).parent / "model"

__all__ = [
    "DOMAINS",
    "FACTS",
    "FORGET_SUBJECT",
    "GENDERS",
    "HELD_OUT_WORDS",
    "KINDS",
    "MODEL_PATH",
    "PRODUCTS",
    "PRODUCT_PAIRS",
    "PROFESSIONS",
    "PROFESSION_PAIRS",
    "SENTIMENTS",
    "SUBJECTS",
    "TOPICS",
    "TRAINING_SEED",
    "TRAIN_WORDS",
    "WORDS",
    "Fact",
    "FirstLetterPrompt",
    "LabelledText",
    "Question",
    "document",
    "documents",
    "first_letter",
    "first_letter_prompts",
    "labelled_texts",
    "questions",
]
