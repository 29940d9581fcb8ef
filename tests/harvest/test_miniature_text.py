"""The generator: the same text for ever, and labels that are true of it."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import pytest

from harvest import miniature
from harvest.miniature import bios, facts, prose, reviews, spelling, topics
from harvest.miniature.draw import Draw

GOLDEN = "5d9c87d481bac6a7b449d4f8b672aaae8218a733f45782a9af7babd5242b7d33"
PRONOUNS = {"male": {"he", "his", "him"}, "female": {"she", "her"}}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_generated_text_never_changes() -> None:
    """Models, caches and results name their text by seed: a change here needs a new seed or a new model."""
    digest = hashlib.sha256()
    for seed in (0, 1):
        for text in miniature.documents(seed, 500, prose_share=0.0):
            digest.update(f"{text.domain}|{sorted(text.latents.items())}|{text.text}".encode())
    for question in miniature.questions(0, 100):
        digest.update(question.prompt.encode())
    for prompt in miniature.first_letter_prompts(0, 100):
        digest.update(prompt.text.encode())
    for kind in miniature.KINDS:
        for text in miniature.labelled_texts(kind, 0, 100):
            digest.update(text.text.encode())
    assert digest.hexdigest() == GOLDEN


def test_a_document_is_a_function_of_seed_and_index() -> None:
    stream = list(miniature.documents(3, 20))
    assert list(miniature.documents(3, 5, start=15)) == stream[15:]
    assert miniature.document(3, 7) == stream[7]
    assert list(miniature.documents(4, 20)) != stream


def test_every_domain_occurs_with_its_latents() -> None:
    seen = {text.domain: set(text.latents) for text in miniature.documents(0, 400)}
    assert seen == {
        "topic": {"topic"},
        "bio": {"profession", "gender"},
        "review": {"product", "sentiment"},
        "fact": {"subject"},
        "question": {"subject"},
        "spelling": {"form"},
        "list": {"form"},
        "prose": set(),
    }


@pytest.mark.parametrize("kind", miniature.KINDS)
def test_labelled_texts_are_balanced_over_all_combinations(kind: str) -> None:
    texts = list(miniature.labelled_texts(kind, 5, 160))
    counts: dict[tuple[str, ...], int] = {}
    for text in texts:
        key = tuple(text.latents.values())
        counts[key] = counts.get(key, 0) + 1
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(text.domain == kind for text in texts)


def test_a_biography_shows_its_gender_and_hides_its_profession() -> None:
    for text in miniature.labelled_texts("bio", 6, 320):
        other = "female" if text.latents["gender"] == "male" else "male"
        found = words_of(text.text)
        assert found & PRONOUNS[text.latents["gender"]]
        assert not found & PRONOUNS[other]
        assert text.latents["profession"] not in found


def test_a_review_judges_its_own_product_with_one_sign() -> None:
    """The other sign is found in the comparison with another product alone."""
    for text in miniature.labelled_texts("review", 6, 320):
        other = "negative" if text.latents["sentiment"] == "positive" else "positive"
        assert any(verdict in text.text for verdict in reviews._VERDICTS[text.latents["sentiment"]])
        for sentence in re.split(r"[.!] ?", text.text):
            if not re.match(r"My old|Before that|My neighbour", sentence):
                assert not words_of(sentence) & set(reviews._ADJECTIVES[other])
            else:
                assert text.latents["product"] not in words_of(sentence)


def test_a_topic_lasts_to_the_end_of_its_document() -> None:
    for text in miniature.labelled_texts("topic", 6, 160):
        own = set(" ".join(topics._LEXICON[text.latents["topic"]]).split())
        halves = text.text[: len(text.text) // 2], text.text[len(text.text) // 2 :]
        assert all(words_of(half) & own for half in halves), text


def test_stated_facts_are_true() -> None:
    values = {(fact.subject, fact.entity, fact.value) for fact in miniature.FACTS}
    for text in miniature.labelled_texts("fact", 6, 80):
        for sentence in text.text.removesuffix(".").split(". "):
            assert any(
                subject == text.latents["subject"] and entity in sentence and value in sentence
                for subject, entity, value in values
            ), sentence


def test_a_question_has_one_right_option_and_it_is_true() -> None:
    for question in miniature.questions(6, 192):
        assert len(set(question.options)) == 4
        assert question.options[question.answer] == question.fact.value
        assert question.letter == "ABCD"[question.answer]


def test_every_answer_position_is_equally_likely() -> None:
    answers = [question.answer for question in miniature.questions(6, 2000)]
    assert all(400 < answers.count(position) < 600 for position in range(4))


def test_held_out_questions_never_occur_in_training_text() -> None:
    """Neither the phrasing of a fact nor its arrangement of options."""
    asked = {question.text for question in miniature.questions(6, 384)}
    arranged = {(q.fact.index, q.options) for q in miniature.questions(6, 384)}
    for question in miniature.questions(7, 384, split="train"):
        assert question.text not in asked
        assert (question.fact.index, question.options) not in arranged
    for text in miniature.documents(miniature.TRAINING_SEED, 1000, prose_share=0.0):
        if text.domain == "question":
            assert not any(line in asked for line in text.text.split("\n"))


def test_a_first_letter_prompt_is_ten_solved_lines_and_an_open_one() -> None:
    for prompt in miniature.first_letter_prompts(6, 50):
        *solved, asked = prompt.text.split("\n")[1:]
        assert len(solved) == 10
        for line in solved:
            word, letter = re.fullmatch(r" (\w+) has the first letter: (\w)", line).groups()  # type: ignore[union-attr]
            assert letter == word[0].upper()
            assert word != prompt.word
        assert asked == f" {prompt.word} has the first letter:"
        assert prompt.letter == miniature.first_letter(prompt.word)


def test_the_first_letter_of_a_held_out_word_is_never_told() -> None:
    assert not set(miniature.TRAIN_WORDS) & set(miniature.HELD_OUT_WORDS)
    assert {word[0] for word in miniature.WORDS} == set("abcdefghijklmnopqrstuvwxyz")
    for i in range(500):
        text = spelling.spelling_document(Draw("test", i)).text
        for word in miniature.HELD_OUT_WORDS:
            assert f" {word} has the first letter" not in text
            assert f" {word} begins with" not in text
            assert f"first letter of {word} is" not in text


def test_prose_is_english_from_this_python_and_split_once() -> None:
    paragraphs = prose.paragraphs()
    assert sum(map(len, paragraphs)) > 200_000
    assert all(len(p) >= prose.MIN_CHARS and p.isascii() for p in paragraphs)
    assert not set(prose.training_paragraphs()) & set(prose.held_out_paragraphs())
    drawn = islice(miniature.documents(9, 300, held_out_prose=True), 300)
    assert all(prose.is_held_out(text.text) for text in drawn if text.domain == "prose")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: list(miniature.labelled_texts("poem", 0, 1)),
        lambda: topics.topic_document(Draw(0), "chess"),
        lambda: bios.bio_document(Draw(0), "pilot", "male"),
        lambda: reviews.review_document(Draw(0), "car", "positive"),
        lambda: facts.fact_document(Draw(0), "law"),
        lambda: list(miniature.questions(0, 1, subjects=("law",))),
    ],
    ids=["kind", "topic", "profession", "product", "subject", "subjects"],
)
def test_an_unknown_name_is_refused_with_the_known_ones(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\("):
        wrong()


def test_importing_the_generator_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, harvest.miniature; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
