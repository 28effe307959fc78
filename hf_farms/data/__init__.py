"""Text for calibration and evaluation.

texts.py         the text of a source: built in, a file, or a dataset on the Hub
text_files.py    the text of a local file: plain, a table, compressed
text_tables.py   the texts of one column; recognize tables
table_rows.py    the rows of JSON, CSV, parquet and Arrow files
calibration.py   calibration sequences from text or from the model itself; their length
generation.py    text that the model writes for them
datasets.py      check that a dataset exists before it is downloaded
"""
