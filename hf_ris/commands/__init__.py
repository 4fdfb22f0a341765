"""The verbs of `hf-ris`, a file each: its head is the help, `add_arguments` its options, `run` what it does.

These files import nothing heavy before the options are read, so that every help answers at once.
"""
