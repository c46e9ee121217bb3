"""`python -m lazyllm_ext.demo`: bring the demo model, and print its folder."""

import sys

from .model import DemoModelError, demo_model

if __name__ == "__main__":
    try:
        print(demo_model(lambda line: print(line, file=sys.stderr)))
    except DemoModelError as error:
        sys.exit(str(error))
