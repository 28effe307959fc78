"""BibTeX of the allocations."""

from __future__ import annotations

__all__ = ["ALPHAPRUNING", "ATP", "DLP", "OWL"]

ALPHAPRUNING = """\
@inproceedings{lu2024alphapruning,
  title     = {AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large \
Language Models},
  author    = {Lu, Haiquan and Zhou, Yefan and Liu, Shiwei and Wang, Zhangyang and Mahoney, Michael W. and Yang, \
Yaoqing},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.10912}
}"""
ATP = """\
@inproceedings{huang2025atp,
  title     = {Determining Layer-wise Sparsity for Large Language Models Through a Theoretical Perspective},
  author    = {Huang, Weizhong and Zhang, Yuxin and Zheng, Xiawu and Chao, Fei and Ji, Rongrong},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  note      = {arXiv:2502.14770}
}"""
OWL = """\
@inproceedings{yin2024owl,
  title     = {Outlier Weighed Layerwise Sparsity ({OWL}): A Missing Secret Sauce for Pruning {LLMs} to High Sparsity},
  author    = {Yin, Lu and Wu, You and Zhang, Zhenyu and Hsieh, Cheng-Yu and Wang, Yaqing and Jia, Yiling and Li, Gen \
and Jaiswal, Ajay and Pechenizkiy, Mykola and Liang, Yi and Bendersky, Michael and Wang, Zhangyang and Liu, Shiwei},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2310.05175}
}"""
DLP = """\
@misc{chen2025dlp,
  title  = {{DLP}: Dynamic Layerwise Pruning in Large Language Models},
  author = {Chen, Yuli and Cheng, Bo and Han, Jiale and Zhang, Yingying and Li, Yingting and Zhang, Shuhao},
  year   = {2025},
  note   = {arXiv:2505.23807}
}"""
