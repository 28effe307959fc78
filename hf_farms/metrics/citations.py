"""BibTeX of the papers that the metrics follow."""

from __future__ import annotations

__all__ = ["WANDA", "WIKITEXT"]

WANDA = """\
@inproceedings{sun2024wanda,
  title={A Simple and Effective Pruning Approach for Large Language Models},
  author={Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle={International Conference on Learning Representations},
  year={2024},
  eprint={2306.11695},
  archivePrefix={arXiv}
}
"""
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
