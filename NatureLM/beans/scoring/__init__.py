"""Scoring of anybody's answers: files of answers to metrics, intervals and tables.

from NatureLM.beans.scoring import protocol, score, write_scores

scores = score(["answers.jsonl.gz"], [protocol("paper")])
scores.records()                  # what metrics.json holds
scores.groups[0].samples.correct  # sample by sample
"""

from __future__ import annotations

from NatureLM.beans.scoring.answers import Reading
from NatureLM.beans.scoring.evaluate import Evaluation
from NatureLM.beans.scoring.names import NameRule, parse_rules, read_labels, read_map
from NatureLM.beans.scoring.pairs import Comparisons, Side, compare
from NatureLM.beans.scoring.problems import Problem, ScoringError
from NatureLM.beans.scoring.protocols import PROTOCOLS, Protocol, protocol
from NatureLM.beans.scoring.results import METRICS, ClassRow, ConfusionRow, GroupScore
from NatureLM.beans.scoring.scores import Scores, score
from NatureLM.beans.scoring.writing import write_scores

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "ClassRow",
    "Comparisons",
    "ConfusionRow",
    "Evaluation",
    "GroupScore",
    "NameRule",
    "Problem",
    "Protocol",
    "Reading",
    "Scores",
    "ScoringError",
    "Side",
    "compare",
    "parse_rules",
    "protocol",
    "read_labels",
    "read_map",
    "score",
    "write_scores",
]
