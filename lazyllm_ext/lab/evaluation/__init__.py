"""How good the answers are, and how soon they come: schedules and baselines on tasks.

    lazyllm-ext eval MODEL --tasks tasks.jsonl --contenders dense,balanced --output results/

docs/evaluation.md says what every figure means. Only `tune` and the
command line import this.
"""

from .contenders import Contender, parse_contender, parse_contenders
from .longbench import DATA_SETS, cut_prompts, read_longbench
from .metrics import score
from .page import write_page
from .processes import Processes, sharing
from .report import write_report
from .results import Record, Records, model_digest, only_run
from .runner import Evaluation
from .subject import Subject
from .summary import EvaluationReport, summarize
from .tasks import Item, Tasks, choose, read_tasks

__all__ = [
    "DATA_SETS",
    "Contender",
    "Evaluation",
    "EvaluationReport",
    "Item",
    "Processes",
    "Record",
    "Records",
    "Subject",
    "Tasks",
    "choose",
    "cut_prompts",
    "model_digest",
    "only_run",
    "parse_contender",
    "parse_contenders",
    "read_longbench",
    "read_tasks",
    "score",
    "sharing",
    "summarize",
    "write_page",
    "write_report",
]
