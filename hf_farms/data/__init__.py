"""Text for calibration and evaluation.

texts.py         a name -> text: inside the package, in a file, on the Hub
text_files.py    a file -> text
text_tables.py   tables of text
calibration.py   text -> calibration sequences
datasets.py      check that a dataset exists
"""
