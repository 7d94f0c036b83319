"""Bad input, one row per kind: each is reported with its exact line and what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepcv.params import augmentation
from deepcv.params.base import Group, ParamsError, load_section
from deepcv.params.ingest import IngestParams
from deepcv.params.train import TrainParams
from deepcv.params.whole import SECTIONS, load, loads

Write = Callable[[str | bytes], Path]

# (text to replace, its replacement, one (line, words...) per expected problem); the lines are those of conftest's text
BAD: list[tuple[str, str, list[tuple[int, ...] | tuple[int | str, ...]]]] = [
    # keys
    ("lr: 0.01", "lrr: 0.01", [(22, "train.lrr: unknown key", "the closest is 'lr'")]),
    ("lr: 0.01", "lerning_rate: 0.01", [(22, "train.lerning_rate", "the closest is 'lr'")]),
    ("lr: 0.01", "LR: 0.01", [(22, "train.LR", "the closest is 'lr'")]),
    ("lr: 0.01", "worst: 3", [(22, "train.worst", "there is evaluate.worst")]),
    ("lr: 0.01", "min_sid: 3", [(22, "train.min_sid", "the closest is validate.min_side")]),
    ("lr: 0.01", "qqqq: 3", [(22, "train.qqqq", "the section has network, network_parameters")]),
    ("  dataset: digits\n", "", [(2, "ingest.dataset: missing", "[a-z0-9][a-z0-9._-]*, such as digits")]),
    ("dataset: digits", "datset: digits", [(3, "ingest.datset", "the closest is 'dataset'")]),
    ("  seed: 0", "  seed: 0\n  seed: 1", [(8, "ingest.seed", "stands twice, first in line 7")]),
    ("{}", "{1: 3}", [(19, "train.network_parameters", "a key must be text, got 1")]),
    ("  seed: 0", "  ? [a]\n  : 1", [(7, "ingest", "a key must be text, got a list")]),
    # types: nothing is converted
    ("lr: 0.01", "lr: '0.1'", [(22, "train.lr", "a number > 0 and <= 100", "the text '0.1'", "quotes")]),
    ("lr: 0.01", "lr: true", [(22, "train.lr", "must be a number", "got the truth value true")]),
    ("lr: 0.01", "lr: .nan", [(22, "train.lr", "must be a number", "got nan")]),
    ("lr: 0.01", "lr: -.inf", [(22, "train.lr", "must be a number", "got -inf")]),
    ("lr: 0.01", "lr: " + "1" * 400, [(22, "train.lr", "more than 20 digits")]),
    ("epochs: 12", "epochs: 2.0", [(20, "train.epochs", "a whole number", "got 2.0; write 2")]),
    ("epochs: 12", "epochs: true", [(20, "train.epochs", "a whole number", "got the truth value true")]),
    ("epochs: 12", "epochs:", [(20, "train.epochs", "a whole number", "got nothing")]),
    ("epochs: 12", "epochs: [1]", [(20, "train.epochs", "a whole number", "got a list of 1")]),
    ("epochs: 12", "epochs: " + "1" * 5000, [(20, "train.epochs", "not a value that YAML can hold")]),
    ("flip: false", "flip: yes", [(23, "train.flip", "true or false", "the text 'yes'; write true")]),
    ("flip: false", "flip: 0", [(23, "train.flip", "true or false", "got 0")]),
    ("channels: 1", "channels: true", [(15, "preprocess.channels", "must be 1 or 3", "truth value true")]),
    ("channels: 1", "channels: 1.0", [(15, "preprocess.channels", "must be 1 or 3", "got 1.0")]),
    ("{}", "3", [(19, "train.network_parameters", "must be a mapping, got 3")]),
    ("{}", "{w: [1]}", [(19, "train.network_parameters.w", "a number or text or true or false", "a list")]),
    ("{}", "{}\n  network_choices: {mix.0: 3}", [(20, "train.network_choices.mix.0", "must be text, got 3")]),
    ("{}", "{w: .inf}", [(19, "train.network_parameters.w", "got inf")]),
    ('"networks/digits.yaml"', "7", [(18, "train.network", "must be text", "got 7; put it in quotes")]),
    ("dataset: digits", "dataset: 2020-01-01", [(3, "ingest.dataset", "must be text", "a date (2020-01-01)")]),
    # schedules
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: cosin}}",
        [(23, "train.schedules.lr.kind", "'one_cycle' or 'cosine'", "'cosin'")],
    ),
    ("lr: 0.01", "lr: 0.01\n  schedules: {lr: {end: 0.1}}", [(23, "train.schedules.lr.kind: missing")]),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: linear, ende: 2}}",
        [(23, "train.schedules.lr.ende: unknown key", "the closest is 'end'")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: linear, peak: 2}}",
        [(23, "train.schedules.lr.peak: linear has no peak; it has start, end, warmup, until")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: linear, warmup: 0.5, until: 0.4}}",
        [(23, "train.schedules.lr.until: expected more than warmup (0.5), got 0.4")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: exponential}}",
        [(23, "train.schedules.lr.end", "never reaches 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  clip_norm: 0.0\n  schedules: {clip_norm: {kind: exponential, end: 0.2}}",
        [(24, "train.schedules.clip_norm: an exponential schedule never leaves 0; give it a start above 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: cross_entropy}]\n"
        "  schedules: {losses.0.label_smoothing: {kind: exponential, end: 0.2}}",
        [(24, "train.schedules.losses.0.label_smoothing: an exponential schedule never leaves 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: one_cycle, shape: step}}",
        [(23, "train.schedules.lr.shape: expected cosine or linear, got step")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: piecewise}}",
        [(23, "train.schedules.lr.points: missing; expected a list of [share of the steps, value]")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: piecewise, points: [[0, 1], [0, 2]]}}",
        [(23, "train.schedules.lr.points.1: expected a share above 0, got 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: piecewise, points: [[0, 1, 2]]}}",
        [(23, "train.schedules.lr.points.0: expected [share from 0 to 1, value]", "got [0.0, 1.0, 2.0]")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: piecewise, points: [[0, 1], [1, 0]], shape: exponential}}",
        [(23, "train.schedules.lr.points.1", "never reaches 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lrr: {kind: linear}}",
        [(23, "train.schedules.lrr: no such hyperparameter; there are lr, momentum")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {augmentation.policy: {kind: linear}}",
        [(23, "train.schedules.augmentation.policy: no such hyperparameter")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {augmentation.operations.one.probability: {kind: linear}}",
        [(23, "train.schedules.augmentation.operations.one.probability: no such hyperparameter")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {augmentation.augmix.depth.1: {kind: linear}}",
        [(23, "train.schedules.augmentation.augmix.depth.1", "bound each other", "augmentation.augmix.severity")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {augmentation.chains: {kind: linear, end: 3}, augmentation.alpha: {kind: linear}}",
        [
            (23, "train.schedules.augmentation.chains", "bound each other"),
            (23, "train.schedules.augmentation.alpha: a value that the schedule reaches must be a number > 0"),
        ],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {lr: {kind: linear, end: -1}}",
        [(23, "train.schedules.lr: expected values of at least 0, got -1")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {dropout: {kind: piecewise, points: [[0, -0.5]]}}",
        [(23, "train.schedules.dropout: expected values from 0 to below 1, got -0.5")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {momentum: {kind: linear, end: 1}}",
        [(23, "train.schedules.momentum: expected values from 0 to below 1, got 1")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: focal}]\n  schedules: {losses.0.label_smoothing: {kind: linear}}",
        [(24, "train.schedules.losses.0.label_smoothing: focal has no label_smoothing", "it has weight, gamma")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: triplet}]\n  schedules: {losses.0.mining: {kind: linear}}",
        [(24, "train.schedules.losses.0.mining: triplet has no mining that is a number; it has weight, margin")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: supcon}]\n  schedules: {losses.0.temperature: {kind: linear}}",
        [(24, "train.schedules.losses.0.temperature: a value that the schedule reaches must be", "> 0", "got 0.0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: supcon}]\n  schedules: {losses.0.temperature: {kind: exponential, end: 2000000}}",
        [(24, "train.schedules.losses.0.temperature.end", "must be", "<= 1000000.0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: cross_entropy}]\n  schedules: {losses.0.label_smoothing: {kind: linear, end: 1}}",
        [(24, "train.schedules.losses.0.label_smoothing: a value that the schedule reaches must be", "< 1", "got 1.0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: cross_entropy}]\n  schedules: {losses.1.label_smoothing: {kind: linear}}",
        [
            (
                24,
                "train.schedules.losses.1.label_smoothing: no such hyperparameter",
                "losses.0.weight, losses.0.label_smoothing, and",
            )
        ],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: cross_entropy}]\n  schedules: {label_smoothing: {kind: linear}}",
        [(24, "train.schedules.label_smoothing", "theirs is losses.0.label_smoothing")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {augmentation.randaugment.count: {kind: linear}}",
        [
            (
                23,
                "train.schedules.augmentation.randaugment.count",
                "reaches must be a whole number >= 1 and <= 14, got 0",
            )
        ],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  augmentation: {operations: [{name: gamma, magnitude: [0.5, 2]}]}\n"
        "  schedules: {augmentation.operations.0.magnitude.0: {kind: linear}}",
        [(24, "operations.0.magnitude.0: gamma takes 0.05 to 20 as exponent, the schedule reaches 0")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  augmentation: {operations: [{name: rotate, magnitude: [-9, 9]}]}\n"
        "  schedules: {augmentation.operations.0.magnitude.0: {kind: plateau}}",
        [(24, "operations.0.magnitude.0: this schedule is for values above 0, got -9; take linear")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {dropout: {kind: linear}}",
        [(23, "train.schedules.dropout: expected `start`")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {dropout: {kind: one_cycle, start: 0.1}}",
        [(23, "train.schedules.dropout: expected `peak`")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  schedules: {blur: {kind: plateau}}",
        [(23, "train.schedules.blur: a plateau needs a value to begin with")],
    ),
    (
        "lr: 0.01",
        "lr: 0.01\n  losses: [{loss: focal, target: images}]",
        [(23, "train.losses", "focal cannot learn images; mse, l1, smooth_l1 and huber can")],
    ),
    ("lr: 0.01", "lr: 0.01\n  hold_norms: true", [(23, "train.hold_norms", "is for muon, and the optimizer is adamw")]),
    ("lr: 0.01", "lr: 0.01\n  keep_best: 3", [(23, "train.keep_best", "are removed", "set archive: true")]),
    ("lr: 0.01", "lr: 0.01\n  optimizer: adam", [(23, "train.optimizer", "got the text 'adam'")]),
    (
        "resize: stretch\ntrain:\n",
        "resize: stretch\n  target: numbers\ntrain:\n  balance: 0.5\n  losses: [{loss: focal}]\n",
        [
            (19, "train.balance", "is for classes, and preprocess.target is numbers; expected 0"),
            (20, "train.losses", "focal cannot learn preprocess.target numbers; expected nt_xent, mse, l1"),
            (32, "register.metric", "accuracy is no metric of preprocess.target numbers; expected r2"),
        ],
    ),
    (
        "resize: stretch",
        "resize: stretch\n  further_targets: [boxes, tag]",
        [
            (17, "preprocess.further_targets.1: expected boxes, tags.COLUMN, numbers or numbers.COLUMN, got 'tag'"),
        ],
    ),
    (
        "resize: stretch",
        "resize: stretch\n  target: tags.x\n  further_targets: [tags.x, boxes, label, boxes, numbers, numbers.a]",
        [
            (18, "preprocess.further_targets.0: tags.x is preprocess.target already; list other ones"),
            (18, "preprocess.further_targets.2: the class can only be the main target", "set preprocess.target: label"),
            (18, "preprocess.further_targets.3: boxes is listed twice"),
            (18, "preprocess.further_targets.5: numbers.a is one of numbers, which is listed"),
        ],
    ),
    (
        "resize: stretch",
        "resize: stretch\n  target: numbers.a\n  further_targets: [numbers, numbers.b]",
        [
            (18, "preprocess.further_targets.0: numbers.a is one of numbers, and is preprocess.target; list the other"),
            (18, "preprocess.further_targets.1: numbers.b is one of numbers, which is listed"),
        ],
    ),
    (
        "resize: stretch",
        "resize: stretch\n  target: numbers\n  further_targets: [numbers.b, tags.x]",
        [
            (18, "preprocess.further_targets.0: numbers.b is one of numbers, which is preprocess.target"),
        ],
    ),
    (
        "resize: stretch\ntrain:\n",
        "resize: stretch\n  further_targets: [numbers.age, tags.x]\ntrain:\n"
        "  losses: [{loss: mse, output: age, target: numbers.aeg}]\n",
        [
            (
                19,
                "train.losses: there is no target numbers.aeg; there are label, images, numbers.age, tags.x",
                "closest is numbers.age",
            ),
        ],
    ),
    (
        "resize: stretch\ntrain:\n",
        "resize: stretch\n  further_targets: [numbers.age, tags.x]\ntrain:\n"
        "  losses: [{loss: bce, output: age, target: numbers.age}, {loss: mse, target: numbers.age},"
        " {loss: bce, output: age, target: tags.x}]\n",
        [
            (
                19,
                "train.losses: bce cannot learn numbers.age; expected mse, l1, smooth_l1, huber;",
                "logits answers preprocess.target; expected another output for numbers.age",
                "the output age learns numbers.age and tags.x",
            ),
        ],
    ),
    (
        "resize: stretch\ntrain:\n",
        "resize: stretch\n  target: tags.x\n  further_targets: [numbers.age]\ntrain:\n"
        "  losses: [{loss: bce, target: tags.x}, {loss: none, output: age, target: numbers.age},"
        " {loss: nt_xent, output: other, target: numbers.age}]\n",
        [
            (
                20,
                "train.losses: tags.x is preprocess.target, which a loss calls label; expected target: label",
                "none of age learns no target; leave out target: numbers.age",
                "nt_xent of other learns no target; leave out target: numbers.age",
            ),
        ],
    ),
    ("resize: stretch", "resize: stretch\n  target: tag", [(17, "preprocess.target", "boxes", "got the text 'tag'")]),
    ("lr: 0.01", "lr: 0.01\n  unfreeze: {stem: 0}", [(23, "train.unfreeze.stem", ">= 1", "got 0")]),
    # ranges and choices
    ("lr: 0.01", "lr: 0", [(22, "train.lr", "must be a number > 0 and <= 100", "got 0")]),
    ("epochs: 12", "epochs: 0", [(20, "train.epochs", ">= 1", "got 0")]),
    ("threads: 1", "threads: 0", [(24, "train.threads", "a whole number >= 1 and <= 1024 or 'auto'", "got 0")]),
    ("threads: 1", "threads: atuo", [(24, "train.threads", "or 'auto'", "got the text 'atuo'")]),
    ("metric: accuracy", "metric: acc", [(29, "register.metric", "must be 'accuracy' or 'macro_f1'", "'acc'")]),
    (
        "resize: stretch",
        "resize: pad\n  store: encoded",
        [(16, "preprocess.resize", "random crops", "set resize: crop or")],
    ),
    (
        "resize: stretch",
        "denoise: nlmeans\n  store: encoded",
        [(16, "preprocess.denoise", "0.2 s", "or store: pixels")],
    ),
    ("resize: stretch", "store: jpeg", [(16, "preprocess.store", "must be 'pixels' or 'encoded'")]),
    ("channels: 1", "channels: 2", [(15, "preprocess.channels", "must be 1 or 3", "got 2")]),
    ("dataset: digits", "dataset: My Digits", [(3, "ingest.dataset", "got the text 'My Digits'")]),
    ("dataset: digits", "dataset: " + "d" * 101, [(3, "ingest.dataset", "at most 100 characters")]),
    ("path: data/digits.yaml", "path: ''", [(4, "ingest.path", "text that is not empty")]),
    # values that do not fit together
    ("val_fraction: 0.1", "val_fraction: 0.9", [(6, "ingest.test_fraction", "must be < 1, got 0.9 + 0.2 = 1.1")]),
    ("val_fraction: 0.1", "val_fraction: 0.1\n  folds: 1", [(6, "ingest.folds", "must be 0", "or >= 2, got 1")]),
    (
        "val_fraction: 0.1",
        "val_fraction: 0.1\n  folds: 3\n  fold: 3",
        [(7, "ingest.fold", "must be < folds (3), got 3")],
    ),
    ("val_fraction: 0.1", "val_fraction: 0.1\n  group_by: '('", [(6, "ingest.group_by", "not a regular expression")]),
    (
        "val_fraction: 0.1",
        "val_fraction: 0.1\n  group_by: 'p'",
        [(6, "ingest.group_by", "exactly one group", "with 0")],
    ),
    ("val_fraction: 0.1", "val_fraction: 0.1\n  split: hash", [(6, "ingest.split", "'stratified' or 'stable'")]),
    ("min_side: 4", "min_side: 400", [(10, "validate.max_side", "must be >= min_side = 400, got 100")]),
    ("min_side: 4", "severity: {blured: warn}", [(9, "validate.severity.blured", "the closest is 'blurred'")]),
    ("min_side: 4", "severity: {balance: quarantine}", [(9, "validate.severity.balance", "none can be left out")]),
    ("min_side: 4", "severity: {readable: warn}", [(9, "validate.severity.readable", "cannot be prepared")]),
    ("min_side: 4", "severity: {size: stop}", [(9, "validate.severity.size", "'fail' or 'quarantine' or 'warn'")]),
    (
        "min_side: 4",
        "modes: [grey8, color8]",
        [(9, "validate.modes.1", "not a mode: 'color8'; the closest is 'colour8'")],
    ),
    ("min_side: 4", "modes: [rgb]", [(9, "validate.modes.0", "not a mode: 'rgb'; there are grey1, grey8")]),
    ("min_side: 4", "reference: a.csv", [(9, "validate.reference", "must be a .parquet file")]),
    ("min_side: 4", "expectations: [{expectatio: x}]", [(9, "validate.expectations.0", "closest is 'expectation'")]),
    ("min_side: 4", "expectations: [{expectation: x, severity: y}]", [(9, "validate.expectations.0", "got 'y'")]),
    # sections
    ("register:\n  metric: accuracy\n", "", [(1, "register: the section is missing; its keys are metric")]),
    ("register:", "registr:", [(28, "registr: unknown section; the closest is 'register'")]),
    ("register:\n  metric: accuracy", "register:", [(28, "register: must be a section", "metric", "got nothing")]),
    ("register:\n  metric: accuracy", "register: 3", [(28, "register: must be a section", "metric", "got 3")]),
    ("register:\n", "lr: 3\nregister:\n", [(28, "lr: not a section; there is train.lr")]),
    ("register:\n", "foo: 3\nregister:\n", [(28, "foo: unknown section; there are ingest, validate")]),
    # not YAML, or YAML that is not supported
    ("  seed: 0", "\tseed: 0", [(7, "not YAML", "a tab")]),
    ("ingest:", "  ingest:", [(8, "not YAML", "the indentation does not fit")]),
    ("  seed: 0", "  seed: 0: 1", [(7, "not YAML", "mapping values are not allowed here")]),
    ("epochs: 12", "epochs = 12", [(20, "not YAML", "could not find expected ':'")]),
    ('"networks/digits.yaml"', '"networks/digits.yaml', [(18, "not YAML", "unexpected end of stream")]),
    ("worst: 25}", "worst: 25", [(26, "not YAML", "expected ',' or '}'")]),
    ("digits", "dig\x00its", [(3, "not YAML", "the character 0x0")]),
    ("# line 1", "a: 1\n---", [(2, "a second YAML document")]),
    ("# line 1", "%YAML 1.1\n---", [(1, "%YAML directive")]),
    ("seed: 0", "seed: !!python/object/apply:os.abort []", [(7, "ingest.seed", "the tag", "os.abort")]),
    ("seed: 0", "seed: !!float 1", [(7, "ingest.seed", "the tag")]),
    ("  seed: 0", "  <<: {seed: 1}", [(7, "ingest", "'<<' is not supported")]),
    ("seed: 0", "seed: " + "[" * 500 + "]" * 500, [(7, "ingest.seed", "more than 20 levels deep")]),
    # the search space
    ("train.lr: {", "train.lrr: {", [(33, "search.space.train.lrr", "the closest is 'train.lr'")]),
    ("train.lr: {", "lr: {", [(33, "search.space.lr", "the closest is 'train.lr'")]),
    ("train.lr: {", "evaluate.worst: {", [(33, "search.space.evaluate.worst", "not a key of the train section")]),
    ("train.lr: {", "train.network_parameters: {", [(33, "search.space", "'train.network_parameters.NAME'")]),
    ("train.lr: {", "train.network_choices: {", [(33, "search.space", "'train.network_choices.NAME'")]),
    ("train.lr: {", "train.network_choices.mix: {", [(33, "search.space", "names of candidates", "got loguniform")]),
    ("train.lr: {", "train.epochs: {", [(34, "search.space.train.epochs", "first in line 33")]),
    ("loguniform", "logunifrm", [(33, "search.space.train.lr", "the closest is 'loguniform'")]),
    ("{loguniform: [1.0e-3, 3.0e-2]}", "{}", [(33, "search.space.train.lr", "one of choice", "got nothing")]),
    ("[1.0e-3, 3.0e-2]", "[0.0, 3.0e-2]", [(33, "needs lo > 0, got 0"), (33, "leaves the range of train.lr")]),
    ("[1.0e-3, 3.0e-2]", "[1, 0.1]", [(33, "search.space.train.lr", "needs lo < hi, got 1 and 0.1")]),
    ("[1.0e-3, 3.0e-2]", "[1, 300]", [(33, "leaves the range of train.lr", "<= 100, got 300.0")]),
    ("[1.0e-3, 3.0e-2]", "[1]", [(33, "loguniform takes the numbers [lo, hi], got [1]")]),
    ("[1.0e-3, 3.0e-2]", "3", [(33, "search.space.train.lr.loguniform", "must be a list, got 3")]),
    ("[1.0e-3, 3.0e-2]", "[.nan, 1]", [(33, "search.space.train.lr.loguniform.0", "got nan")]),
    ("[1.0e-3, 3.0e-2]", "[" + "1" * 400 + ", 1]", [(33, "search.space.train.lr.loguniform.0", "20 digits")]),
    ("        - 8", "        - 8.0", [(34, "search.space.train.epochs", "got 8.0; write 8")]),
    ("        - 8", "        - 4", [(34, "search.space.train.epochs", "different values, got [4, 4]")]),
    ("        - 8", "        - [4]", [(37, "search.space.train.epochs.choice.1", "got a list")]),
]

AUGMENTATION = "  flip: false\n"
BAD += [
    (AUGMENTATION, f"{AUGMENTATION}  augmentation:\n    {entry}\n", [(25, f"train.augmentation{words[0]}", *words[1:])])
    for entry, *words in [
        ("polcy: augmix", ".polcy: unknown key; the closest is 'policy'"),
        ("lr: 1", ".lr: unknown key; the mapping has policy, operations, order"),
        ("policy: augmx", ".policy: must be 'none' or 'augmix' or", "got the text 'augmx'"),
        ("order: 1", ".order: must be 'fixed' or 'random', got 1"),
        ("depth: [1, 2]", ".depth: must be [least, most] with 0 <= least <= most <= 0, got [1, 2]", "listed"),
        ("depth: some", ".depth: must be 'all' or a list, such as [1, 2], got the text 'some'"),
        ("depth: [1.5, 2]", ".depth: must be 'all' or a list, such as [1, 2]"),
        ("chains: 9", ".chains: must be a whole number >= 0 and <= 8, got 9"),
        ("chains: 3", ".chains: mixes copies of an image after own operations, and none are listed; expected 0 or"),
        ("alpha: 0", ".alpha: must be a number > 0 and <= 100, got 0"),
        ("mixup: 0.2", ".mixup: must be a mapping, got 0.2"),
        ("mixup: {alpha: 0}", ".mixup.alpha: must be a number > 0 and <= 100, got 0"),
        ("mixup: {alhpa: 1}", ".mixup.alhpa: unknown key; the closest is 'alpha'"),
        ("cutmix: {probability: 1.5}", ".cutmix.probability: must be a number >= 0 and <= 1, got 1.5"),
        ("augmix: {chains: 2.0}", ".augmix.chains: must be a whole number >= 1 and <= 8, got 2.0; write 2"),
        ("augmix: {depth: [3, 1]}", ".augmix.depth: must be [least, most] with 1 <= least", "got [3, 1]"),
        ("randaugment: {num_ops: 2}", ".randaugment.num_ops: unknown key; the closest is 'count'"),
        ("operations: rotate", ".operations: must be a list of at most 50 entries, got the text 'rotate'"),
        ("operations: [rotate]", ".operations.0: must be a mapping, got the text 'rotate'"),
        ("operations: [{}]", ".operations.0.name: missing; it must be text, such as rotate (operation)"),
        ("operations: [{nam: flip}]", ".operations.0.nam: unknown key; the closest is 'name'"),
        ("operations: [{name: rotat}]", ".operations.0.name: there is no operation 'rotat'; the closest is 'rotate'"),
        ("operations: [{name: qqq}]", ".operations.0.name: there is no operation 'qqq'; there are autocontrast, "),
        ("operations: [{name: rotate}]", ".operations.0.magnitude: rotate takes [lowest, highest] from -360 to 360"),
        ("operations: [{name: rotate, magnitude: [9, 1]}]", ".operations.0.magnitude: rotate takes", "got [9.0, 1.0]"),
        ("operations: [{name: rotate, magnitude: [0, 0]}]", ".operations.0.magnitude: one of the two must not be 0"),
        ("operations: [{name: rotate, magnitude: [a, 1]}]", ".operations.0.magnitude.0: must be a number", "'a'"),
        ("operations: [{name: flip, magnitude: [1, 2]}]", ".operations.0.magnitude: flip has no magnitude"),
        ("operations: [{name: flip, p: 2}]", ".operations.0.p: unknown key; the closest is 'probability'"),
    ]
]
BAD += [
    ("  flip: false\n", "  flip: false\n  augmentation:\n    operations:\n      - {name: flip}\n      - name: noise\n"
     "        magnitude: [1, 300]\n", [(28, "train.augmentation.operations.1.magnitude", "0 to 255 grey levels")]),
    ("  flip: false\n", "  flip: false\n  augmentation:\n    mixup: {probability: 0.6}\n    cutmix:\n      probability: 0.6\n",
     [(27, "train.augmentation.cutmix.probability", "must be <= 1, got 0.6 + 0.6")]),
    ("  flip: false\n", "  flip: false\n  augmentation:\n    operations: [" + 25 * "{name: flip}, " + "]\n    chains: 3\n",
     [(26, "train.augmentation.chains: 3 chains of up to 25 out of 25 operations draw 306 numbers", "at most 256")]),
]  # fmt: skip


def augmentation_groups() -> list[type[Group]]:
    """The mappings of train.augmentation."""
    return [cls for cls in vars(augmentation).values() if isinstance(cls, type) and issubclass(cls, Group)]


EPOCHS = "train.epochs:\n      choice:\n        - 4\n        - 8\n"
BAD += [
    (EPOCHS, f"{entry}\n", [(34, f"search.space.{entry.split(':')[0]}", words)])
    for entry, words in [
        ("train.epochs: {randint: [0, 5]}", "leaves the range of train.epochs"),
        ("train.epochs: {uniform: [1, 5]}", "draw whole numbers with randint"),
        ("train.epochs: {quniform: [2, 8.0, 2]}", "draw whole numbers with randint"),
        ("train.epochs: {quniform: [2, 8, 20]}", "0 < step <= hi - lo, got 20"),
        ("train.epochs: {quniform: [2, 8]}", "takes the numbers [lo, hi, step]"),
        ("train.epochs: {randint: [1.5, 5]}", "randint needs whole numbers"),
        ("train.epochs: {choice: []}", "one or more different values"),
        ("train.flip: {randint: [0, 2]}", "must be true or false"),
        ("train.threads: {choice: [auto, 0]}", "or 'auto', got 0"),
        ("train.optimizer: {choice: [adam]}", "must be 'adamw' or 'sgd'"),
        ("train.momentum: {uniform: [0.5, 1]}", "< 1 or 'auto'"),
        ("train.lr_scales.net: {choice: [0.5, 0.0]}", "leaves the range of train.lr_scales.net"),
        ("train.optimizer_options: {choice: [1]}", "the closest is 'train.optimizer_options.NAME'"),
        ("train.losses.0.weight: {uniform: [0, 1]}", "train.losses is empty"),
        ("train.losses.0.weight: {uniform: [-1, 1]}", "leaves the range of train.losses.0.weight"),
        ("train.losses.0.temprature: {uniform: [0.1, 1]}", "the closest is 'train.losses.0.temperature'"),
        ("train.losses.0.output: {choice: [a]}", "not a key of the train section"),
        ("train.losses: {choice: [a]}", "the closest is 'train.losses.0.weight'"),
    ]
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), BAD, ids=[f"{old.split(':')[0]}->{new[:40]}" for old, new, _ in BAD]
)
def test_bad_input_is_named(text: str, write: Write, old: str, new: str, expected: list[tuple[int | str, ...]]) -> None:
    assert old in text
    path = write(text.replace(old, new, 1))
    with pytest.raises(ParamsError) as caught:
        load(path)
    # The first problem of a line may bring others at that line; none may stand elsewhere.
    lines = str(caught.value).splitlines()
    for line, *words in expected:
        assert any(
            found.startswith(f"params.yaml:{line}:") and all(str(word) in found for word in words) for found in lines
        ), f"{line} {words} not in {lines}"
    assert {int(found.split(":")[1]) for found in lines} == {line for line, *_ in expected}


def test_every_problem_is_listed_in_the_files_order(text: str) -> None:
    bad = (
        text.replace("seed: 0", "sed: 0").replace("lr: 0.01", "lr: -1").replace("accuracy", "f1").replace("8\n", "0\n")
    )
    with pytest.raises(ParamsError) as caught:
        loads(bad)
    found = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    assert found == [
        ["params.yaml:7", "ingest.sed"],
        ["params.yaml:13", "preprocess.height"],
        ["params.yaml:14", "preprocess.width"],
        ["params.yaml:22", "train.lr"],
        ["params.yaml:29", "register.metric"],
        ["params.yaml:31", "search.trials"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "params.yaml:1: the file is empty"),
        ("# nothing\n", "params.yaml:1: the file is empty"),
        ("- 1\n", "params.yaml:1: the top level must be sections (keys), got a list of 1"),
        ("3", "params.yaml:1: the top level must be sections (keys), got 3"),
        ("{}", "params.yaml:1: ingest: the section is missing; its keys are dataset, path"),
        (b"ingest:\n  dataset: \xff\n", "params.yaml:2: not UTF-8 text (byte 0xff)"),
    ],
)
def test_a_file_that_holds_no_sections(write: Write, content: str | bytes, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load(write(content))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("colour", "augmentation", "words"),
    [
        (
            "hsv",
            "{policy: augmix}",
            "augmix would make false colours of the hsv of preprocess.colour; expected cutmix, erase",
        ),
        (
            "lab",
            "{operations: [{name: flip}, {name: equalize}, {name: rotate, magnitude: [-9, 9]}]}",
            "equalize and rotate",
        ),
        (
            "lab",
            "{operations: [{name: flip}, {name: noise, magnitude: [1, 9]}], chains: 2}",
            "or preprocess.colour: rgb",
        ),
        ("hsv", "{mixup: {probability: 0.1}}", "mixup would make"),
        ("hsv", "{}\n  schedules: {augmentation.mixup.probability: {kind: linear, end: 0.1}}", "mixup would make"),
        ("hsv", "{operations: [{name: flip}], cutmix: {probability: 0.1}}\n  cutout: 3", ""),
        ("lab", "{operations: [{name: elastic, magnitude: [0, 2]}], mixup: {probability: 0.1}}\n  shift: 3", ""),
        ("rgb", "{policy: augmix, mixup: {probability: 0.1}}\n  cutout: 3", ""),
    ],
)
def test_other_colours_take_what_makes_no_false_ones(text: str, colour: str, augmentation: str, words: str) -> None:
    coloured = text.replace("channels: 1", f"channels: 3\n  colour: {colour}")
    changed = coloured.replace("  flip: false", f"  augmentation: {augmentation}")
    if not words:
        loads(changed)
        return
    with pytest.raises(ParamsError, match=words) as caught:
        loads(changed)
    assert str(caught.value).startswith("params.yaml:24: train.augmentation: ")


@pytest.mark.parametrize("cutout", ["cutout: 2", "schedules: {cutout: {kind: linear, end: 2}}"])
def test_lab_takes_no_cutout(text: str, cutout: str) -> None:
    coloured = text.replace("channels: 1", "channels: 3\n  colour: lab").replace("flip: false", cutout)
    with pytest.raises(ParamsError, match=r"train\.cutout: 0 in each channel is no black in preprocess\.colour lab"):
        loads(coloured)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"absent\.yaml: there is no such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(ParamsError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_section_is_read_whatever_the_others_hold(text: str, write: Write) -> None:
    path = write(text.replace("worst: 25", "worst: -1").replace("dataset: digits", "data: 3"))
    assert load_section(TrainParams, path).lr == 0.01
    with pytest.raises(ParamsError, match=r"3: ingest\.data: unknown key; the closest is 'dataset'"):
        load_section(IngestParams, path)


def test_a_misspelt_section_is_named_to_the_stage(text: str, write: Write) -> None:
    with pytest.raises(ParamsError, match=r"train: the section is missing \(is it 'trian' \(line 17\)\?\)"):
        load_section(TrainParams, write(text.replace("train:\n", "trian:\n")))


def test_aliases_do_not_multiply() -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(ParamsError, match=r"params\.yaml:2: .*alias .a0 is not supported"):
        loads("\n".join(rows))


def test_every_field_has_a_description_and_every_default_is_valid() -> None:
    for cls in [*SECTIONS.values(), *augmentation_groups()]:
        for name, field in cls.model_fields.items():
            assert field.description, f"{cls.__name__}.{name}"
        assert set(cls.also_called.values()) <= set(cls.model_fields)
        assert not set(cls.also_called) & set(cls.model_fields)
    loads("{ingest: {dataset: d, path: p}, validate: {}, preprocess: {height: 1, width: 1, channels: 3},"
          " train: {network: n}, evaluate: {}, export: {}, register: {}, search: {}}")  # fmt: skip
