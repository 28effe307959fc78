"""BibTeX of the papers that the metrics follow."""

from __future__ import annotations

from hf_farms.registries import METHODS

__all__ = ["WANDA", "WIKITEXT"]

WANDA = f"{METHODS['wanda'].citation}\n"
WIKITEXT = """\
@inproceedings{merity2017wikitext,
  title={Pointer Sentinel Mixture Models},
  author={Merity, Stephen and Xiong, Caiming and Bradbury, James and Socher, Richard},
  booktitle={International Conference on Learning Representations},
  year={2017},
  eprint={1609.07843},
  archivePrefix={arXiv}
}
"""
