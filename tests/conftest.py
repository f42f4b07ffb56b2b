"""Tests compare numbers of the CPU, on a machine with a GPU as well."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
