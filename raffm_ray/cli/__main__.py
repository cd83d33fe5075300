"""`python -m raffm_ray.cli`: the same as `raffm-ray`."""

import sys

from raffm_ray.cli.main import main

sys.exit(main())
