"""Labels → visual instructions: questions and answers that an image's labels already hold."""

from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig, score_answer, synthesize_with_tasks
from vitp.data.synthesis.classes import ClassStatistics, SetClasses
from vitp.data.synthesis.scene_records import LabelledRecords

__all__ = [
    "QUESTION_TASKS",
    "ClassStatistics",
    "LabelledRecords",
    "SetClasses",
    "SynthesisConfig",
    "score_answer",
    "synthesize_with_tasks",
]
