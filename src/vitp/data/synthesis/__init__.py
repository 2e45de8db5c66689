"""Labels → visual instructions: questions and answers that an image's labels already hold."""

from vitp.data.synthesis.build import TASKS, SynthesisConfig, synthesize, synthesize_with_tasks
from vitp.data.synthesis.classes import ClassStatistics, SetClasses
from vitp.data.synthesis.scene_records import LabelledRecords
from vitp.data.synthesis.scoring import score_answer

__all__ = [
    "TASKS",
    "ClassStatistics",
    "LabelledRecords",
    "SetClasses",
    "SynthesisConfig",
    "score_answer",
    "synthesize",
    "synthesize_with_tasks",
]
