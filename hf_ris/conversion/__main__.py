"""`python -m hf_ris.conversion` is `hf-ris convert`."""

from hf_ris.commands.convert import main


if __name__ == "__main__":
    main()
