"""TrainingArguments that wait for the device at log points only."""

# What Trainer does by default at every step and we do otherwise or not at all: asking whether the loss is a number (the guard
# does so on the device), searching for parameters without gradients, its own progress, reports and notices.
QUIET = {
    "logging_nan_inf_filter": False,
    "ddp_find_unused_parameters": False,
    "disable_tqdm": True,
    "report_to": [],
    "logging_first_step": True,
    "log_level": "error",
    "log_level_replica": "error",
    "dataloader_num_workers": 0,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "logging_strategy": "steps",
}


def steady_arguments(**given) -> dict:
    """Keyword arguments for TrainingArguments, SFTConfig or DPOConfig: ``QUIET``, and what is given on top."""
    return QUIET | given
