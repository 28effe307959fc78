"""Adapters of S²FT: the trained slices as a sparse patch of a checkpoint.

patches.py     the contents, and the public class
making.py      of a trained model, or of a model and its base
targets.py     names of a checkpoint -> parameters; models that are refused
applying.py    merge, unmerge and switch
files.py       write the pair of files
loading.py     read them, from a folder or the Hub
file_checks.py check their contents
"""
