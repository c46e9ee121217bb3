"""The command line as test_processes.py starts it with torchrun, set up as conftest.py does."""

from lazyllm_ext.cli.app import main
from lazyllm_ext.lab.evaluation import measure

measure.REFERENCE_TOKENS = 6
main()
