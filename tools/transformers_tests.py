"""Run transformers' own common model tests over our classes, and say which pass.

    python tools/transformers_tests.py FOLDER [--generation FILE --version WORDS] [--write docs/transformers-tests.md] [-k WORDS]

FOLDER: the sources of the transformers that is installed, unpacked, with tests/test_modeling_common.py in it: a checkout of
its repository at that version, or `pip download --no-binary :all: --no-deps transformers==...`, which leaves out the tests of
generation (tests/generation/test_utils.py); --generation names a file that stands in for it, and --version says in the page what
it is. Nothing of them is copied: the tests are imported from there and run over tiny random models. Needs
`pip install parameterized pytest` beside the `hf` extra. Exits with 1 when a test fails whose reason is not stated below.
"""

import argparse
import inspect
import logging
import re
import sys
import types
import unittest
import warnings
from collections import Counter
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import fill
from types import SimpleNamespace

import torch
import transformers

import zamba_lm.hf as hf

UNTIED = "the head is the embedding in every Zamba; a config that unties them is refused (ZambaError)"
LAYERS = (
    "the test counts modules of the class GradientCheckpointingLayer; ours recompute by `Zamba.recompute`. Gradients with and "
    "without it are compared bit for bit in tests/model/test_recompute.py and tests/hf/test_tools.py"
)
WEIGHTS = "attention weights are never held as a whole, by no kernel here; output_attentions=True is refused (ZambaError)"
MISFIT = (
    "weights that do not fit the config are refused by ZambaError, not by RuntimeError, and only a classifier's scores may begin "
    "anew (ignore_mismatched_sizes=True; tests/hf/test_save.py)"
)
ROPE = (
    "the models have one kind of RoPE, rescaled by use_long_context as their authors do; other scalings are refused (ZambaError)"
)
# What fails and why. A failing test that is not named here fails the run.
STATED = {
    "test_attention_outputs": WEIGHTS,
    "test_model_outputs_equivalence": WEIGHTS + "; with hidden states alone tuples and dicts agree",
    "test_retain_grad_hidden_states_attentions": WEIGHTS + "; gradients of hidden states: tests/hf/test_parity.py",
    "test_can_init_all_missing_weights": (
        "compares two draws of the initialisation under a patched torch.nn.init; ours is drawn in one go from a seed of torch's "
        "generator, and a checkpoint in which tensors are missing is refused"
    ),
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without any of the model's tensors, which is refused",
    "test_can_load_ignoring_mismatched_shapes": MISFIT,
    "test_load_with_mismatched_shapes": MISFIT,
    "test_cannot_load_with_meta_device_context_manager": "is refused as asked, by ZambaError in words of our own",
    "test_gradient_checkpointing_enable_disable": LAYERS,
    "test_training_gradient_checkpointing": LAYERS,
    "test_training_gradient_checkpointing_use_reentrant_false": LAYERS,
    "test_training_gradient_checkpointing_use_reentrant_true": LAYERS,
    "test_load_save_without_tied_weights": UNTIED,
    "test_resize_embeddings_untied": UNTIED,
    "test_resize_embeddings_untied_no_reinit_on_post_init": UNTIED,
    "test_model_rope_scaling_from_config_0_linear": ROPE,
    "test_model_rope_scaling_from_config_1_dynamic": ROPE,
    "test_model_rope_scaling_from_config_2_yarn": ROPE,
}

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "mamba_d_state": 16,
    "n_mamba_heads": 4,
    "layers_block_type": ["hybrid", "hybrid"],
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
ZAMBA2 = {"adapter_rank": 4, "num_mem_blocks": 2, "use_mem_rope": True, "mamba_ngroups": 2}
FAMILIES = {
    "zamba": (
        (hf.ZambaModel, hf.ZambaForCausalLM, hf.ZambaForSequenceClassification),
        transformers.ZambaConfig,
        SIZES | {"mamba_dt_rank": 4, "n_mamba_heads": 2},
    ),
    "zamba2": (
        (hf.Zamba2Model, hf.Zamba2ForCausalLM, hf.Zamba2ForSequenceClassification),
        transformers.Zamba2Config,
        SIZES | ZAMBA2,
    ),
}
MIXINS = (  # where the tests stand, and what a folder without them gets in their place
    ("tests.exporters.test_export", "ExportTesterMixin"),
    ("tests.generation.test_utils", "GenerationTesterMixin"),
    ("tests.test_training_mixin", "TrainingTesterMixin"),
    ("tests.test_modeling_common", "ModelTesterMixin"),
)


class Tester:
    """What the mixins ask of a model tester: sizes, a config, inputs."""

    is_training, batch_size, seq_length = True, 3, 7

    def __init__(self, family: str, parent: unittest.TestCase):
        (_, self.causal_lm_class, self.sequence_classification_class), self.config_class, self.sizes = FAMILIES[family]
        self.parent = parent
        vars(self).update(self.sizes)

    def get_config(self):
        return self.config_class(**self.sizes)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(1, 97, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def mixins_of(folder: Path, generation: Path | None) -> dict[str, type]:
    """The mixins by name; an empty class for one that neither the folder nor ``generation`` has."""
    sys.path.insert(0, str(folder))
    for name in [one for one in sys.modules if one == "tests" or one.startswith("tests.")]:
        del sys.modules[name]
    found = {}
    for module, mixin in MIXINS:
        if generation and mixin == "GenerationTesterMixin":
            from_file(module, generation)
        elif not (folder / (module.replace(".", "/") + ".py")).is_file():
            stand_in(module, mixin)
        found[mixin] = getattr(import_module(module), mixin)
    return found


def stand_in(module: str, mixin: str) -> None:
    package = module.rpartition(".")[0]
    if package != "tests":
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = []
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], mixin, type(mixin, (), {"absent": True}))


def from_file(module: str, file: Path) -> None:
    stand_in(module, "nothing")
    spec = spec_from_file_location(module, file)
    sys.modules[module] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


def cases_of(family: str, mixins: dict[str, type]) -> list[type]:
    """The tests of generation have a case of their own: they ask for attention weights unless ``has_attentions`` is off, and
    take models without any for models without padding, which ours are not."""
    names, generation = ("ModelTesterMixin", "GenerationTesterMixin", "TrainingTesterMixin"), mixins["GenerationTesterMixin"]
    without = dict.fromkeys((name for name in dir(generation) if name.startswith("test_")), None)
    fields = fields_of(family)
    padding = getattr(generation, "test_left_padding_compatibility", None)
    own = {"has_attentions": False, "_check_caches_are_equal": caches_are_equal} | (
        {"test_left_padding_compatibility": with_attentions(padding)} if padding else {}
    )
    name = f"Our{family.title()}"
    common = type(f"{name}Test", (*(mixins[one] for one in names), unittest.TestCase), without | fields)
    return [common, type(f"{name}GenerationTest", (generation, unittest.TestCase), fields | own)]


def with_attentions(test):
    def run(self):
        self.has_attentions = True
        test(self)

    return run


def caches_are_equal(self, one, other):
    """Ours have a state where transformers' have layers."""
    self.assertEqual(one.get_seq_length(), other.get_seq_length())
    one, other = one.state.snapshot(), other.state.snapshot()
    for name in ("windows", "ssm"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def fields_of(family: str) -> dict:
    classes = FAMILIES[family][0]
    return {
        "all_model_classes": classes,
        "all_generative_model_classes": classes[1:2],
        "model_tester": None,
        "setUp": lambda self: setattr(self, "model_tester", Tester(family, self)),
    }


class Outcomes(unittest.TestResult):
    """Outcome and last words of every test, by name."""

    def __init__(self):
        super().__init__()
        self.of: dict[str, tuple[str, str]] = {}

    def addSuccess(self, test):
        self.of.setdefault(name_of(test), ("passes", ""))

    def addSkip(self, test, reason):
        reason = re.sub(r"(<class ')?[\w.]*Zamba2?(Model|For\w+)('>)?( class)?", "the model", reason)
        self.of[name_of(test)] = (
            "does not apply",
            reason.rstrip(".").replace("the model", "The model", reason.startswith("the")),
        )

    def addFailure(self, test, err):
        self.of[name_of(test)] = ("fails", words(err))

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.of[name_of(test)] = ("fails", words(err))


def name_of(test) -> str:
    return test.id().partition(" ")[0].rpartition(".")[2]  # the test's name, without its sub-test's


def words(err) -> str:
    lines = [line for line in str(err[1]).strip().splitlines() if line.strip()]
    return f"{err[0].__name__}: {lines[0] if lines else ''}"[:200]


def run(cases: list[type], pattern: str, verbose: bool) -> dict[str, tuple[str, str]]:
    outcomes = Outcomes()
    for case in cases:
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
            if pattern in name_of(test) and inspect.isfunction(getattr(case, name_of(test))):  # marks around nothing are no tests
                torch.manual_seed(0)
                test.run(outcomes)
                if verbose:
                    print(case.__name__, name_of(test), *outcomes.of.get(name_of(test), ()), flush=True)
    return outcomes.of


def page(found: dict[str, dict[str, tuple[str, str]]], absent: list[str], version: str) -> str:
    """The outcomes in Markdown."""
    counts = {family: Counter(outcome for outcome, _ in outcomes.values()) for family, outcomes in found.items()}
    kinds = ("passes", "does not apply", "fails")
    lines = [
        "# transformers' own tests over our classes",
        "",
        f"Made by `tools/transformers_tests.py` with transformers {transformers.__version__} and torch {torch.__version__}, on a",
        "CPU: its common model tests over the three classes that `zamba_lm.hf` has of each family.",
        "",
        "| family | pass | do not apply | fail, for a stated reason |",
        "|---|---|---|---|",
        *(f"| {family} | {' | '.join(str(count[kind]) for kind in kinds)} |" for family, count in counts.items()),
        "",
    ]
    if absent:
        lines += [
            f"The sources that PyPI ships leave out {', '.join(absent)}; with a checkout of the repository the script runs them",
            "too.",
            "",
        ]
    if version:
        lines += [fill(f"Tests of generation: {version}.", 120), ""]
    lines += [
        "tests/hf/test_generate.py and tests/hf/test_cache.py hold generation beside transformers' own models, token by token.",
        "",
    ]
    for kind, title in zip(kinds, ("Pass", "Do not apply", "Fail, and why")):
        lines += [f"## {title}", "", *listing(found, kind), ""]
    return "\n".join(lines).rstrip() + "\n"


def listing(found, kind: str) -> list[str]:
    """One line a test, or for what does not apply one a reason."""
    names: dict[str, list[str]] = {}
    for family, outcomes in found.items():
        for test, (outcome, _) in outcomes.items():
            if outcome == kind:
                names.setdefault(test, []).append(family)
    both = {test: "" if len(families) == len(found) else f" ({families[0]})" for test, families in names.items()}
    if kind == "fails":
        return [f"- `{test}`{both[test]}: {STATED.get(test, 'no reason stated')}" for test in both]
    if kind == "passes":
        return [", ".join(f"`{test.removeprefix('test_')}`{where}" for test, where in both.items())]
    reasons: dict[str, list[str]] = {}
    for outcomes in found.values():
        for test, (outcome, why) in outcomes.items():
            if outcome == kind and test not in sum(reasons.values(), []):
                reasons.setdefault(why, []).append(test)
    return [f"- {why}: " + ", ".join(f"`{test.removeprefix('test_')}`" for test in tests) for why, tests in reasons.items()]


def options() -> SimpleNamespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="sources of transformers")
    parser.add_argument("--generation", type=Path, help="a file with GenerationTesterMixin, where the folder has none")
    parser.add_argument("--version", default="", help="what that file is, for the page")
    parser.add_argument("--write", type=Path, help="write the outcomes to this page")
    parser.add_argument("-k", default="", help="only tests whose name contains this")
    parser.add_argument("-v", action="store_true", help="print every outcome as it comes")
    return parser.parse_args()  # type: ignore[return-value]


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    hf.register()
    mixins = mixins_of(asked.folder.resolve(), asked.generation)
    found = {family: run(cases_of(family, mixins), asked.k, asked.v) for family in FAMILIES}
    for family, outcomes in found.items():
        print(family, dict(Counter(outcome for outcome, _ in outcomes.values())))
    wrong = {test: why for outcomes in found.values() for test, (kind, why) in outcomes.items() if kind == "fails"}
    for test, why in wrong.items():
        print(" ", "as stated:" if test in STATED else "UNEXPECTED:", test, why)
    if asked.write:
        absent = [module.replace(".", "/") + ".py" for module, name in MIXINS if "absent" in vars(mixins[name])]
        asked.write.write_text(page(found, absent, asked.version), encoding="utf-8")
    sys.exit(bool(set(wrong) - set(STATED)))


if __name__ == "__main__":
    main()
