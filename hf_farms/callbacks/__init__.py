"""TrainerCallbacks: the only package that imports the Trainer's side of transformers."""
