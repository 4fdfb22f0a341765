"""`accelerate launch ... -m hf_ris.training RECIPE key=value ...`: `hf-ris train` on several processes."""

from hf_ris.commands.train import main


if __name__ == "__main__":
    main()
